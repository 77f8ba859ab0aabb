//! Checksums beside files, as Hadoop's `ChecksumFileSystem` keeps them: bytes that a disk changed are found when they
//! are read, and are named.
//!
//! Beside a file `x` stands `.x.sum`, with these in it, all numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 8 | length of `x` in bytes |
//! | 8 for each 64 KiB of `x`, the last of which may be shorter | xxh3 of that block |
//! | 8 | xxh3 of all the above |
//!
//! # What a crash leaves
//!
//! The sums are on disk, with the folder that names them, before their file gets its name, and they are removed after
//! their file is gone for good. A file that is replaced is removed first, so there is none for a moment, and new sums
//! never stand beside an old file. So whenever a process dies or the power is cut, there is
//!
//! * a file with its own sums, or
//! * sums without a file: the next try to write the file overwrites them, [`sweep`] removes them at a start.
//!
//! A file without sums cannot come of a crash: it is damage. One process writes, and no name is written twice at once.

#![allow(clippy::single_range_in_vec_init, reason = "one range of several that could be asked for")]

use crate::error::Error;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tally_log::durable::{self, FileError};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: &[u8; 8] = b"TallySum";
/// Bytes that share a checksum: little enough that a short read costs little more, and many enough that the sums are
/// an eight-thousandth of the file.
pub(super) const BLOCK: u64 = 64 << 10;
/// Bytes that are read at once where a whole file is.
pub(super) const PIECE: u64 = 16 * BLOCK;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged: {what}", .file.display())]
    Damaged { file: PathBuf, what: String },
    #[error("bytes {} to {} of {} were asked for, and it has {bytes}", .range.start, .range.end, .file.display())]
    Beyond { file: PathBuf, range: Range<u64>, bytes: u64 },
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::File(error) => Error::File(error),
            ReadError::Damaged { file, what } => Error::Damaged { file, what },
            ReadError::Beyond { ref file, .. } => Error::Damaged { file: file.clone(), what: error.to_string() },
        }
    }
}

fn damaged(file: &Path, what: impl Into<String>) -> ReadError {
    ReadError::Damaged { file: file.to_path_buf(), what: what.into() }
}

/// Where the sums of a file are.
pub(super) fn path_of(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.sum"))
}

/// The name of the file that a file of this name holds the sums of, if it is one.
pub(super) fn summed(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".sum")
}

/// The sums of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sums {
    bytes: u64,
    blocks: Vec<u64>,
}

impl Sums {
    pub fn of(bytes: &[u8]) -> Sums {
        let mut summing = Summing::default();
        summing.update(bytes);
        summing.end()
    }

    fn encode(&self) -> Vec<u8> {
        let mut encoded = MAGIC.to_vec();
        for number in std::iter::once(&self.bytes).chain(&self.blocks) {
            encoded.extend_from_slice(&number.to_le_bytes());
        }
        encoded.extend_from_slice(&xxh3_64(&encoded).to_le_bytes());
        encoded
    }

    fn decode(encoded: &[u8]) -> Result<Sums, &'static str> {
        let (body, sum) = encoded.split_last_chunk::<8>().ok_or("it is too short")?;
        if u64::from_le_bytes(*sum) != xxh3_64(body) {
            return Err("its checksum is not that of its bytes");
        }
        let numbers = body.strip_prefix(MAGIC).ok_or("it holds no checksums")?;
        let (numbers, []) = numbers.as_chunks::<8>() else { return Err("its length is none that it can have") };
        let (bytes, blocks) = numbers.split_first().ok_or("it is too short")?;
        let bytes = u64::from_le_bytes(*bytes);
        if bytes.div_ceil(BLOCK) != blocks.len() as u64 {
            return Err("it has another number of checksums than the length of its file asks for");
        }
        Ok(Sums { bytes, blocks: blocks.iter().map(|sum| u64::from_le_bytes(*sum)).collect() })
    }

    fn read(file: &Path) -> Result<Sums, ReadError> {
        let path = path_of(file);
        let encoded = match durable::read(&path) {
            Ok(encoded) => encoded,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(file, format!("its checksums, {}, are missing", path.display())));
            }
            Err(error) => return Err(error.into()),
        };
        Sums::decode(&encoded).map_err(|what| damaged(&path, what))
    }
}

/// Sums up bytes as they come.
#[derive(Default)]
pub(super) struct Summing {
    blocks: Vec<u64>,
    /// The block that is not full yet.
    block: Xxh3,
    bytes: u64,
}

