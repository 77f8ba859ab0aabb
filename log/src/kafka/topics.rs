//! Makes the topics that are missing, and says what is wrong with those that are there.
//!
//! Each problem comes with what mends it, so that a caller needs only to print it.

use super::describe::{self, Described};
use super::settings::BATCH_BYTES_MAX;
use super::statistics::Watch;
use super::{Context, Settings};
use crate::LogError;
use click::LogId;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was found and done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub created: Vec<String>,
    /// Topics that were there, with problems or without.
    pub checked: Vec<String>,
    /// What must be mended before a process may use the topics.
    pub problems: Vec<Problem>,
    /// What an operator should know, one sentence or two each.
    pub warnings: Vec<String>,
}

/// What is wrong with a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub topic: String,
    pub what: String,
    /// A command for a shell, or a setting of ours.
    pub mend: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {:?}: {}\n    {}", self.topic, self.what, self.mend)
    }
}

/// Fewest copies of a partition that survive the loss of one, and still take appends then.
pub(super) const REPLICATION_MIN: usize = 3;
const INSYNC_MIN: usize = 2;

const SINGLE_NODE: &str = "single_node = true: Kafka has one copy of everything. If its disk is lost, so is every click \
    that is not in the warehouse yet; and so is what the machine had not written to its disk when its power fails.";

/// The id of the topic of this name, if there is one, whatever its number of partitions.
///
/// # Errors
///
/// Settings that are not possible, and a Kafka that does not answer.
pub async fn id(settings: &Settings, name: &str) -> Result<Option<LogId>, LogError> {
    let admin = Admin::new(settings)?;
    let described = admin.describe(name).await;
    admin.end().await;
    Ok(described?.map(|described| described.log_id))
}

/// Makes each topic of these names that is missing, with the settings' partitions, replication and retention, and with
/// the time of appending; checks each that is there. Nothing that is there is changed.
///
/// # Errors
///
/// Settings that are not possible, and a Kafka that does not answer or refuses to make a topic. What is wrong with a
/// topic is no error but a [`Problem`].
pub async fn create_or_check(settings: &Settings, names: &[&str]) -> Result<Report, LogError> {
    let admin = Admin::new(settings)?;
    let mut report = Report::default();
    if settings.single_node {
        report.warnings.push(SINGLE_NODE.to_owned());
    }
    report.warnings.extend(admin.auto_create().await);
    for name in names {
        match admin.describe(name).await? {
            Some(described) => {
                let set = admin.set(name).await?;
                report.checked.push((*name).to_owned());
                check(settings, name, &described, &set, &mut report);
            }
            None => {
                admin.create(name).await?;
                report.created.push((*name).to_owned());
            }
        }
    }
    admin.end().await;
    Ok(report)
}

