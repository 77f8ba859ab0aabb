//! What a topic is, and which segments it has: a small file, replaced as a whole.
//!
//! The files of a folder alone could not tell that the newest or the oldest segment was lost. The manifest says which
//! must be there: it is written after a new segment was made and before anything in it is acknowledged, and before an
//! old one is removed.

use super::segment::damaged;
use crate::durable::{self, checked};
use crate::{LogError, Topic};
use click::{LogId, Partition};
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "topic";
const VERSION: u32 = 1;

/// One line of JSON, and a line with its checksum.
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
        let bytes = durable::read(&path)?;
        let json = checked::line(&bytes).map_err(|what| wrong(what.to_string()))?;
        let manifest: Manifest = serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(wrong(format!("it is of version {}, not {VERSION}", manifest.version)));
        }
        Ok(manifest)
    }

    pub fn write(&self, dir: &Path) -> Result<(), LogError> {
        let path = dir.join(FILE);
        let json = serde_json::to_string(self).map_err(|error| LogError::io(&path, error.into()))?;
        Ok(durable::write_aside(&path, checked::with_sum(&json).as_bytes())?)
    }
}
