//! What a deployment needs of the rest of the system.

use async_trait::async_trait;
use click::{LogId, Millis, Offsets, Partition};
use std::collections::BTreeMap;

/// Why the rest of the system could not do something, in its own words.
pub type ClusterError = Box<dyn std::error::Error + Send + Sync>;

/// The topic `clicks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Names this life of the topic.
    pub log_id: LogId,
    pub partitions: Partition,
}

/// A recorded version of the pipelines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// From 1.
    pub version: i64,
    /// Of SQL, functions and the settings that counts depend on.
    pub digest: String,
    /// The life of the topic that `start` is about.
    pub log_id: LogId,
    /// What lies before these is final by older versions; this one counts from here on.
    pub start: Offsets,
}

/// How far the rows of a version have come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// For each partition of which `raw_clicks` has a row of this version: the offset after the last one.
    pub rows: Offsets,
    /// When that row was written.
    pub written: BTreeMap<Partition, Millis>,
    /// For each partition of `clicks`: the offset that the next record will have.
    pub ends: Offsets,
}

/// The warehouse, the claims and Kafka, as a deployment sees them. Every method can be asked again for what was done.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The topic that pipelines read.
    async fn topic(&self) -> Result<Topic, ClusterError>;

    /// The newest recorded version; `None` before the first.
    async fn current(&self) -> Result<Option<Deployment>, ClusterError>;

    /// The repair that began and did not end, if there is one: its name, for people. Somebody may be at it.
    async fn repair(&self) -> Result<Option<String>, ClusterError>;

    /// Records this version, which starts where the last closing ended. From here on rows of older versions at or after
    /// its start are ignored. If another version comes next nothing is recorded: somebody else deploys at the same time.
    ///
    /// What began and stands in its way, a repair or a closing that cannot be carried out, is given up if that is allowed;
    /// else nothing is recorded.
    async fn record(&self, digest: &str, version: i64, give_up: bool) -> Result<Deployment, ClusterError>;

    /// Tells the claims of version and start: claims of older versions from there on are void, and older versions get
    /// no more of them.
    async fn announce(&self, deployment: &Deployment) -> Result<(), ClusterError>;

    /// Commits offsets of topic `clicks` for a consumer group that nobody is a member of. `start` has every partition.
    async fn commit(&self, group: &str, start: &Offsets) -> Result<(), ClusterError>;

    /// Looks how far the rows of a version have come.
    async fn progress(&self, deployment: &Deployment) -> Result<Progress, ClusterError>;
}
