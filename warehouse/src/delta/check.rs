//! Finds and names what is damaged when a table is opened: an entry of its log, its last checkpoint or a data file that
//! is gone, has another length, or is not what was written. Of the data files the newest are read whole, as many as do
//! not delay a start; the bytes of all others are compared when a report or a closing reads them.

use super::sums;
use super::tables::Name;
use crate::error::{Error, Result};
use deltalake_core::DeltaTable;
use futures::TryStreamExt;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use tally_log::durable;

/// Bytes of a table's data files that are read at a start: with ten tables a third of a second or less.
const READ_BYTES_MAX: u64 = 32 << 20;

/// Removes files that were not in place yet when a process died, and makes those that were durable: a commit whose link
/// was made, and whose folder was not synced, is visible after a kill -9 and could still be gone after a power cut. What
/// is read from here on is built upon.
pub(super) fn sweep(dir: &Path) -> Result<()> {
    durable::remove_leftovers(dir)?;
    durable::sync_dir(dir)?;
    for path in durable::list(dir)? {
        if path.is_dir() {
            sweep(&path)?;
        }
    }
    Ok(())
}

/// Removes checksums whose file is not there. Only once no file is known to be missing: who brings one back needs its
/// checksums.
pub(super) fn sweep_sums(dir: &Path) -> Result<()> {
    let paths = durable::list(dir)?;
    sums::sweep(&paths)?;
    for path in paths.iter().filter(|path| path.is_dir()) {
        sweep_sums(path)?;
    }
    Ok(())
}

fn damaged(file: PathBuf, what: impl Into<String>) -> Error {
    Error::Damaged { file, what: what.into() }
}

/// Version of an entry of a table's log, and whether it is a checkpoint, by its name.
fn version_of(path: &Path) -> Option<(u64, bool)> {
    let name = path.file_name()?.to_str()?;
    let (digits, rest) = name.split_at_checked(20)?;
    let is_checkpoint = rest.starts_with(".checkpoint") && rest.ends_with(".parquet");
    (is_checkpoint || rest == ".json").then_some((digits.parse().ok()?, is_checkpoint))
}

/// The last checkpoint and every entry since have to be there, as they were written.
pub(super) fn log(table: &Path) -> Result<()> {
    let dir = table.join("_delta_log");
    if !dir.is_dir() {
        return Ok(());
    }
    let files: Vec<(PathBuf, u64, bool)> = durable::list(&dir)?
        .into_iter()
        .filter_map(|path| version_of(&path).map(|(version, is_checkpoint)| (path, version, is_checkpoint)))
        .collect();
    let checkpoint = files.iter().filter(|(_, _, is_checkpoint)| *is_checkpoint).map(|(_, version, _)| *version).max();
    let mut next = checkpoint.map_or(0, |version| version + 1);
    let hint = dir.join("_last_checkpoint");
    if hint.try_exists().map_err(|error| damaged(hint.clone(), error.to_string()))? {
        sums::Reader::open(&hint)?.verify()?;
    }
    for (path, version, is_checkpoint) in files {
        if is_checkpoint {
            if Some(version) == checkpoint {
                sums::Reader::open(&path)?.verify()?;
            }
            continue;
        }
        if version < next {
            continue;
        }
        if version > next {
            return Err(damaged(dir.join(format!("{next:020}.json")), format!("it is missing, {version} is there")));
        }
        sums::Reader::open(&path)?.verify()?;
        next += 1;
    }
    Ok(())
}

/// Every data file has to be there, as long as it was, with its sums; the newest are read.
pub(super) async fn files(dir: &Path, delta: &DeltaTable, name: Name) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Error::Table { table: name.as_str(), what: error.to_string() };
    let log_store = delta.log_store();
    let snapshot = delta.snapshot().map_err(|error| failed(&error))?.snapshot();
    let files: Vec<(String, i64)> = snapshot
        .file_views(&*log_store, None)
        .map_ok(|file| (file.object_store_path().to_string(), file.size()))
        .try_collect()
        .await
        .map_err(|error| failed(&error))?;
    let dir = dir.to_path_buf();
    let look = move || {
        let mut newest_first = Vec::with_capacity(files.len());
        for (path, size) in files {
            let file = dir.join(&path);
            let found = match std::fs::metadata(&file) {
                Ok(found) if found.len() as i64 == size => found,
                Ok(found) => return Err(damaged(file, format!("it has {} bytes instead of {size}", found.len()))),
                Err(error) => return Err(damaged(file, error.to_string())),
            };
            let sums = sums::path_of(&file);
            if let Err(error) = std::fs::metadata(&sums) {
                return Err(damaged(sums, error.to_string()));
            }
            let written = found.modified().map_err(|error| damaged(file.clone(), error.to_string()))?;
            newest_first.push((Reverse(written), file, found.len()));
        }
        newest_first.sort_unstable();
        let mut left = READ_BYTES_MAX;
        for (_, file, bytes) in newest_first {
            let Some(rest) = left.checked_sub(bytes) else { break };
            left = rest;
            sums::Reader::open(&file)?.verify()?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(look).await.map_err(|error| Error::Died(error.to_string()))?
}