impl Summing {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK - self.bytes % BLOCK;
            // `room` fits, being no more than a block.
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.block.update(now);
            self.bytes += now.len() as u64;
            if self.bytes.is_multiple_of(BLOCK) {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(self.block.digest());
        self.block.reset();
    }

    pub fn end(mut self) -> Sums {
        if !self.bytes.is_multiple_of(BLOCK) {
            self.end_block();
        }
        Sums { bytes: self.bytes, blocks: self.blocks }
    }
}

impl std::fmt::Debug for Summing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Summing").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Makes the sums of a file durable, and then lets `put` give the file its name. With `replace` an older file of this
/// name is removed before; without it there must be none: an error of kind [`io::ErrorKind::AlreadyExists`].
pub(super) fn place(
    path: &Path,
    sums: &Sums,
    replace: bool,
    put: impl FnOnce() -> Result<(), FileError>,
) -> Result<(), FileError> {
    let failed = |error| FileError { doing: "create", path: path.to_path_buf(), error };
    if path.try_exists().map_err(failed)? {
        if replace {
            durable::remove_file(path)?;
        }
        // Also when the name was taken: whoever took it may have died before this.
        durable::sync_dir(folder_of(path))?;
        if !replace {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
    }
    durable::write_aside(&path_of(path), &sums.encode())?;
    put()
}

/// Removes files, and their sums once the files are gone for good. Says for each what came of it.
pub(super) fn remove(paths: &[PathBuf]) -> Vec<Result<(), FileError>> {
    let mut removed: Vec<_> = paths.iter().map(|path| durable::remove_file(path)).collect();
    let mut unsynced = BTreeSet::new();
    for folder in paths.iter().map(|path| folder_of(path)).collect::<BTreeSet<_>>() {
        if durable::sync_dir(folder).is_err() {
            unsynced.insert(folder);
        }
    }
    for (path, removed) in paths.iter().zip(&mut removed) {
        if removed.is_ok() && !unsynced.contains(folder_of(path)) {
            match durable::remove_file(&path_of(path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => *removed = Err(error),
                _ => {}
            }
        }
    }
    removed
}

/// Removes the sums in a folder whose file is not there, out of all the paths in it.
pub(super) fn sweep(paths: &[PathBuf]) -> Result<(), FileError> {
    for path in paths {
        let file = path.file_name().and_then(|name| summed(name.to_str()?)).map(|name| path.with_file_name(name));
        if file.is_some_and(|file| paths.binary_search(&file).is_err()) {
            durable::remove_file(path)?;
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// An open file; what is read of it is what was written to it.
#[derive(Debug)]
pub(super) struct Reader {
    file: durable::File,
    sums: Sums,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader, ReadError> {
        let file = durable::File::open(path)?;
        let sums = Sums::read(path)?;
        let bytes = file.bytes()?;
        if bytes != sums.bytes {
            return Err(damaged(path, format!("it has {bytes} bytes instead of {}", sums.bytes)));
        }
        Ok(Reader { file, sums })
    }

    pub fn bytes(&self) -> u64 {
        self.sums.bytes
    }

    /// Reads ranges of bytes. A block that several of them share is read once.
    pub fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ReadError> {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            if range.end > self.bytes() {
                let (file, bytes) = (self.file.path().to_path_buf(), self.bytes());
                return Err(ReadError::Beyond { file, range: range.clone(), bytes });
            }
            if range.start < range.end {
                let end = range.end.next_multiple_of(BLOCK).min(self.bytes());
                spans.push(range.start - range.start % BLOCK..end);
            }
        }
        spans.sort_by_key(|span| span.start);
        spans.dedup_by(|next, span| {
            let joins = next.start <= span.end;
            if joins {
                span.end = span.end.max(next.end);
            }
            joins
        });
        let read = spans.iter().map(|span| self.blocks(span)).collect::<Result<Vec<Bytes>, _>>()?;
        let part = |range: &Range<u64>| {
            let index = spans.partition_point(|span| span.end < range.end);
            match spans.get(index) {
                // What was read fits the memory, and so its length fits `usize`.
                Some(span) if range.start < range.end => {
                    read[index].slice((range.start - span.start) as usize..(range.end - span.start) as usize)
                }
                _ => Bytes::new(),
            }
        };
        Ok(ranges.iter().map(part).collect())
    }

    /// Reads all of it, and keeps nothing.
    pub fn verify(&self) -> Result<(), ReadError> {
        let mut at = 0;
        while at < self.bytes() {
            let end = self.bytes().min(at + PIECE);
            self.blocks(&(at..end))?;
            at = end;
        }
        Ok(())
    }

    /// Reads a span of whole blocks.
    fn blocks(&self, span: &Range<u64>) -> Result<Bytes, ReadError> {
        let mut bytes = vec![0; usize::try_from(span.end - span.start).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, span.start)?;
        let sums = self.sums.blocks.iter().skip((span.start / BLOCK) as usize);
        for ((index, block), sum) in (0..).zip(bytes.chunks(BLOCK as usize)).zip(sums) {
            if xxh3_64(block) != *sum {
                let start = span.start + index * BLOCK;
                let what = format!("bytes {start} to {} are not those that were written", start + block.len() as u64);
                return Err(damaged(self.file.path(), what));
            }
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, bytes: &[u8], replace: bool) -> Result<(), FileError> {
        place(path, &Sums::of(bytes), replace, || durable::create_new(path, bytes))
    }

    fn some_bytes(count: u64) -> Vec<u8> {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_was_written_is_read_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let (path, content) = (dir.path().join(bytes.to_string()), some_bytes(bytes));
            put(&path, &content, false).unwrap();
            let mut parts = Summing::default();
            content.chunks(1000).for_each(|part| parts.update(part));
            assert_eq!(parts.end(), Sums::of(&content));
            let reader = Reader::open(&path).unwrap();
            reader.verify().unwrap();
            let ranges = [0..bytes, bytes / 2..bytes, 0..bytes.min(5), bytes / 3..bytes / 3, bytes / 3..bytes / 2];
            for (range, read) in ranges.iter().zip(reader.read(&ranges).unwrap()) {
                assert_eq!(read, content[range.start as usize..range.end as usize], "{range:?} of {bytes}");
            }
            let beyond = reader.read(&[0..bytes + 1]).unwrap_err().to_string();
            assert!(beyond.contains(&format!("it has {bytes}")), "{beyond}");
        }
    }

    #[test]
    fn a_changed_byte_is_found_by_whoever_reads_its_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = some_bytes(3 * BLOCK + 7);
        put(&path, &content, false).unwrap();
        for at in [0, BLOCK - 1, BLOCK, 3 * BLOCK + 6] {
            let mut bad = content.clone();
            bad[at as usize] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let reader = Reader::open(&path).unwrap();
            let error = reader.read(&[at..at + 1]).unwrap_err().to_string();
            let place = format!("bytes {} to", at - at % BLOCK);
            assert!(error.contains("file is damaged") && error.contains(&place), "{error}");
            assert!(reader.verify().is_err());
            let other = if at < BLOCK { 2 * BLOCK } else { 5 };
            assert_eq!(reader.read(&[other..other + 1]).unwrap()[0], content[other as usize..][..1]);
        }
        std::fs::write(&path, &content[1..]).unwrap();
        assert!(Reader::open(&path).unwrap_err().to_string().contains("instead of"));
        std::fs::write(&path, &content).unwrap();
        // The sums themselves, each byte of them.
        let sums = std::fs::read(path_of(&path)).unwrap();
        for at in 0..sums.len() {
            let mut bad = sums.clone();
            bad[at] ^= 0x80;
            std::fs::write(path_of(&path), bad).unwrap();
            let error = Reader::open(&path).unwrap_err().to_string();
            assert!(error.contains(".file.sum is damaged"), "{error}");
        }
        durable::remove_file(&path_of(&path)).unwrap();
        assert!(Reader::open(&path).unwrap_err().to_string().contains("are missing"));
    }

    #[test]
    fn sums_stay_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        put(&path, b"one", false).unwrap();
        assert_eq!(put(&path, b"two", false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        Reader::open(&path).unwrap().verify().unwrap();
        put(&path, b"three", true).unwrap();
        assert_eq!(Reader::open(&path).unwrap().read(&[0..5]).unwrap(), ["three"]);
        let other = dir.path().join("other");
        let died = place(&other, &Sums::of(b"x"), false, || durable::read(&other).map(drop));
        assert_eq!(died.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(path_of(&other).exists());
        sweep(&durable::list(dir.path()).unwrap()).unwrap();
        assert_eq!(durable::list(dir.path()).unwrap(), [path_of(&path), path.clone()]);
        let removed = remove(&[path, other]);
        assert!(removed[0].is_ok() && removed[1].is_err());
        assert!(durable::list(dir.path()).unwrap().is_empty());
    }
}
