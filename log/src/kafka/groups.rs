//! Consumer groups of others. Tally's own consumers have no group: what reads a topic for somebody else, as Arroyo does,
//! begins where its group's offsets say.

use super::settings::refused;
use super::statistics::Watch;
use super::{Context, Settings};
use crate::{LogError, Topic};
use click::Offsets;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};

/// How long it is waited before a coordinator is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Commits, for a group that has no members, the offset of the record that it shall read next in each partition. Blocks for
/// up to the request timeout.
///
/// # Errors
///
/// A partition that is missing in `next`, a group that has members, or what the brokers say. Nothing is committed then.
pub async fn commit(settings: &Settings, group: &str, topic: &Topic, next: &Offsets) -> Result<(), LogError> {
    let (settings, group, topic, next) = (settings.clone(), group.to_owned(), topic.clone(), next.clone());
    super::blocking(move || Group::new(settings, group)?.commit(&topic, &next)).await
}

/// The offset of the record that a group reads next, in each partition that has one committed. Blocks for up to the request
/// timeout.
///
/// # Errors
///
/// What the brokers say.
pub async fn committed(settings: &Settings, group: &str, topic: &Topic) -> Result<Offsets, LogError> {
    let (settings, group, topic) = (settings.clone(), group.to_owned(), topic.clone());
    super::blocking(move || Group::new(settings, group)?.committed(&topic)).await
}

/// A group that is asked about. The client in its name never joins it.
struct Group {
    name: String,
    context: Context,
    client: BaseConsumer<Watch>,
}

impl Group {
    fn new(settings: Settings, name: String) -> Result<Group, LogError> {
        let context = Context::new(settings)?;
        let mut config = context.settings.query();
        config.set("group.id", &name);
        let client = BaseConsumer::from_config_and_context(&config, Watch::new(context.statistics.clone()));
        Ok(Group { name, client: client.map_err(refused)?, context })
    }

    /// Asks again for a while when the group's coordinator is being found: of a group that is new, or of a broker that died.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
        use RDKafkaErrorCode as Code;
        let until = Instant::now() + self.context.settings.request_timeout;
        loop {
            let answer = ask();
            let transient = matches!(
                answer.as_ref().err().and_then(KafkaError::rdkafka_error_code),
                Some(
                    Code::NotCoordinator
                        | Code::CoordinatorNotAvailable
                        | Code::CoordinatorLoadInProgress
                        | Code::WaitingForCoordinator
                        | Code::BrokerTransportFailure
                        | Code::OperationTimedOut
                )
            );
            if !transient {
                return answer;
            }
            // A client that waits for a coordinator connects to nobody by itself. With the answer, or without one, comes why no
            // broker could be reached.
            if let Err(error) = self.client.fetch_metadata(None, ASK_AGAIN) {
                tracing::debug!(%error, "no broker tells of the cluster");
            }
            super::query::serve(&self.client);
            if Instant::now() >= until {
                return answer;
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    fn committed(&self, topic: &Topic) -> Result<Offsets, LogError> {
        let doing = || format!("read offsets of topic {:?} for group {:?}", topic.name, self.name);
        self.stand(topic).map_err(|error| self.context.failed(doing(), error))
    }

    /// The offsets that stand there.
    fn stand(&self, topic: &Topic) -> Result<Offsets, KafkaError> {
        let mut asked = TopicPartitionList::new();
        for partition in 0..topic.partitions {
            asked.add_partition(&topic.name, partition);
        }
        let wait = self.context.settings.request_timeout;
        let found = self.patiently(|| self.client.committed_offsets(asked.clone(), wait))?;
        let mut committed = Offsets::default();
        for partition in 0..topic.partitions {
            let found = found.find_partition(&topic.name, partition).map(|found| found.offset());
            if let Some(Offset::Offset(next)) = found {
                committed.set(partition, next);
            }
        }
        Ok(committed)
    }

    fn commit(&self, topic: &Topic, next: &Offsets) -> Result<(), LogError> {
        let failed = |error: KafkaError| {
            let doing = format!("commit offsets of topic {:?} for group {:?}", topic.name, self.name);
            self.context.failed(doing, error)
        };
        let mut offsets = TopicPartitionList::new();
        for partition in 0..topic.partitions {
            let next = Offset::Offset(next.get(partition));
            offsets.add_partition_offset(&topic.name, partition, next).map_err(failed)?;
        }
        // A commit waits for a coordinator for as long as librdkafka likes. This question does not, and finds it.
        self.stand(topic).map_err(failed)?;
        self.patiently(|| self.client.commit(&offsets, CommitMode::Sync)).map_err(failed)?;
        // What was acknowledged is what stands there.
        let found = self.committed(topic)?;
        for (partition, next) in (0..topic.partitions).map(|partition| (partition, next.get(partition))) {
            let stands = found.iter().find(|(known, _)| *known == partition).map(|(_, offset)| offset);
            if stands != Some(next) {
                let doing = format!("commit offset {next} of partition {partition} for group {:?}", self.name);
                let stands = stands.map_or("none stands there".into(), |offset| format!("{offset} stands there"));
                return Err(self.context.failed(doing, stands));
            }
        }
        Ok(())
    }
}
