//! Finds and names what is damaged when a table is opened: an entry of its log that is torn, gone or not JSON, a data
//! file that is gone or has another length. Bytes that a disk changed inside a data file are not looked for here; an
//! audit recounts them.

use super::tables::Name;
use crate::error::{Error, Result};
use deltalake_core::DeltaTable;
use futures::TryStreamExt;
use std::path::{Path, PathBuf};
use tally_log::durable;

/// Removes files that were not in place yet when a process died, and makes those that were durable: a commit whose link
/// was made, and whose folder was not synced, is visible after a kill -9 and could still be gone after a power cut. What
/// is read from here on is built upon.
pub(super) fn sweep(dir: &Path) -> Result<()> {
    durable::remove_leftovers(dir)?;
    durable::sync_dir(dir)?;
    if let Some(parent) = dir.parent() {
        durable::sync_dir(parent)?;
    }
    for path in durable::list(dir)? {
        if path.is_dir() {
            sweep(&path)?;
        }
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

/// Every entry since the last checkpoint has to be there, and to be JSON.
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
    for (path, version, is_checkpoint) in files {
        if is_checkpoint || version < next {
            continue;
        }
        if version > next {
            return Err(damaged(dir.join(format!("{next:020}.json")), format!("it is missing, {version} is there")));
        }
        let bytes = durable::read(&path)?;
        let mut actions = 0;
        for (index, line) in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            let action: serde_json::Value = serde_json::from_slice(line)
                .map_err(|error| damaged(path.clone(), format!("line {} is not JSON: {error}", index + 1)))?;
            if !action.is_object() {
                return Err(damaged(path, format!("line {} is no action", index + 1)));
            }
            actions += 1;
        }
        if actions == 0 {
            return Err(damaged(path, "it is empty"));
        }
        next += 1;
    }
    Ok(())
}

/// Every data file has to be there, as long as it was.
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
        for (path, size) in files {
            let file = dir.join(&path);
            match std::fs::metadata(&file) {
                Ok(found) if found.len() as i64 == size => {}
                Ok(found) => return Err(damaged(file, format!("it has {} bytes instead of {size}", found.len()))),
                Err(error) => return Err(damaged(file, error.to_string())),
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(look).await.map_err(|error| Error::Died(error.to_string()))?
}
