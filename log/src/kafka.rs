//! The log on Apache Kafka, or on what speaks its protocol.
//!
//! # Layout
//!
//! * [`Settings`]: how Kafka is reached and used
//! * [`topics`]: makes topics, or says what is wrong with them
//! * [`groups`]: where others begin to read
//! * `describe`: what a topic is at this moment
//! * `query`: questions about topics and offsets
//! * `known`: the topics in use, which are looked at again and again
//! * `producer`, `consumer`: appending and reading
//! * `statistics`: what librdkafka counts, as [`Metric`]s
//!
//! A topic's id is the id of the log: Kafka gives a topic that is made anew another one. librdkafka itself goes on
//! reading and writing in the new topic as if it were the old one, so both sides look at the id themselves.

mod consumer;
mod describe;
pub mod groups;
mod known;
mod producer;
mod query;
mod settings;
mod statistics;
pub mod topics;

pub use settings::Settings;
pub use statistics::{Kind, Metric};

use crate::{Acknowledgement, Consumer, Log, LogError, Topic};
use async_trait::async_trait;
use bytes::Bytes;
use click::{Millis, Offset, Offsets, Partition};
use consumer::KafkaConsumer;
use known::Topics;
use producer::{Producer, Target};
use query::Query;
use statistics::Collected;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

/// A log on Kafka. Topics are not made when they are first asked for: see [`topics`].
///
/// Dropping it waits for what is in flight, for a few seconds at most.
pub struct KafkaLog {
    context: Arc<Context>,
    producer: Producer,
    query: Arc<Query>,
    topics: Topics,
}

/// What all parts of a log share.
struct Context {
    settings: Settings,
    servers: Arc<str>,
    statistics: Arc<Collected>,
}

impl Context {
    fn new(settings: Settings) -> Result<Self, LogError> {
        settings.check()?;
        let servers = settings.servers();
        Ok(Context { settings, servers, statistics: Arc::default() })
    }

    fn failed(&self, doing: impl Into<String>, error: impl Display) -> LogError {
        let error = match self.statistics.trouble() {
            Some(trouble) => format!("{error}; {trouble}"),
            None => error.to_string(),
        };
        LogError::Kafka { brokers: self.servers.clone(), doing: doing.into(), error }
    }
}

impl KafkaLog {
    /// A log that connects in the background, and again whenever it must: a broker that cannot be reached shows in the
    /// answers. Fails only for settings that are not possible.
    pub fn new(settings: Settings) -> Result<KafkaLog, LogError> {
        let context = Arc::new(Context::new(settings)?);
        let query = Arc::new(Query::new(context.clone())?);
        let topics = Topics::new(context.clone(), query.clone())?;
        Ok(KafkaLog { producer: Producer::new(context.clone())?, context, query, topics })
    }

    /// librdkafka's statistics as they were at the end of the last `statistics_every`.
    pub fn statistics(&self) -> Vec<Metric> {
        self.context.statistics.metrics()
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.topics.fresh(name).await
    }

    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        key: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        let known = self.topics.known(topic).await?;
        let room = known.rooms[topic.partition(partition)?].clone();
        self.producer.append(Target { topic: known.name.clone(), partition, room }, key, &value).await
    }

    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        let (context, query, topic, start) = (self.context.clone(), self.query.clone(), topic.clone(), start.clone());
        Ok(Box::new(blocking(move || KafkaConsumer::new(context, query, topic, start)).await?))
    }

    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        let (query, topic) = (self.query.clone(), topic.clone());
        blocking(move || query.same(&topic, || query.held(&topic, partition))).await
    }

    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        let (query, topic) = (self.query.clone(), topic.clone());
        blocking(move || query.same(&topic, || query.offset_at(&topic, partition, at))).await
    }
}

/// Does what waits for a broker away from the threads that serve everything else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| LogError::Stopped(format!("a question to Kafka did not end: {error}")))?
}
