//! What a topic is, and which segments it has: a small file, replaced as a whole.
//!
//! The files of a folder alone could not tell that the newest or the oldest segment was lost. The manifest says which
//! must be there: it is written after a new segment was made and before anything in it is acknowledged, and before an
//! old one is removed.

use super::segment::damaged;
use crate::checked::{self, CheckedError};
use crate::{LogError, Topic};
use click::{LogId, Partition};
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "topic";
const VERSION: u32 = 1;

/// A file of [`checked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    pub log_id: LogId,
    pub partitions: Partition,
    /// Segments below are no longer the topic's; their files may still be there.
    pub first_segment: u64,
    /// Segments up to this one must be there. The one after it may be, if the process died while it was made.
    pub last_segment: u64,
    /// Bytes of the last segment that are known to be durable: a cut below is not that of a torn write.
    pub durable_bytes: u64,
}

impl Manifest {
    pub fn new(topic: &Topic) -> Self {
        Manifest {
            version: VERSION,
            log_id: topic.log_id,
            partitions: topic.partitions,
            first_segment: 0,
            last_segment: 0,
            durable_bytes: 0,
        }
    }

    pub fn read(dir: &Path) -> Result<Manifest, LogError> {
        let path = dir.join(FILE);
        let wrong = |what: String| damaged(&path, 0, what);
        let manifest: Manifest = checked::read(&path).map_err(|error| match error {
            CheckedError::File(error) => error.into(),
            CheckedError::Damaged(what) => wrong(what),
        })?;
        if manifest.version != VERSION {
            return Err(wrong(format!("it is of version {}, not {VERSION}", manifest.version)));
        }
        Ok(manifest)
    }

    pub fn write(&self, dir: &Path) -> Result<(), LogError> {
        Ok(checked::write(&dir.join(FILE), self)?)
    }
}
