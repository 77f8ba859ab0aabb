//! What librdkafka counts, as metrics, and why it cannot reach a broker.

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a metric counts, as Prometheus tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the client behind it is made anew.
    Counter,
    Gauge,
}

/// One value, under the name that it has in Prometheus, which ends with its unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// The newest statistics of every client of a log.
#[derive(Default)]
pub struct Collected {
    clients: Mutex<BTreeMap<String, Statistics>>,
    pub producers_replaced: AtomicU64,
    /// Why a connection could not be made or was lost, and when.
    trouble: Mutex<Option<(Instant, String)>>,
}

/// Connections are tried again and again, and librdkafka says the same of one for 30 seconds only once: what was said
/// longer ago is over.
const TROUBLE_AGE_MAX: Duration = Duration::from_secs(35);

impl Collected {
    fn clients(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Statistics>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When and why a connection failed, if one did lately. An answer that does not come says only that it did not.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, why) = trouble.as_ref()?;
        let age = at.elapsed();
        (age <= TROUBLE_AGE_MAX).then(|| format!("{} s ago a connection failed: {why}", age.as_secs()))
    }

    fn note(&self, why: &str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why.to_owned()));
    }

    /// Everything as it was at the last interval, in a fixed order.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![Metric {
            name: "tally_log_kafka_producers_replaced_total",
            help: "Producers that lost their idempotence and were made anew.",
            kind: Kind::Counter,
            labels: Vec::new(),
            value: self.producers_replaced.load(Ordering::Relaxed) as f64,
        }];
        for (name, statistics) in &*self.clients() {
            client(name, statistics, &mut metrics);
        }
        metrics
    }
}

fn client(name: &str, statistics: &Statistics, metrics: &mut Vec<Metric>) {
    use Kind::{Counter, Gauge};
    let client = ("client", name.to_owned());
    let mut add = |name, help, kind, labels: &[(&'static str, String)], value: f64| {
        let labels = std::iter::once(client.clone()).chain(labels.iter().cloned()).collect();
        metrics.push(Metric { name, help, kind, labels, value });
    };
    if statistics.client_type == "producer" {
        let records = "tally_log_kafka_unacknowledged_records";
        add(records, "Records that were handed over and not acknowledged.", Gauge, &[], statistics.msg_cnt as f64);
        let bytes = "tally_log_kafka_unacknowledged_bytes";
        add(bytes, "The bytes of those records.", Gauge, &[], statistics.msg_size as f64);
        let sent = "tally_log_kafka_records_sent_total";
        add(sent, "Records that were sent to brokers.", Counter, &[], statistics.txmsgs as f64);
    } else {
        let read = "tally_log_kafka_records_fetched_total";
        add(read, "Records that came from brokers.", Counter, &[], statistics.rxmsgs as f64);
    }
    for broker in sorted(&statistics.brokers) {
        // Negative ids are the addresses that were begun with; the brokers behind them are listed by themselves.
        if broker.nodeid < 0 {
            continue;
        }
        let id = ("broker", broker.nodeid.to_string());
        let up = f64::from(u8::from(broker.state == "UP" || broker.state == "UPDATE"));
        add("tally_log_kafka_broker_up", "1 while connected to the broker.", Gauge, from_ref(&id), up);
        let requests = "tally_log_kafka_outstanding_requests";
        let outstanding = broker.outbuf_cnt + broker.waitresp_cnt;
        add(requests, "Requests that are not answered.", Gauge, from_ref(&id), outstanding as f64);
        for (name, help, value) in [
            ("tally_log_kafka_transmit_errors_total", "Requests that could not be sent.", broker.txerrs),
            ("tally_log_kafka_retries_total", "Requests that were sent again.", broker.txretries),
            ("tally_log_kafka_timeouts_total", "Requests that were not answered in time.", broker.req_timeouts),
        ] {
            add(name, help, Counter, from_ref(&id), value as f64);
        }
        if let Some(rtt) = &broker.rtt {
            for (quantile, us) in [("0.5", rtt.p50), ("0.99", rtt.p99)] {
                let labels = [id.clone(), ("quantile", quantile.to_owned())];
                let name = "tally_log_kafka_round_trip_seconds";
                add(name, "From request to answer, in the last interval.", Gauge, &labels, us as f64 / 1e6);
            }
        }
    }
    for topic in sorted(&statistics.topics) {
        let mut partitions: Vec<_> = topic.partitions.values().filter(|partition| partition.partition >= 0).collect();
        partitions.sort_by_key(|partition| partition.partition);
        let lack = partitions.iter().filter(|partition| partition.leader < 0).count();
        let name = "tally_log_kafka_partitions_without_leader";
        let help = "Partitions that take nothing and give nothing, since no broker leads them.";
        add(name, help, Gauge, &[("topic", topic.topic.clone())], lack as f64);
        for partition in partitions {
            let labels = [("topic", topic.topic.clone()), ("partition", partition.partition.to_string())];
            // Negative where it is not known, which is everywhere that nothing is read. librdkafka's own lag is that
            // of committed offsets, which there are none of.
            if partition.app_offset >= 0 && partition.hi_offset >= 0 {
                let lag = (partition.hi_offset - partition.app_offset).max(0);
                let name = "tally_log_kafka_consumer_lag_records";
                add(name, "Records in the partition that were not read.", Gauge, &labels, lag as f64);
            }
        }
    }
}

fn sorted<T>(map: &std::collections::HashMap<String, T>) -> impl Iterator<Item = &T> {
    map.iter().collect::<BTreeMap<_, _>>().into_values()
}

/// What a client of librdkafka tells of itself.
pub struct Watch {
    statistics: Arc<Collected>,
    /// The name under which its statistics came, to forget them with it.
    name: Mutex<Option<String>>,
}

impl Watch {
    pub fn new(statistics: Arc<Collected>) -> Self {
        Watch { statistics, name: Mutex::default() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(name) = self.name.get_mut().unwrap_or_else(PoisonError::into_inner) {
            self.statistics.clients().remove(name);
        }
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "kafka client");
            }
            // librdkafka says at these levels that a connection was closed, which it makes again by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "kafka client"),
            RDKafkaLogLevel::Notice => tracing::info!(facility, message, "kafka client"),
            // A broker that hangs up, which it also does to a client that it does not understand, is told of only here.
            RDKafkaLogLevel::Info if facility == "FAIL" => {
                tracing::debug!(facility, message, "kafka client");
                self.statistics.note(message);
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "kafka client"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        name.get_or_insert_with(|| statistics.name.clone());
        self.statistics.clients().insert(statistics.name.clone(), statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka client");
        use RDKafkaErrorCode::{Authentication, BrokerTransportFailure, Resolve, SSL};
        if let Some(Authentication | BrokerTransportFailure | Resolve | SSL) = error.rdkafka_error_code() {
            self.statistics.note(reason);
        }
    }
}
