//! Asks about topics and offsets.

use super::Context;
use super::describe::{self, Described};
use super::statistics::Watch;
use crate::{LogError, Topic};
use click::{Millis, Offset, Partition};
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it is waited before a question is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How long a description is waited for at most before it is found out anew whom to ask for it, see [`Query::describe`].
const DESCRIPTION_WAIT: Duration = Duration::from_secs(1);

impl ConsumerContext for Watch {}

/// Asks brokers about topics and offsets. Every call blocks for up to the request timeout.
pub struct Query {
    context: Arc<Context>,
    client: BaseConsumer<Watch>,
}

impl Query {
    pub fn new(context: Arc<Context>) -> Result<Self, LogError> {
        let watch = Watch::new(context.statistics.clone());
        let client = BaseConsumer::from_config_and_context(&context.settings.query(), watch);
        Ok(Query { client: client.map_err(super::settings::refused)?, context })
    }

    fn wait(&self) -> Duration {
        self.context.settings.request_timeout
    }

    /// Takes what librdkafka has to tell, so that it does not pile up.
    pub fn serve(&self) {
        serve(&self.client);
    }

    /// The topic as it is now, with the number of partitions that the settings say.
    pub fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let described = self.describe(name).map_err(|code| match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                LogError::UnknownTopic(name.to_owned())
            }
            code => self.context.failed(format!("describe topic {name:?}"), code),
        })?;
        let (expected, found) = (self.context.settings.partitions, described.partitions);
        if found != expected {
            return Err(LogError::PartitionsChanged { topic: name.to_owned(), expected, found });
        }
        Ok(Topic { name: name.to_owned(), log_id: described.log_id, partitions: found })
    }

    /// librdkafka asks the controller, and in a cluster without ZooKeeper any broker may be called so. One that died stays it
    /// until librdkafka hears of the cluster again, which it asks for every five minutes, and nothing is handed over to a
    /// consumer meanwhile. So it is asked for here: any broker that lives answers that.
    fn describe(&self, name: &str) -> Result<Described, RDKafkaErrorCode> {
        use RDKafkaErrorCode as Code;
        let until = Instant::now() + self.wait();
        let patience = DESCRIPTION_WAIT.min(self.wait() / 4);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let described = describe::describe(self.client.client(), name, left.min(patience));
            let silent = matches!(
                described,
                Err(Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure)
            );
            if silent {
                // With it comes why no broker could be reached.
                self.serve();
            }
            if !silent || left <= patience {
                return described;
            }
            if let Err(error) = self.client.fetch_metadata(None, patience) {
                tracing::debug!(%error, "no broker tells of the cluster");
                std::thread::sleep(ASK_AGAIN);
            }
        }
    }

    /// Asks something about a topic, and then whether it was still the same one.
    pub fn same<T>(&self, topic: &Topic, ask: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
        let answer = ask();
        same(topic, &self.topic(&topic.name)?)?;
        answer
    }

    pub fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        topic.partition(partition)?;
        let held = self.patiently(|| self.client.fetch_watermarks(&topic.name, partition, self.wait()));
        let (start, end) = held.map_err(|error| {
            self.context.failed(format!("tell what topic {:?} partition {partition} holds", topic.name), error)
        })?;
        Ok(start..end)
    }

    pub fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        // First, so that a record that comes in between is not taken for older than `at`.
        let end = self.held(topic, partition)?.end;
        // Kafka takes negative times for something else; no record is older than its epoch.
        let time = rdkafka::Offset::Offset(at.get().max(0));
        let found = self.patiently(|| {
            let mut times = TopicPartitionList::new();
            times.add_partition_offset(&topic.name, partition, time)?;
            let found = self.client.offsets_for_times(times, self.wait())?;
            let found = found.find_partition(&topic.name, partition).ok_or(KafkaError::NoMessageReceived)?;
            found.error().map(|()| found.offset())
        });
        let found = found.map_err(|error| {
            self.context.failed(format!("find {at} in topic {:?} partition {partition}", topic.name), error)
        })?;
        Ok(match found {
            rdkafka::Offset::Offset(offset) => offset,
            _ => end,
        })
    }

    /// Asks again for a while when a leader is being found: of a topic that was just made, or of a broker that died.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
        use RDKafkaErrorCode as Code;
        let until = Instant::now() + self.wait();
        loop {
            let answer = ask();
            let transient = matches!(
                answer.as_ref().err().and_then(KafkaError::rdkafka_error_code),
                Some(
                    Code::NotLeaderForPartition
                        | Code::LeaderNotAvailable
                        | Code::OffsetNotAvailable
                        | Code::FencedLeaderEpoch
                        | Code::UnknownLeaderEpoch
                        | Code::UnknownTopicOrPartition
                        | Code::BrokerTransportFailure
                )
            );
            if !transient || Instant::now() >= until {
                return answer;
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

/// Takes what librdkafka has to tell of itself. Without a wait, as short as it may be, a poll ends after the first line of its
/// log, and what comes behind it, such as why a connection failed, stays where it is.
pub fn serve(client: &BaseConsumer<Watch>) {
    while client.poll(Duration::from_millis(1)).is_some() {}
}

/// Whether a topic that was known is still the one that a broker describes.
pub fn same(known: &Topic, now: &Topic) -> Result<(), LogError> {
    if known.log_id != now.log_id {
        let (topic, expected, found) = (known.name.clone(), known.log_id, now.log_id);
        return Err(LogError::TopicReplaced { topic, expected, found });
    }
    if known.partitions != now.partitions {
        let (topic, expected, found) = (known.name.clone(), known.partitions, now.partitions);
        return Err(LogError::PartitionsChanged { topic, expected, found });
    }
    Ok(())
}
