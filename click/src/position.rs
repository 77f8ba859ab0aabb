//! Places in the log.

use crate::LogId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Number of a partition of a topic, from 0. A partition count is fixed for a topic's life.
pub type Partition = i32;

/// Place of a record in its partition, from 0, without gaps.
pub type Offset = i64;

/// Names a record of the log for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    pub log_id: LogId,
    pub partition: Partition,
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.log_id, self.partition, self.offset)
    }
}

/// One place in every partition of a topic: everything before it has been seen to, the record at it has not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(BTreeMap<Partition, Offset>);

impl Offsets {
    /// The beginning of a topic with this many partitions.
    pub fn beginning(partitions: Partition) -> Self {
        Offsets((0..partitions).map(|partition| (partition, 0)).collect())
    }

    /// The next offset of the partition; 0 for one that is not named.
    pub fn get(&self, partition: Partition) -> Offset {
        self.0.get(&partition).copied().unwrap_or(0)
    }

    pub fn set(&mut self, partition: Partition, next: Offset) {
        self.0.insert(partition, next);
    }

    pub fn iter(&self) -> impl Iterator<Item = (Partition, Offset)> + '_ {
        self.0.iter().map(|(partition, next)| (*partition, *next))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Partition, Offset)> for Offsets {
    fn from_iter<T: IntoIterator<Item = (Partition, Offset)>>(pairs: T) -> Self {
        Offsets(pairs.into_iter().collect())
    }
}
