//! Small files that say what else must be there: one line of JSON, and a line with its checksum. Replaced as a whole.

use crate::durable::{self, FileError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Why such a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum CheckedError {
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not as it was written.
    #[error("{0}")]
    Damaged(String),
}

/// Reads a file that [`write`] wrote.
///
/// # Errors
/// If it cannot be read, or not every byte of it is as it was written.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CheckedError> {
    let wrong = |what: String| CheckedError::Damaged(what);
    let bytes = durable::read(path)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let (json, sum) = text.split_once('\n').ok_or_else(|| wrong("it is not two lines of text".into()))?;
    if sum.strip_suffix('\n') != Some(checksum(json.as_bytes()).as_str()) {
        return Err(wrong("its checksum is wrong".into()));
    }
    serde_json::from_str(json).map_err(|error| wrong(error.to_string()))
}

/// Writes a file: whatever happens, there is either all of the new or all of the old one. With `Ok` it is durable.
///
/// # Errors
/// Those of the disk; and if `value` is nothing that JSON can hold.
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let json = serde_json::to_string(value).map_err(|error| FileError {
        doing: "write",
        path: path.to_path_buf(),
        error: error.into(),
    })?;
    durable::write_aside(path, format!("{json}\n{}\n", checksum(json.as_bytes())).as_bytes())
}

/// xxh3 in hex.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}
