//! How Kafka is reached and used.

use super::topics::REPLICATION_MIN;
use crate::{LogError, RECORD_BYTES_MAX};
use click::Partition;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What can be set, as it stands in a `[kafka]` table of TOML. Durations are written as people do: `"30s"`, `"7days"`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to begin: `host:port` of some of the brokers.
    pub brokers: Vec<String>,
    /// One broker, one copy of everything. Allows topics with one replica, and says at start what can be lost.
    pub single_node: bool,
    /// Partitions of every topic. A topic with another number is refused.
    pub partitions: Partition,
    /// Copies of every partition, when a topic is made: at least 3. A single node makes one.
    pub replication: u16,
    /// How long a topic keeps its records, when it is made.
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
    /// How long librdkafka may try to deliver a record before its acknowledgement fails. At least `request_timeout`.
    #[serde(deserialize_with = "duration")]
    pub delivery_timeout: Duration,
    /// How long one request may wait for its answer.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Duration,
    /// How long a record waits for company before it is sent; by default as long as in Kafka's own producers since 4.0.
    /// Records that come while five requests are in flight share the next one in any case.
    #[serde(deserialize_with = "duration")]
    pub linger: Duration,
    /// Bytes of records that may be in flight to one partition; more wait. One partition that is stuck fills its own
    /// share and holds back no other.
    pub in_flight_bytes_max: u32,
    /// Bytes of records that a consumer may hold before they are polled.
    pub fetched_bytes_max: u32,
    /// How often it is looked whether a topic was made anew or got more partitions.
    #[serde(deserialize_with = "duration")]
    pub check_every: Duration,
    /// How often librdkafka's statistics are taken.
    #[serde(deserialize_with = "duration")]
    pub statistics_every: Duration,
    /// The name that brokers see, and the consumer group of [`crate::Consumer`]s, which never join it and never commit.
    pub client_id: String,
    /// Further properties of librdkafka: TLS, SASL, compression, sockets. Those that what Tally promises rests on are
    /// refused. A name may be written with `_` in the place of `.`, as in variables of the environment, and wins then.
    #[serde(deserialize_with = "properties")]
    pub properties: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            brokers: vec!["127.0.0.1:9092".into()],
            single_node: false,
            partitions: 4,
            replication: 3,
            retention: Duration::from_secs(7 * 86_400),
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(10),
            linger: Duration::from_millis(5),
            in_flight_bytes_max: 16 << 20,
            fetched_bytes_max: 16 << 20,
            check_every: Duration::from_secs(1),
            statistics_every: Duration::from_secs(5),
            client_id: "tally".into(),
            properties: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for Settings {
    /// Without the values of properties, some of which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("single_node", &self.single_node)
            .field("partitions", &self.partitions)
            .field("replication", &self.replication)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("properties", &self.properties.keys())
            .finish_non_exhaustive()
    }
}

/// Most bytes of a batch, as topics and producers are set: the largest record, its key, and what is around them.
pub(super) const BATCH_BYTES_MAX: usize = RECORD_BYTES_MAX + (64 << 10);

/// Properties that may be passed through: names, and beginnings of names that end with a dot.
const PROPERTIES: &[&str] = &[
    "security.protocol",
    "sasl.",
    "ssl.",
    "enable.ssl.certificate.verification",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "client.rack",
    "client.dns.lookup",
    "broker.address.",
    "socket.",
    "reconnect.backoff.",
    "retry.backoff.",
    "connections.max.idle.ms",
    "compression.type",
    "compression.level",
    "batch.size",
    "batch.num.messages",
    "debug",
];

