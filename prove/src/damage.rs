//! A disk that changes what was written: in a copy of a site's folder one file has another byte, or ends early. Whoever reads
//! it has to name it, or not to need it; a number that is wrong is never an answer.

use crate::disk::Disk;
use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a file is a part of. It is drawn first: most files are the warehouse's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    Log,
    Spool,
    Claims,
    Checkpoint,
    Parquet,
    DeltaLog,
}

impl Store {
    pub const ALL: [Store; 6] =
        [Store::Log, Store::Spool, Store::Claims, Store::Checkpoint, Store::Parquet, Store::DeltaLog];

    /// That of a file below a data folder. None has what a run does not turn on: locks, and the key of addresses.
    fn of(file: &Path) -> Option<Store> {
        let is_in = |part: &str| file.iter().any(|own| own == part);
        let first = file.iter().next()?.to_str()?;
        match first {
            _ if file.ends_with("lock") => None,
            "log" => Some(Store::Log),
            "spool" => Some(Store::Spool),
            "runner" if is_in("claims") => Some(Store::Claims),
            "runner" => Some(Store::Checkpoint),
            "warehouse" if is_in("_delta_log") => Some(Store::DeltaLog),
            "warehouse" => Some(Store::Parquet),
            _ => None,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Store::Log => "the log",
            Store::Spool => "the spool",
            Store::Claims => "the claims",
            Store::Checkpoint => "a checkpoint",
            Store::Parquet => "Parquet files",
            Store::DeltaLog => "Delta's logs",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A bit of this byte.
    Flipped(u64),
    /// Only so many bytes are left.
    EndsAt(u64),
}

/// What was changed.
#[derive(Debug)]
pub struct Damage {
    /// The folder of the copy.
    pub disk: Disk,
    pub store: Store,
    /// The file, below it.
    file: PathBuf,
    change: Change,
}

impl Damage {
    /// Copies the folder of `disk` into `dir`, and changes one file. None if there is no file yet.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn of(disk: &Disk, dir: &Path, rng: &mut impl Rng) -> Result<Option<Damage>> {
        let copy = Disk::new(dir)?;
        let mut files = Vec::new();
        copy_all(&disk.root, &copy.root, Path::new(""), &mut files)?;
        // The order of a folder's entries is no part of a seed.
        files.sort();
        let mut stores: BTreeMap<Store, Vec<(PathBuf, u64)>> = BTreeMap::new();
        for (file, bytes) in files {
            if let Some(store) = Store::of(&file) {
                stores.entry(store).or_default().push((file, bytes));
            }
        }
        let there: Vec<Store> = stores.keys().copied().collect();
        let Some(store) = there.choose(rng).copied() else { return Ok(None) };
        let Some((file, bytes)) = stores.get(&store).and_then(|files| files.choose(rng)).cloned() else {
            return Ok(None);
        };
        let path = copy.root.join(&file);
        let synced = synced_bytes(&path, bytes)?;
        let change = match rng.random_bool(0.4) && synced > 0 {
            true => Change::EndsAt(rng.random_range(0..synced)),
            false => Change::Flipped(rng.random_range(0..bytes)),
        };
        let opened = fs::OpenOptions::new().read(true).write(true).open(&path);
        let opened = opened.with_context(|| path.display().to_string())?;
        match change {
            Change::EndsAt(end) => opened.set_len(end)?,
            Change::Flipped(at) => {
                let mut byte = [0];
                opened.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << rng.random_range(0..8);
                opened.write_all_at(&byte, at)?;
            }
        }
        Ok(Some(Damage { disk: copy, store, file, change }))
    }

    /// Whether a message names the file, or the folder of the store or table that it is part of.
    pub fn is_named_by(&self, message: &str) -> bool {
        is_named(&self.file, self.store, message)
    }
}

fn is_named(file: &Path, store: Store, message: &str) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // A checksum is named by the file that it is of.
    let name = name.trim_start_matches('.').trim_end_matches(".sum");
    if name.len() >= NAME_BYTES_MIN && message.contains(name) {
        return true;
    }
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    match (store, &parts[..]) {
        // What an embedded store says of its files is not theirs by name.
        (Store::Claims, _) => message.contains("runner/claims"),
        (Store::Checkpoint, _) => message.contains(&*file.to_string_lossy()),
        (Store::Log, [_, _, topic, ..]) => message.contains(&format!("log/topics/{topic}/")),
        (Store::Spool, [_, part, ..]) => message.contains(&format!("spool/{part}")),
        (Store::Parquet | Store::DeltaLog, [_, table, ..]) => {
            message.contains(&format!("warehouse/{table}")) || message.contains(&format!("table {table}:"))
        }
        _ => false,
    }
}

/// A shorter name says nothing: it is a word that may stand in any message.
const NAME_BYTES_MIN: usize = 12;

/// As many bytes as are known to be synced: of the segment that a log appends to, no more than its manifest says, for behind
/// that a file that ends early is what a crash leaves; of all other files all.
fn synced_bytes(path: &Path, bytes: u64) -> Result<u64> {
    if path.extension().is_none_or(|extension| extension != "log") {
        // The journal of the claims is appended to as well.
        return Ok(if path.extension().is_some_and(|extension| extension == "jnl") { 0 } else { bytes });
    }
    let Some(manifest) = path.parent().map(|folder| folder.join("topic")).filter(|manifest| manifest.exists()) else {
        return Ok(0);
    };
    let text = fs::read_to_string(&manifest)?;
    let json: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    Ok(match (number, json["lastSegment"].as_u64()) {
        (Some(number), Some(last)) if number < last => bytes,
        (Some(number), Some(last)) if number == last => json["durableBytes"].as_u64().unwrap_or(0).min(bytes),
        _ => 0,
    })
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.change {
            Change::Flipped(at) => write!(f, "a bit flipped in {file} at byte {at}"),
            Change::EndsAt(end) => write!(f, "{file} ends at byte {end}"),
        }
    }
}

/// Copies a folder, and lists its files that are not empty.
fn copy_all(from: &Path, to: &Path, below: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (target, below) = (to.join(entry.file_name()), below.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_all(&entry.path(), &target, &below, files)?;
        } else {
            let bytes = fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
            if bytes > 0 {
                files.push((below, bytes));
            }
        }
    }
    Ok(())
}

#[test]
fn a_word_is_not_a_name() {
    let named = |file: &str, message: &str| {
        let file = Path::new(file);
        Store::of(file).is_some_and(|store| is_named(file, store, message))
    };
    let segment = "log/topics/clicks/00000000000000000012.log";
    assert!(named(segment, "/d/log/topics/clicks/00000000000000000012.log is damaged at byte 7: x"));
    assert!(named(segment, "cannot read /d/log/topics/clicks/topic: x"));
    assert!(!named(segment, "topics: 3 clicks wait"));
    assert!(!named(segment, "/d/log/topics/raw_clicks/00000000000000000001.log is damaged at byte 7: x"));
    assert!(named("runner/claims/7.jnl", "/d/runner/claims: InvalidTrailer"));
    assert!(!named("runner/claims/7.jnl", "claims were lost"));
    assert!(named("warehouse/closings/_delta_log/00000000000000000003.json", "table closings: no version 3"));
    assert!(!named("warehouse/closings/_delta_log/00000000000000000003.json", "table raw_clicks: closings"));
    assert!(named("spool/sent", "/d/spool/sent is damaged: x"));
    assert!(!named("spool/sent", "the spool was sent"));
    assert_eq!(Store::of(Path::new("warehouse/lock")), None);
}
