//! Clicks that waited in a spool for too long: files of JSON lines, one click a line, that nothing sends by itself.
//!
//! A file is written as a whole and never changed. What was done with its clicks, by `tally spool send`, is told by its
//! move into the folder `settled`.

use bytes::Bytes;
use click::{Click, Event, Millis, Partition};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tally_log::durable;

const SETTLED: &str = "settled";

/// One click that is kept aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kept {
    pub partition: Partition,
    /// When it was put into the spool.
    pub spooled_at: Millis,
    /// Why it was not sent.
    pub reason: String,
    pub event: Click,
}

/// What can be wrong with a file of clicks that are kept aside.
#[derive(Debug, thiserror::Error)]
pub enum AsideError {
    #[error(transparent)]
    File(#[from] durable::FileError),
    #[error("{} line {line}: {error}", .file.display())]
    Line { file: PathBuf, line: usize, error: serde_json::Error },
}

/// The folder of them.
pub struct Aside {
    dir: PathBuf,
    records: AtomicU64,
}

impl Aside {
    /// Opens the folder, made if there is none, and counts what is in it.
    pub(super) fn open(dir: &Path) -> Result<Aside, durable::FileError> {
        durable::create_dir_all(&dir.join(SETTLED))?;
        durable::remove_leftovers(dir)?;
        let mut records = 0;
        for file in files(dir)? {
            records += durable::read(&file)?.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        if records > 0 {
            tracing::error!(records, dir = %dir.display(), "clicks are kept aside: see `tally spool`");
        }
        Ok(Aside { dir: dir.into(), records: AtomicU64::new(records) })
    }

    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Keeps clicks. With `Ok` they are durable here. Done twice it is there twice, under one click id.
    pub(super) fn keep(&self, clicks: &[(Partition, Millis, Bytes)], reason: &str) -> Result<(), AsideError> {
        let Some(first) = clicks.first() else { return Ok(()) };
        let path = self.dir.join(format!("{}-{}.jsonl", first.1.get(), uuid::Uuid::new_v4().simple()));
        let mut text = Vec::new();
        for (partition, spooled_at, value) in clicks {
            let event = match serde_json::from_slice(value) {
                Ok(Event::Click(click)) => Ok(click),
                Ok(_) => Err(serde::de::Error::custom("no click")),
                Err(error) => Err(error),
            };
            let line = |error| AsideError::Line { file: path.clone(), line: 1, error };
            let kept = Kept {
                partition: *partition,
                spooled_at: *spooled_at,
                reason: reason.into(),
                event: event.map_err(line)?,
            };
            serde_json::to_writer(&mut text, &kept).map_err(line)?;
            text.push(b'\n');
        }
        durable::create_new(&path, &text)?;
        self.records.fetch_add(clicks.len() as u64, Ordering::Relaxed);
        tracing::error!(clicks = clicks.len(), reason, file = %path.display(), "clicks are kept aside: see `tally spool`");
        Ok(())
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, durable::FileError> {
    let mut files = durable::list(dir)?;
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    Ok(files)
}

/// Every file in the spool's folder `dir` of clicks that are kept aside, with them. A redirect may be running.
///
/// # Errors
/// Names the line that is no such click.
pub fn list(dir: &Path) -> Result<Vec<(PathBuf, Vec<Kept>)>, AsideError> {
    let dir = dir.join("aside");
    let mut all = Vec::new();
    for file in files(&dir)? {
        let bytes = durable::read(&file)?;
        let mut kept = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let parsed = serde_json::from_slice(line);
            kept.push(parsed.map_err(|error| AsideError::Line { file: file.clone(), line: number + 1, error })?);
        }
        all.push((file, kept));
    }
    Ok(all)
}

/// Puts a file away, all of whose clicks are in the log, or will never have to be.
///
/// # Errors
/// If it cannot be moved.
pub fn settle(file: &Path) -> Result<(), durable::FileError> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no file of a spool");
        return Err(durable::FileError { doing: "settle", path: file.into(), error });
    };
    durable::rename(file, &dir.join(SETTLED).join(name))?;
    durable::sync_dir(dir)
}