impl Settings {
    /// Looks at what librdkafka cannot judge, and names the first setting that is not possible.
    pub fn check(&self) -> Result<(), LogError> {
        if self.brokers.is_empty() || self.brokers.iter().any(|broker| broker.trim().is_empty()) {
            return Err(invalid("brokers", format!("{:?}", self.brokers), "at least one, each as host:port"));
        }
        let within = |name: &str, given: u128, least: u128, most: u128, unit: &str| {
            if (least..=most).contains(&given) {
                return Ok(());
            }
            Err(invalid(name, given.to_string(), &format!("{least} to {most}{unit}")))
        };
        let hours = 3_600_000;
        let requests = self.request_timeout.as_millis();
        within("partitions", self.partitions.max(0) as u128, 1, 10_000, "")?;
        let least = if self.single_node { 1 } else { REPLICATION_MIN as u128 };
        within("replication", self.replication.into(), least, 100, "")?;
        within("retention", self.retention.as_millis(), hours, 100 * 8_766 * hours, " ms")?;
        within("request_timeout", requests, 100, 300_000, " ms")?;
        within("delivery_timeout", self.delivery_timeout.as_millis(), requests, 24 * hours, " ms")?;
        within("linger", self.linger.as_millis(), 0, 1_000.min(self.delivery_timeout.as_millis() - 1), " ms")?;
        // No less than the largest record, so that each finds room some time.
        let least = 2 * BATCH_BYTES_MAX as u128;
        within("in_flight_bytes_max", self.in_flight_bytes_max.into(), least, 1 << 30, " bytes")?;
        within("fetched_bytes_max", self.fetched_bytes_max.into(), least, 1 << 30, " bytes")?;
        within("check_every", self.check_every.as_millis(), 10, 60_000, " ms")?;
        within("statistics_every", self.statistics_every.as_millis(), 100, 60_000, " ms")?;
        for (name, value) in &self.properties {
            let allowed = PROPERTIES
                .iter()
                .any(|allowed| if allowed.ends_with('.') { name.starts_with(allowed) } else { name == allowed });
            if !allowed {
                let allowed = format!("a property that may be set, one of {}", PROPERTIES.join(", "));
                return Err(invalid("properties", name.clone(), &allowed));
            }
            if !cfg!(feature = "kafka-tls")
                && name == "security.protocol"
                && ["ssl", "sasl_ssl"].contains(&value.to_ascii_lowercase().as_str())
            {
                let allowed = "plaintext or sasl_plaintext, or a build with the feature kafka-tls";
                return Err(invalid(name, value.clone(), allowed));
            }
            // This build has no other codec, and would find that out when it reads.
            if name == "compression.type" && !["none", "lz4", "snappy"].contains(&value.as_str()) {
                return Err(invalid(name, value.clone(), "none, lz4 or snappy"));
            }
        }
        Ok(())
    }

    pub(super) fn servers(&self) -> Arc<str> {
        self.brokers.join(",").into()
    }

    /// What producers and consumers share.
    fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.properties {
            // Producers alone know these, and librdkafka warns of them on a consumer.
            if !["compression.", "batch."].iter().any(|producers| name.starts_with(producers)) {
                config.set(name, value);
            }
        }
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", &self.client_id)
            .set("socket.timeout.ms", ms(self.request_timeout))
            .set("socket.keepalive.enable", "true")
            .set("statistics.interval.ms", ms(self.statistics_every))
            // What brokers would like to be told of us is in our own metrics.
            .set("enable.metrics.push", "false");
        for (name, value) in [("reconnect.backoff.ms", "50"), ("reconnect.backoff.max.ms", "1000")] {
            if !self.properties.contains_key(name) {
                config.set(name, value);
            }
        }
        let debug = self.properties.contains_key("debug");
        config.set_log_level(if debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        config
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.common();
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
            // Retries neither write twice nor change the order, with up to five requests in flight.
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("max.in.flight.requests.per.connection", "5")
            .set("delivery.timeout.ms", ms(self.delivery_timeout))
            .set("request.timeout.ms", ms(self.request_timeout))
            .set("linger.ms", ms(self.linger))
            .set("message.max.bytes", BATCH_BYTES_MAX.to_string())
            // What is in flight is bounded by partition before it comes to librdkafka.
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "2147483647");
        config
    }

    /// For questions about topics and offsets.
    pub(super) fn query(&self) -> ClientConfig {
        self.common()
    }

    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = self.common();
        config
            // Partitions are assigned by hand and positions are the caller's: the group is never joined, but
            // librdkafka does not assign without one.
            .set("group.id", &self.client_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("allow.auto.create.topics", "false")
            .set("check.crcs", "true")
            .set("fetch.message.max.bytes", BATCH_BYTES_MAX.to_string())
            .set("fetch.max.bytes", (self.fetched_bytes_max / 2).max(BATCH_BYTES_MAX as u32).to_string())
            .set("queued.max.messages.kbytes", (self.fetched_bytes_max >> 10).to_string())
            // By default the next fetch waits a second after the queue was full.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100");
        config
    }
}

