//! What a process tells Prometheus. Most numbers are kept where they are made, and read when they are asked for.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;

/// The type of the text that [`Metrics::text`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the buckets of times, in seconds: from what a memory access and a packet take to what nobody waits for.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The metrics of one process. Names are `tally_<part>_<what>_<unit>`; `_total` is added to those of counters.
#[derive(Debug, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// A histogram of times in seconds; `name` ends in `_seconds`.
    pub fn seconds(&mut self, name: &str, help: &str) -> Histogram {
        let histogram = Histogram::new(SECONDS);
        self.0.register(name, help.trim_end_matches('.'), histogram.clone());
        histogram
    }

    /// Numbers that are read at each scrape, which must not block.
    pub fn read(&mut self, read: impl Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync + 'static) {
        self.0.register_collector(Box::new(Reading(read)));
    }

    /// All of them, as OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.0)?;
        Ok(page)
    }
}

struct Reading<F>(F);

impl<F> fmt::Debug for Reading<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl<F: Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync + 'static> Collector for Reading<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Scrape(encoder))
    }
}

/// One number of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: &'static str,
    pub help: &'static str,
    pub is_counter: bool,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// One scrape, as it is written.
pub struct Scrape<'a>(DescriptorEncoder<'a>);

impl Scrape<'_> {
    /// Something that only grows, since the process began.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(name, help, &ConstCounter::new(value))
    }

    /// The same by a label's values.
    pub fn counters<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let metrics = values.into_iter().map(|(of, value)| (of, ConstCounter::new(value)));
        self.family(name, help, label, metrics)
    }

    /// Something that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.one(name, help, &ConstGauge::new(value))
    }

    /// The same by a label's values.
    pub fn gauges<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let metrics = values.into_iter().map(|(of, value)| (of, ConstGauge::new(value)));
        self.family(name, help, label, metrics)
    }

    /// Samples of several families, in any order.
    pub fn samples(&mut self, samples: impl IntoIterator<Item = Sample>) -> fmt::Result {
        let mut families = BTreeMap::<&str, Vec<Sample>>::new();
        for sample in samples {
            families.entry(sample.name).or_default().push(sample);
        }
        for (name, samples) in families {
            let Some(first) = samples.first() else { continue };
            let (name, kind) = match first.is_counter {
                true => (name.trim_end_matches("_total"), MetricType::Counter),
                false => (name, MetricType::Gauge),
            };
            let mut encoder = self.0.encode_descriptor(name, first.help.trim_end_matches('.'), None, kind)?;
            for sample in &samples {
                let of = encoder.encode_family(&sample.labels)?;
                match sample.is_counter {
                    true => ConstCounter::new(sample.value).encode(of)?,
                    false => ConstGauge::new(sample.value).encode(of)?,
                }
            }
        }
        Ok(())
    }

    fn one(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn family<L: AsRef<str>, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        metrics: impl IntoIterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut metrics = metrics.into_iter().peekable();
        // A family without members has no type that could be told.
        let Some((_, first)) = metrics.peek() else { return Ok(()) };
        let mut encoder = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        for (of, metric) in metrics {
            metric.encode(encoder.encode_family(&[(label, of.as_ref())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_openmetrics() {
        let mut metrics = Metrics::default();
        let waited = metrics.seconds("tally_test_wait_seconds", "How long it took.");
        waited.observe(0.002);
        metrics.read(|scrape| {
            scrape.counter("tally_test_clicks", "Clicks", 7)?;
            scrape.gauge("tally_test_open_rows", "Rows", 1.5)?;
            scrape.counters("tally_test_rows", "Rows", "verdict", [("bill\"able", 3), ("late", 1)])?;
            let sample = |name, is_counter, of: &str, value| Sample {
                name,
                help: "Help.",
                is_counter,
                labels: vec![("of", of.to_string())],
                value,
            };
            scrape.samples([
                sample("tally_test_sent_total", true, "a", 1.0),
                sample("tally_test_queued", false, "a", 2.0),
                sample("tally_test_sent_total", true, "b", 3.0),
            ])?;
            scrape.counters("tally_test_none", "None", "verdict", [("", 0); 0])
        });
        let page = metrics.text().unwrap();
        for line in [
            "tally_test_wait_seconds_bucket{le=\"0.0025\"} 1\n",
            "# TYPE tally_test_clicks counter\n",
            "tally_test_clicks_total 7\n",
            "tally_test_open_rows 1.5\n",
            "tally_test_sent_total{of=\"a\"} 1.0\ntally_test_sent_total{of=\"b\"} 3.0\n",
            "tally_test_queued{of=\"a\"} 2.0\n",
            "tally_test_rows_total{verdict=\"bill\\\"able\"} 3\n",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(page.ends_with("# EOF\n") && !page.contains("none"), "{page}");
    }
}
