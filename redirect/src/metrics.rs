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
        scrape.samples(service.invalid().map(|(reason, count)| Sample {
            name: "tally_redirect_invalid_clicks_total",
            help: "Clicks that were recorded with a reason for which they are not billed",
            is_counter: true,
            labels: vec![("reason", reason.as_str().into())],
            value: count as f64,
        }))?;
        scrape.counter(
            "tally_redirect_refused_files",
            "New versions of files that were refused",
            service.reload_refusals(),
        )?;
        if let Some(spool) = service.spool() {
            scrape.gauge("tally_spool_clicks", "Clicks that wait in the spool", spool.records as f64)?;
            scrape.gauge("tally_spool_bytes", "Bytes of the clicks that wait in the spool", spool.bytes as f64)?;
            scrape.gauge(
                "tally_spool_full_partitions",
                "Partitions that fill their share of the spool, past which their clicks are answered 503",
                spool.partitions_full as f64,
            )?;
            let on_disk = spool.disk_bytes as f64;
            scrape.gauge(
                "tally_spool_disk_bytes",
                "Bytes of the spool's files, with what was sent and is still there",
                on_disk,
            )?;
            let oldest = spool.oldest_ms as f64 / 1_000.0;
            scrape.gauge("tally_spool_oldest_seconds", "Age of the oldest click that waits in the spool", oldest)?;
            scrape.gauge(
                "tally_spool_aside_clicks",
                "Clicks that waited for too long and are kept aside",
                spool.aside as f64,
            )?;
            scrape.counter("tally_spool_puts", "Clicks that were put into the spool", spool.spooled)?;
            scrape.counter(
                "tally_spool_sends",
                "Clicks of the spool that were sent again and acknowledged",
                spool.sent_again,
            )?;
            scrape.counter("tally_spool_failures", "Clicks that could not be put into the spool", spool.failures)?;
        }
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
