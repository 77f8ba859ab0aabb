//! Clicks that waited in a spool for too long: files of JSON lines, one click a line, that nothing sends by itself.
//!
//! A file is written as a whole and never changed. Each line has a checksum of its click, since what is sent of it counts
//! money: `{"xxh3":"0123456789abcdef","kept":{…}}`. What was done with its clicks, by `tally spool send`, is told by its
//! move into the folder `settled`, where it stays.

use bytes::Bytes;
use click::{Click, Event, Millis, Partition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tally_log::durable::{self, checked};

/// The folder of these files in a spool's, and that of those that need nothing more.
pub(super) const ASIDE: &str = "aside";
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
    #[error("{} line {line} is damaged: {what}", .file.display())]
    Damaged { file: PathBuf, line: usize, what: String },
    #[error("what is to be kept aside is no click: {0}")]
    NoClick(serde_json::Error),
}

const BEFORE_SUM: &str = r#"{"xxh3":""#;
const SUM_LEN: usize = 16;
const AFTER_SUM: &str = r#"","kept":"#;

impl Kept {
    /// Its line in a file, without the line break.
    ///
    /// # Errors
    /// If it cannot be written as JSON, which does not happen.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let kept = serde_json::to_string(self)?;
        Ok(format!("{BEFORE_SUM}{}{AFTER_SUM}{kept}}}", checked::sum(&kept)))
    }

    /// The click of a line, or what is wrong with it. The text is taken apart by hand: the checksum is of every byte of it.
    fn parse(line: &[u8]) -> Result<Kept, String> {
        let other = || format!("it is not {BEFORE_SUM}checksum{AFTER_SUM}click}}");
        let text = std::str::from_utf8(line).map_err(|_| other())?;
        let rest = text.strip_prefix(BEFORE_SUM).and_then(|rest| rest.split_at_checked(SUM_LEN));
        let (sum, rest) = rest.ok_or_else(other)?;
        let kept = rest.strip_prefix(AFTER_SUM).and_then(|rest| rest.strip_suffix('}')).ok_or_else(other)?;
        if checked::sum(kept) != sum {
            return Err(checked::Wrong::Checksum.to_string());
        }
        serde_json::from_str(kept).map_err(|error| error.to_string())
    }
}

/// The folder of them.
pub struct Aside {
    dir: PathBuf,
    /// How many clicks each file has. None is ever changed, so each is read once. Whoever has this may wait for the disk.
    files: Mutex<BTreeMap<PathBuf, u64>>,
    /// All of them, which nobody waits for.
    records: AtomicU64,
}

impl Aside {
    /// Opens the folder, made if there is none, and counts what is in it.
    pub(super) fn open(dir: &Path) -> Result<Aside, durable::FileError> {
        durable::create_dir_all(&dir.join(SETTLED))?;
        durable::remove_leftovers(dir)?;
        let aside = Aside { dir: dir.into(), files: Mutex::default(), records: AtomicU64::new(0) };
        aside.count()?;
        let records = aside.records();
        if records > 0 {
            tracing::error!(records, dir = %dir.display(), "clicks are kept aside: see `tally spool`");
        }
        Ok(aside)
    }

    /// As many as there were at the last look.
    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Looks what is in the folder now: `tally spool send`, a process of its own, puts files away. It waits for the disk.
    pub(super) fn count(&self) -> Result<(), durable::FileError> {
        let mut counted = self.counted();
        let mut there = BTreeMap::new();
        for file in files(&self.dir)? {
            let records = match counted.get(&file) {
                Some(records) => *records,
                None => match durable::read(&file) {
                    // Put away meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    bytes => bytes?.iter().filter(|byte| **byte == b'\n').count() as u64,
                },
            };
            there.insert(file, records);
        }
        *counted = there;
        self.add_up(&counted);
        Ok(())
    }

    fn counted(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        // It is changed in one step, so a panic elsewhere leaves it whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_up(&self, counted: &BTreeMap<PathBuf, u64>) {
        self.records.store(counted.values().sum(), Ordering::Relaxed);
    }

    /// Keeps clicks. With `Ok` they are durable here. Done twice it is there twice, under one click id.
    pub(super) fn keep(&self, clicks: &[(Partition, Millis, Bytes)], reason: &str) -> Result<(), AsideError> {
        let Some(first) = clicks.first() else { return Ok(()) };
        let path = self.dir.join(format!("{}-{}.jsonl", first.1.get(), uuid::Uuid::new_v4().simple()));
        let mut text = String::new();
        for (partition, spooled_at, value) in clicks {
            let event = match serde_json::from_slice(value) {
                Ok(Event::Click(click)) => Ok(click),
                Ok(_) => Err(serde::de::Error::custom("it is of another kind")),
                Err(error) => Err(error),
            };
            let event = event.map_err(AsideError::NoClick)?;
            let kept = Kept { partition: *partition, spooled_at: *spooled_at, reason: reason.into(), event };
            text += &kept.line().map_err(AsideError::NoClick)?;
            text.push('\n');
        }
        durable::create_new(&path, text.as_bytes())?;
        tracing::error!(clicks = clicks.len(), reason, file = %path.display(), "clicks are kept aside: see `tally spool`");
        let mut counted = self.counted();
        counted.insert(path, clicks.len() as u64);
        self.add_up(&counted);
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
/// Names the line that is not as it was written. Nothing is taken from the files then.
pub fn list(dir: &Path) -> Result<Vec<(PathBuf, Vec<Kept>)>, AsideError> {
    let dir = dir.join(ASIDE);
    let mut all = Vec::new();
    for file in files(&dir)? {
        let bytes = durable::read(&file)?;
        let mut kept = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let damaged = |what| AsideError::Damaged { file: file.clone(), line: number + 1, what };
            kept.push(Kept::parse(line).map_err(damaged)?);
        }
        all.push((file, kept));
    }
    Ok(all)
}

/// Where files go whose clicks need nothing more, in the spool's folder `dir`.
pub fn settled(dir: &Path) -> PathBuf {
    dir.join(ASIDE).join(SETTLED)
}

/// Puts a file away, all of whose clicks are in the log, or will never have to be. It has its new name, durable, before it
/// loses the old one: a rename from one folder to another is durable when both are synced, in no order that is promised. The
/// loss of the old name need not be durable: a file that comes back is gone through again, and its clicks are found.
///
/// # Errors
/// If it cannot be moved.
pub fn settle(file: &Path) -> Result<(), durable::FileError> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no file of a spool");
        return Err(durable::FileError { doing: "settle", path: file.into(), error });
    };
    durable::link(file, &dir.join(SETTLED).join(name))?;
    durable::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_puts_away_is_not_counted_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let aside = Aside::open(dir.path()).unwrap();
        let keep = |name: &str, lines: usize| {
            let file = dir.path().join(name);
            durable::create_new(&file, "a line\n".repeat(lines).as_bytes()).unwrap();
            file
        };
        let check = |aside: &Aside, expected| {
            aside.count().unwrap();
            assert_eq!(aside.records(), expected);
        };
        check(&aside, 0);
        let (first, second) = (keep("1-a.jsonl", 2), keep("2-b.jsonl", 3));
        keep("no clicks", 9);
        check(&aside, 5);
        settle(&first).unwrap();
        check(&aside, 3);
        check(&Aside::open(dir.path()).unwrap(), 3);
        settle(&second).unwrap();
        check(&aside, 0);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(aside.count().is_err(), "a folder that is gone has not none");
    }
}
