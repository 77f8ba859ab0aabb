//! A disk that changes what was written: in a copy of a site's folder one file gets another byte. Whoever reads it has to
//! name it, or not to need it; a number that is wrong is never an answer.

use crate::disk::Disk;
use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What was changed.
#[derive(Debug)]
pub struct Damage {
    /// The folder of the copy.
    pub disk: Disk,
    /// The file, below it.
    pub file: PathBuf,
    at: u64,
}

impl Damage {
    /// Copies the folder of `disk` into `dir`, and flips a bit of one file. None if there is no file yet.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn of(disk: &Disk, dir: &Path, rng: &mut impl Rng) -> Result<Option<Damage>> {
        let copy = Disk::new(dir)?;
        let mut files = Vec::new();
        copy_all(&disk.root, &copy.root, Path::new(""), &mut files)?;
        let Some((file, bytes)) = files.choose(rng).cloned() else { return Ok(None) };
        let at = rng.random_range(0..bytes);
        let path = copy.root.join(&file);
        let opened = fs::OpenOptions::new().read(true).write(true).open(&path);
        let opened = opened.with_context(|| path.display().to_string())?;
        let mut byte = [0];
        opened.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << rng.random_range(0..8);
        opened.write_all_at(&byte, at)?;
        Ok(Some(Damage { disk: copy, file, at }))
    }

    /// Whether a message names the file, or the store or table that it is part of.
    pub fn is_named_by(&self, message: &str) -> bool {
        let parts: Vec<_> = self.file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let name = parts.last().map(|name| name.trim_start_matches('.').trim_end_matches(".sum").to_owned());
        let is_in = |part: &str| parts.iter().any(|own| own == part);
        let whole = ["claims", "topics"].into_iter().chain(TABLES).find(|store| is_in(store));
        name.is_some_and(|name| message.contains(&name)) || whole.is_some_and(|store| message.contains(store))
    }
}

/// The tables of the warehouse, each a folder.
const TABLES: [&str; 4] = ["raw_clicks", "click_corrections", "closings", "quarantine"];

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a bit flipped in {} at byte {}", self.file.display(), self.at)
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