/// Compares a topic with what it must be.
fn check(settings: &Settings, name: &str, described: &Described, set: &ConfigResource, report: &mut Report) {
    let servers = settings.servers();
    let mut problem = |what: String, mend: String| report.problems.push(Problem { topic: name.to_owned(), what, mend });
    let value = |key: &str| set.get(key).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    let number = |key: &str| value(key).parse::<i64>().unwrap_or(-1);
    let alter = |set: &str| {
        format!(
            "kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {name} --add-config {set}"
        )
    };
    if described.partitions != settings.partitions {
        let (found, expected) = (described.partitions, settings.partitions);
        problem(
            format!(
                "it has {found} partitions, not {expected}; a topic keeps its number for its whole life, since with \
                 another one keys move and an impression could be billed twice"
            ),
            format!(
                "kafka.partitions = {found} in the settings of every process, if it was made so; partitions that were added to it \
                 cannot be taken away again: it has to be made anew, and `clicks` for a new warehouse"
            ),
        );
    }
    if value("message.timestamp.type") != "LogAppendTime" {
        problem(
            format!(
                "its records carry {}, not the time of appending, which everything is counted by; records that are \
                 in it already keep theirs",
                value("message.timestamp.type")
            ),
            alter("message.timestamp.type=LogAppendTime"),
        );
    }
    if value("cleanup.policy") != "delete" {
        problem(
            format!("cleanup.policy is {}, which leaves holes among its records", value("cleanup.policy")),
            alter("cleanup.policy=delete"),
        );
    }
    if number("max.message.bytes") < BATCH_BYTES_MAX as i64 {
        problem(
            format!(
                "max.message.bytes is {}: the largest record with its key takes {BATCH_BYTES_MAX}",
                value("max.message.bytes")
            ),
            alter(&format!("max.message.bytes={BATCH_BYTES_MAX}")),
        );
    }
    if !settings.single_node {
        if described.replicas_min < REPLICATION_MIN {
            problem(
                format!(
                    "a partition of it has {} replicas: with fewer than {REPLICATION_MIN} the loss of a broker can \
                     lose records, or stop appends",
                    described.replicas_min
                ),
                format!("{} ; or single_node = true in the settings", reassign(&servers, name, described.partitions)),
            );
        }
        if number("min.insync.replicas") < INSYNC_MIN as i64 {
            problem(
                format!(
                    "min.insync.replicas is {}: a record could be acknowledged that one broker alone has",
                    value("min.insync.replicas")
                ),
                alter(&format!("min.insync.replicas={INSYNC_MIN}")),
            );
        }
        if value("unclean.leader.election.enable") != "false" {
            problem(
                "a replica that is behind may become leader, and acknowledged records would be gone".to_owned(),
                alter("unclean.leader.election.enable=false"),
            );
        }
    }
    let retention = number("retention.ms");
    if (0..settings.retention.as_millis() as i64).contains(&retention) {
        let (kept, wanted) = (humantime::format_duration(Duration::from_millis(retention as u64)), settings.retention);
        let set = format!("retention.ms={}", wanted.as_millis());
        report.warnings.push(format!(
            "topic {name:?} keeps records for {kept}, not for {}: {}",
            humantime::format_duration(wanted),
            alter(&set)
        ));
    }
    if number("retention.bytes") >= 0 {
        report.warnings.push(format!(
            "topic {name:?} removes records past {} bytes a partition, read or not: {}",
            value("retention.bytes"),
            alter("retention.bytes=-1")
        ));
    }
}

