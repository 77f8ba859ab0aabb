//! The log: topics of records, in partitions, kept in order and durable before they are acknowledged.
//!
//! # Layout
//!
//! * [`Log`], [`Consumer`]: the one trait that everything else is written against
//! * [`partitioner`]: which partition a key belongs to, the same on every backend and for ever
//! * [`local`]: the backend for one machine
//! * [`kafka`]: the backend for a cluster
//! * [`durable`]: files that are on disk when a call returns

pub mod durable;
pub mod kafka;
pub mod local;
pub mod partitioner;

use async_trait::async_trait;
use bytes::Bytes;
use click::{LogId, Millis, Offset, Offsets, Partition};
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// Most bytes of a record's value, on every backend.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// A topic, as a log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    /// Changes when the topic is made anew.
    pub log_id: LogId,
    /// Fixed for the topic's life.
    pub partitions: Partition,
}

impl Topic {
    /// The partition as an index, if the topic has one of this number.
    fn partition(&self, partition: Partition) -> Result<usize, LogError> {
        let Topic { name, partitions, .. } = self;
        usize::try_from(partition).ok().filter(|_| partition < *partitions).ok_or_else(|| LogError::UnknownPartition {
            topic: name.clone(),
            partition,
            partitions: *partitions,
        })
    }
}

/// One record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: Partition,
    pub offset: Offset,
    /// When the log took it. On one machine it never goes back within a partition. Kafka cannot promise that: each leader
    /// writes what its own clock says, so it goes back when the next one's is behind, or when a clock is set. Whoever relies
    /// on the order of append times allows for as much as the brokers' clocks may differ, and refuses more.
    pub appended_at: Millis,
    pub value: Bytes,
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub partition: Partition,
    pub offset: Offset,
    pub appended_at: Millis,
}

/// Resolves when the record is durable, or when it is known that it may not be.
pub type Acknowledgement = Pin<Box<dyn Future<Output = Result<Appended, LogError>> + Send>>;

/// What can go wrong with a log. Each says where.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("topic {0:?} does not exist")]
    UnknownTopic(String),
    #[error("topic {topic:?} has {partitions} partitions, and no partition {partition}")]
    UnknownPartition { topic: String, partition: Partition, partitions: Partition },
    #[error("topic {topic:?} partition {partition}: offset {offset} is not in the log, which holds {} to {}", .held.start, .held.end)]
    OutOfRange { topic: String, partition: Partition, offset: Offset, held: Range<Offset> },
    #[error("a record of {bytes} bytes is larger than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Something on disk is not what was written. Never skipped, never guessed at.
    #[error("{} is damaged at byte {at}: {what}", .file.display())]
    Damaged { file: PathBuf, at: u64, what: String },
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: std::sync::Arc<std::io::Error> },
    /// After a failed write or fsync nothing more is taken until a restart has looked at what is on disk.
    #[error("the log takes nothing more since an earlier failure: {0}")]
    Stopped(String),
    #[error("another process uses {}", .0.display())]
    InUse(PathBuf),
    /// The positions that were known are in a topic that is gone: nothing of the new one may be taken for theirs.
    #[error("topic {topic:?} was made anew: its id is {found}, and what is known of it is of id {expected}")]
    TopicReplaced { topic: String, expected: LogId, found: LogId },
    /// Keys would move to other partitions, and records in new partitions would not be read.
    #[error(
        "topic {topic:?} has {found} partitions, not {expected}: a topic keeps its number of partitions for its whole life; `tally topics` \
         says what can be done"
    )]
    PartitionsChanged { topic: String, expected: Partition, found: Partition },
    /// Compaction, transactions or a loss in the server left a hole: what was there cannot be known.
    #[error(
        "topic {topic:?} partition {partition}: offset {found} came where {expected} should follow; what is between is missing"
    )]
    Missing { topic: String, partition: Partition, expected: Offset, found: Offset },
    #[error(
        "topic {topic:?} does not carry the time of appending: set message.timestamp.type=LogAppendTime, as `tally topics` says"
    )]
    NotAppendTime { topic: String },
    /// There is more, and it does not come.
    #[error("topic {topic:?} is read to {next:?} and ends at {ends:?}, and nothing came for {waited:?}")]
    Silent { topic: String, next: Offsets, ends: Offsets, waited: Duration },
    #[error("Kafka setting {name} = {given:?} is not valid: {allowed}")]
    Setting { name: String, given: String, allowed: String },
    /// The server did not do what was asked, or its answer did not come.
    #[error("Kafka at {brokers}: cannot {doing}: {error}")]
    Kafka { brokers: std::sync::Arc<str>, doing: String, error: String },
}

impl LogError {
    /// Adds the path to an I/O error, which does not name it.
    pub fn io(path: impl Into<PathBuf>, error: std::io::Error) -> Self {
        LogError::Io { path: path.into(), error: std::sync::Arc::new(error) }
    }
}

/// A log. Appends are batched behind the caller's back, many in flight at once.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// The topic of this name.
    async fn topic(&self, name: &str) -> Result<Topic, LogError>;

    /// Hands a record over, in the order of the calls within a partition. It is durable when the answer resolves
    /// with `Ok`; with an error, or when the answer is dropped, it may or may not have been taken.
    /// Waits for room when too much is in flight.
    ///
    /// The partition is the caller's choice, with [`partitioner::partition_of`] the key's own. The key is for other
    /// readers of a Kafka topic, which keeps it; the local log does not.
    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        key: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError>;

    /// Reads every partition named in `start` from its offset on, and follows it.
    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError>;

    /// The first offset that is held, and the one after the last durable record.
    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError>;

    /// The first offset that was appended at or after `at`; the end of the log if there is none.
    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError>;
}

/// The offset after the last durable record of every partition of a topic.
///
/// # Errors
/// If the log does not say.
pub async fn ends(log: &dyn Log, topic: &Topic) -> Result<Offsets, LogError> {
    let mut ends = Offsets::default();
    for partition in 0..topic.partitions {
        ends.set(partition, log.held(topic, partition).await?.end);
    }
    Ok(ends)
}

/// Reads a topic.
#[async_trait]
pub trait Consumer: Send {
    /// The next records, in order within each partition, at most `records_max`. Waits until there is at least one or
    /// `wait` has passed; then the answer is empty. Dropping the future loses no record.
    async fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<Record>, LogError>;

    /// The next offset of every partition that will be read.
    fn next(&self) -> Offsets;
}
