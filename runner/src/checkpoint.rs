//! Where a pipeline goes on after a restart: one checksummed file a pipeline, written aside and renamed.
//!
//! Layout: a magic word, xxh3 of the rest, length of the header, the header as JSON, one Arrow IPC stream for the
//! open windows of each window step.

use crate::error::RunError;
use click::{LogId, Offsets, Partition};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"tallychk";

/// State of a pipeline between two batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub header: Header,
    /// Open windows of every window step, in the order of the steps.
    pub windows: Vec<RecordBatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub version: i64,
    pub log_id: LogId,
    /// The next record to read.
    pub next: Offsets,
    /// Watermarks of the partitions, in nanoseconds.
    pub watermarks: BTreeMap<Partition, i64>,
    /// Lengths of the windows' streams in bytes.
    windows: Vec<usize>,
}

impl Header {
    pub fn new(version: i64, log_id: LogId, next: Offsets, watermarks: BTreeMap<Partition, i64>) -> Self {
        Header { version, log_id, next, watermarks, windows: Vec::new() }
    }
}

impl Checkpoint {
    /// Writes the file. When this returns it is on disk, whole; before, the old one is.
    pub fn write(mut self, path: &Path) -> Result<(), RunError> {
        let failed = |what: String| RunError::Checkpoint { path: path.to_path_buf(), what };
        let mut streams = Vec::new();
        self.header.windows.clear();
        for batch in &self.windows {
            let before = streams.len();
            let mut writer =
                StreamWriter::try_new(&mut streams, batch.schema_ref()).map_err(|e| failed(e.to_string()))?;
            writer.write(batch).and_then(|()| writer.finish()).map_err(|e| failed(e.to_string()))?;
            drop(writer);
            self.header.windows.push(streams.len() - before);
        }
        let header = serde_json::to_vec(&self.header).map_err(|e| failed(e.to_string()))?;
        let mut body = (header.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(&header);
        body.extend_from_slice(&streams);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&xxh3_64(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        tally_log::durable::write_aside(path, &bytes).map_err(|e| failed(e.to_string()))
    }

    /// Reads the file; `None` when there is none. A damaged one is an error, never taken for none.
    pub fn read(path: &Path) -> Result<Option<Checkpoint>, RunError> {
        let failed = |what: &str| RunError::Checkpoint { path: path.to_path_buf(), what: what.to_string() };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&e.to_string())),
        };
        let damaged = || failed("is damaged: its checksum or form is wrong");
        let body = bytes.strip_prefix(MAGIC.as_slice()).ok_or_else(damaged)?;
        let (sum, body) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
        if u64::from_le_bytes(*sum) != xxh3_64(body) {
            return Err(damaged());
        }
        let (length, rest) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (header, mut streams) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
        let header: Header = serde_json::from_slice(header).map_err(|e| failed(&e.to_string()))?;
        let mut windows = Vec::new();
        for length in &header.windows {
            let (stream, rest) = streams.split_at_checked(*length).ok_or_else(damaged)?;
            streams = rest;
            let mut reader = StreamReader::try_new(stream, None).map_err(|e| failed(&e.to_string()))?;
            let batch = reader.next().ok_or_else(damaged)?.map_err(|e| failed(&e.to_string()))?;
            windows.push(batch);
        }
        Ok(Some(Checkpoint { header, windows }))
    }
}