/// A command that gives every partition three replicas, on the brokers 1 to 3: which ones is the operator's to say.
fn reassign(servers: &str, name: &str, partitions: i32) -> String {
    let partition = |number: i32| {
        let replicas: Vec<String> = (0..REPLICATION_MIN as i32).map(|i| ((number + i) % 3 + 1).to_string()).collect();
        format!(r#"{{"topic":"{name}","partition":{number},"replicas":[{}]}}"#, replicas.join(","))
    };
    let partitions: Vec<String> = (0..partitions).map(partition).collect();
    format!(
        r#"echo '{{"version":1,"partitions":[{}]}}' >replicas.json && kafka-reassign-partitions.sh --bootstrap-server {servers} --reassignment-json-file replicas.json --execute  # with the ids of your brokers"#,
        partitions.join(",")
    )
}

struct Admin {
    client: Arc<AdminClient<Watch>>,
    context: Arc<Context>,
}

impl Admin {
    fn new(settings: &Settings) -> Result<Admin, LogError> {
        let context = Arc::new(Context::new(settings.clone())?);
        let watch = Watch::new(context.statistics.clone());
        let client = AdminClient::from_config_and_context(&settings.query(), watch);
        Ok(Admin { client: Arc::new(client.map_err(super::settings::refused)?), context })
    }

    /// The threads of the client are waited for when it is dropped.
    async fn end(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn options(&self) -> AdminOptions {
        let wait = Some(self.context.settings.request_timeout);
        AdminOptions::new().request_timeout(wait).operation_timeout(wait)
    }

    /// The topic as it is, if there is one.
    async fn describe(&self, name: &str) -> Result<Option<Described>, LogError> {
        let (client, wait, asked) = (self.client.clone(), self.context.settings.request_timeout, name.to_owned());
        let described = super::blocking(move || Ok(describe::describe(client.inner(), &asked, wait))).await?;
        match described {
            Ok(described) => Ok(Some(described)),
            Err(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(None),
            Err(code) => Err(self.context.failed(format!("describe topic {name:?}"), code)),
        }
    }

    /// Which brokers make a topic of any name that somebody asks for. It cannot be changed while a broker runs.
    async fn auto_create(&self) -> Option<String> {
        const KEY: &str = "auto.create.topics.enable";
        let unknown = |error: String| {
            Some(format!("it is not known whether {KEY} is false, as it should be, on every broker: {error}"))
        };
        let (client, wait) = (self.client.clone(), self.context.settings.request_timeout);
        // Without a topic the question is about all of them; it makes none.
        let asked = super::blocking(move || Ok(client.inner().fetch_metadata(None, wait))).await;
        let ids: Vec<i32> = match asked {
            Ok(Ok(metadata)) => metadata.brokers().iter().map(|broker| broker.id()).collect(),
            Ok(Err(error)) => return unknown(error.to_string()),
            Err(error) => return unknown(error.to_string()),
        };
        let mut making = Vec::new();
        // A broker answers for itself alone.
        for id in ids {
            let set = match self.client.describe_configs(&[ResourceSpecifier::Broker(id)], &self.options()).await {
                Ok(set) => set.into_iter().next(),
                Err(error) => return unknown(error.to_string()),
            };
            match set {
                Some(Ok(set)) => match set.get(KEY).and_then(|entry| entry.value.as_deref()) {
                    Some("false") => {}
                    Some(_) => making.push(id.to_string()),
                    None => return unknown(format!("broker {id} does not say")),
                },
                Some(Err(code)) => return unknown(format!("broker {id}: {code}")),
                None => return unknown(format!("broker {id} does not answer")),
            }
        }
        if making.is_empty() {
            return None;
        }
        Some(format!(
            "broker {} makes a topic of any name that somebody reads or writes: one of ours that is missing or removed would \
             come back without the time of appending and with the broker's own number of partitions. Put {KEY}=false into \
             its server.properties and restart it",
            making.join(", ")
        ))
    }

    /// What is set for a topic, defaults included.
    async fn set(&self, name: &str) -> Result<ConfigResource, LogError> {
        let failed = |error: KafkaError| self.context.failed(format!("read the settings of topic {name:?}"), error);
        let asked = [ResourceSpecifier::Topic(name)];
        let set = self.client.describe_configs(&asked, &self.options()).await.map_err(failed)?;
        match set.into_iter().next() {
            Some(Ok(set)) => Ok(set),
            Some(Err(code)) => Err(failed(KafkaError::AdminOp(code))),
            None => Err(failed(KafkaError::NoMessageReceived)),
        }
    }

    /// Makes a topic, and waits until brokers know it.
    async fn create(&self, name: &str) -> Result<(), LogError> {
        let settings = &self.context.settings;
        let failed = |error: KafkaError| self.context.failed(format!("make topic {name:?}"), error);
        let (retention, largest) = (settings.retention.as_millis().to_string(), BATCH_BYTES_MAX.to_string());
        let (replicas, insync) = match settings.single_node {
            true => (1, 1),
            false => (settings.replication, INSYNC_MIN),
        };
        let insync = insync.to_string();
        let topic = NewTopic::new(name, settings.partitions, TopicReplication::Fixed(replicas.into()))
            .set("message.timestamp.type", "LogAppendTime")
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention)
            .set("retention.bytes", "-1")
            .set("max.message.bytes", &largest)
            .set("min.insync.replicas", &insync)
            .set("unclean.leader.election.enable", "false");
        let made = self.client.create_topics([&topic], &self.options()).await.map_err(failed)?;
        // Another process may have made it in this moment, with the same settings if it is one of ours.
        if let Some(Err((_, code))) = made.into_iter().next()
            && code != RDKafkaErrorCode::TopicAlreadyExists
        {
            return Err(failed(KafkaError::AdminOp(code)));
        }
        let until = Instant::now() + settings.request_timeout;
        while self.describe(name).await?.is_none() {
            if Instant::now() >= until {
                return Err(failed(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reassignment_names_every_partition() {
        let command = reassign("k:9092", "clicks", 2);
        assert_eq!(
            command,
            r#"echo '{"version":1,"partitions":[{"topic":"clicks","partition":0,"replicas":[1,2,3]},{"topic":"clicks","partition":1,"replicas":[2,3,1]}]}' >replicas.json && kafka-reassign-partitions.sh --bootstrap-server k:9092 --reassignment-json-file replicas.json --execute  # with the ids of your brokers"#
        );
    }
}
