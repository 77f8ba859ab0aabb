//! What a redirect tells Prometheus.

use crate::service::Service;
use serving::metrics::{Metrics, Sample};
use std::sync::Arc;
use tally_log::Topic;
use tally_log::kafka::{KafkaLog, Kind};
use tally_log::local::LocalLog;

/// Those of the service, the times of its answers included.
pub fn redirect(metrics: &mut Metrics, service: &Service) {
    let answered = metrics.seconds(
        "tally_redirect_answer_seconds",
        "Time from a click's arrival to its answer, the log's acknowledgement included",
    );
    service.observe_answers(answered);
    let service = service.clone();
    metrics.read(move |scrape| {
        let counters = service.counters();
        scrape.counter(
            "tally_redirect_clicks",
            "Clicks that are durable and were answered with 302 or 204",
            counters.clicks_answered,
        )?;
        scrape.counter(
            "tally_redirect_prefetches",
            "Prefetches that are durable and were answered 503",
            counters.prefetches,
        )?;
        scrape.counter("tally_redirect_refused", "Requests that were answered with a 4xx", counters.refused)?;
        scrape.counter(
            "tally_redirect_failures",
            "Clicks that were answered 503 since the log did not take them in time",
            counters.failures,
        )?;
        scrape.gauge(
            "tally_redirect_appends_in_flight",
            "Clicks that wait for the log",
            f64::from(service.appends_in_flight()),
        )
    });
}

/// Those of a log on this machine.
pub fn local(metrics: &mut Metrics, log: Arc<LocalLog>, topic: Topic) {
    metrics.read(move |scrape| {
        // The topic is there as long as the log is.
        let groups = log.groups(&topic).unwrap_or_default();
        scrape.counter("tally_log_fsyncs", "Groups of clicks that were made durable at once", groups)
    });
}

/// Those of librdkafka.
pub fn kafka(metrics: &mut Metrics, log: Arc<KafkaLog>) {
    metrics.read(move |scrape| {
        scrape.samples(log.statistics().into_iter().map(|metric| Sample {
            name: metric.name,
            help: metric.help,
            is_counter: metric.kind == Kind::Counter,
            labels: metric.labels,
            value: metric.value,
        }))
    });
}