fn ms(duration: Duration) -> String {
    duration.as_millis().to_string()
}

pub(super) fn invalid(name: &str, given: String, allowed: &str) -> LogError {
    LogError::Setting { name: name.into(), given, allowed: allowed.into() }
}

/// What librdkafka refused when a client was made. Values are left out: one may be a password.
pub(super) fn refused(error: KafkaError) -> LogError {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => invalid(&name, "…".into(), &why),
        KafkaError::ClientCreation(why) => invalid("properties", "…".into(), &why),
        other => invalid("properties", "…".into(), &other.to_string()),
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("{text:?} is not a duration such as \"5m\" or \"30s\": {error}"))
    })
}

/// No property that may be set has an underscore in its name.
fn properties<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let given = BTreeMap::<String, String>::deserialize(from)?;
    let (with, mut properties): (BTreeMap<_, _>, BTreeMap<_, _>) =
        given.into_iter().partition(|(name, _)| name.contains('_'));
    properties.extend(with.into_iter().map(|(name, value)| (name.replace('_', "."), value)));
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_default_that_is_possible() {
        Settings::default().check().unwrap();
        let single: Settings = serde_json::from_str(r#"{"single_node": true, "retention": "2days"}"#).unwrap();
        assert_eq!((single.single_node, single.retention), (true, Duration::from_secs(2 * 86_400)));
    }

    #[test]
    fn what_is_not_possible_is_named() {
        let check = |json: &str, expected: &str| {
            let error = serde_json::from_str::<Settings>(json).unwrap().check().unwrap_err().to_string();
            assert_eq!(error, format!("Kafka setting {expected}"));
        };
        check(r#"{"brokers": []}"#, r#"brokers = "[]" is not valid: at least one, each as host:port"#);
        check(r#"{"replication": 2}"#, r#"replication = "2" is not valid: 3 to 100"#);
        check(r#"{"partitions": -3}"#, r#"partitions = "0" is not valid: 1 to 10000"#);
        check(r#"{"delivery_timeout": "1s"}"#, r#"delivery_timeout = "1000" is not valid: 10000 to 86400000 ms"#);
        check(
            r#"{"properties": {"compression.type": "zstd"}}"#,
            r#"compression.type = "zstd" is not valid: none, lz4 or snappy"#,
        );
        #[cfg(not(feature = "kafka-tls"))]
        check(
            r#"{"properties": {"security_protocol": "SASL_SSL"}}"#,
            r#"security.protocol = "SASL_SSL" is not valid: plaintext or sasl_plaintext, or a build with the feature kafka-tls"#,
        );
        for name in ["acks", "enable.idempotence", "group.id", "auto.offset.reset", "socket", "sasl"] {
            let settings = Settings { properties: [(name.into(), "1".into())].into(), ..Settings::default() };
            let error = settings.check().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("Kafka setting properties = {name:?} is not valid: a property")),
                "{error}"
            );
        }
        assert!(serde_json::from_str::<Settings>(r#"{"acks": "1"}"#).is_err());
        assert!(serde_json::from_str::<Settings>(r#"{"linger": "1 fortnight"}"#).is_err());
    }

    #[test]
    fn a_property_may_be_named_as_a_variable_is() {
        let json =
            r#"{"properties": {"sasl.username": "tally", "sasl.password": "of the file", "sasl_password": "secret"}}"#;
        let properties = serde_json::from_str::<Settings>(json).unwrap().properties;
        let expected = [("sasl.password", "secret"), ("sasl.username", "tally")];
        assert_eq!(properties, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn secrets_are_not_shown() {
        let properties = [("sasl.password".to_owned(), "hunter2".to_owned())].into();
        let shown = format!("{:?}", Settings { properties, ..Settings::default() });
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
    }
}
