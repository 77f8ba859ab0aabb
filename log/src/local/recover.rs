//! What a topic's files hold when it is opened: all that was acknowledged, or an error that names what is wrong.
//!
//! A process or a machine that dies while a group is written leaves a **torn tail**: the bytes of one frame at the
//! end of the last segment, which nobody was told are durable. It is cut off, and so are the zeros that a writer leaves
//! after its last frame as room for the next. Anything else that is not as it was
//! written is **damage**, and nothing is cut. How the two are told apart:
//!
//! * There is never more than one frame that was not synced. So it is damage when a frame with a later number
//!   follows, or more bytes than one frame can have, or bytes after the end that its header names.
//! * A write is torn at sectors: a sector has the bytes that were written or those before, and before there were none,
//!   which reads as zeros. So a torn frame has its end missing, or a piece within one sector that is all zeros.
//!   A frame whose every sector is there and whose checksum is wrong was written whole and changed later: damage.
//! * The manifest names the segments that must be there, and how long the last one is at least.

use super::Repair;
use super::frame::{FRAME_BYTES_MAX, HEADER_LEN, Header, Kind, Seed};
use super::manifest::Manifest;
use super::reader;
use super::segment::{self, Place, Segment, damaged};
use crate::durable::{self, File};
use crate::{LogError, Topic};
use std::path::Path;

/// The smallest unit that a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// Bytes between two entries of a segment's index: what a search reads at most.
pub const INDEX_STEP: u64 = 256 << 10;

/// A topic as it was found, its last segment open for more.
pub struct Recovered {
    pub topic: Topic,
    pub manifest: Manifest,
    pub segments: Vec<Segment>,
    /// Index of the last segment.
    pub index: Vec<Place>,
    pub file: File,
    pub end: Place,
}

/// Opens a topic's folder.
pub fn open(dir: &Path, name: &str, repairs: &mut Vec<Repair>) -> Result<Recovered, LogError> {
    let mut manifest = Manifest::read(dir)?;
    let topic = Topic { name: name.to_owned(), log_id: manifest.log_id, partitions: manifest.partitions };
    durable::remove_leftovers(dir)?;
    let last = last_segment(dir, &manifest)?;
    let mut segments: Vec<Segment> = Vec::new();
    for number in manifest.first_segment..=last {
        let segment = segment::open(dir, &topic, number, number < last)?;
        if let Some(Segment { sealed: Some(end), path, .. }) = segments.last() {
            let follows = segment.start.number == end.number + 2
                && (&segment.start.next, segment.start.time) == (&end.next, end.time);
            if !follows {
                let what = format!("it does not follow {}, which ends before offsets {:?}", path.display(), end.next);
                return Err(damaged(&segment.path, 0, what));
            }
        }
        segments.push(segment);
    }
    let mut open = segments.pop().ok_or_else(|| damaged(dir, 0, "the topic has no segment"))?;
    let file = File::open_to_write(&open.path)?;
    let mut tail = scan(&file, &topic, &open)?;
    let known = if last == manifest.last_segment { manifest.durable_bytes } else { 0 };
    if tail.end.at < known {
        let what = tail.wrong.unwrap_or_else(|| "it ends here".into());
        return Err(damaged(&open.path, tail.end.at, format!("{what}, and {known} bytes of it were durable")));
    }
    if let Some(what) = tail.wrong.take() {
        let torn = judge(&file, Seed::of(&topic.log_id), tail.end.at, tail.end.number)?;
        let bytes_cut = torn.map_err(|why| damaged(&open.path, tail.end.at, format!("{what}, and {why}")))?;
        // Zeros alone are the room that the writer had made for groups to come.
        if bytes_cut > 0 {
            repairs.push(Repair { file: open.path.clone(), at: tail.end.at, bytes_cut });
        }
        file.set_len(tail.end.at)?;
        file.sync()?;
    }
    // The last frame may be in memory only: the process may have died before its fsync, or the fsync failed and the
    // kernel now takes it for clean. It is written again before anybody reads it.
    let mut frame = vec![0; tail.last_len];
    let at = tail.end.at - tail.last_len as u64;
    file.read_exact_at(&mut frame, at)?;
    file.write_all_at(&frame, at)?;
    file.sync()?;
    if let Some(end) = tail.sealed {
        // The process died before it could make the segment after this one.
        open.sealed = Some(end.clone());
        let before = Place { number: end.number + 1, ..end };
        let next = segment::create(dir, &topic, open.number + 1, &before)?;
        durable::sync_dir(dir)?;
        segments.push(std::mem::replace(&mut open, next));
        tail.end = open.start.clone();
        tail.index = vec![open.start.clone()];
    }
    manifest.last_segment = open.number;
    manifest.durable_bytes = tail.end.at;
    manifest.write(dir)?;
    let file = File::open_to_write(&open.path)?;
    segments.push(open);
    Ok(Recovered { topic, manifest, segments, index: tail.index, file, end: tail.end })
}

/// Removes segments that are over, checks that all others are there, and answers the last one's number.
fn last_segment(dir: &Path, manifest: &Manifest) -> Result<u64, LogError> {
    let mut last = manifest.last_segment;
    let mut found = Vec::new();
    for path in durable::list(dir)? {
        match segment::number_of(&path) {
            Some(number) if number < manifest.first_segment => durable::remove_file(&path)?,
            Some(number) if number <= last => found.push(number),
            Some(number) if number == manifest.last_segment + 1 => last = number,
            Some(_) => return Err(damaged(&path, 0, format!("the topic has no segment after {}", last))),
            None => {}
        }
    }
    let must = manifest.first_segment..=manifest.last_segment;
    match must.zip(found.iter().map(Some).chain(std::iter::repeat(None))).find(|(must, found)| Some(must) != *found) {
        Some((missing, _)) => Err(damaged(&segment::path(dir, missing), 0, "the segment is missing")),
        None => Ok(last),
    }
}

/// What the last segment holds.
struct Tail {
    index: Vec<Place>,
    /// After the last good frame.
    end: Place,
    /// Length of the last good frame.
    last_len: usize,
    /// Where the seal begins, if there is one.
    sealed: Option<Place>,
    /// What is wrong at `end`; `None` if the file ends there.
    wrong: Option<String>,
}

fn scan(file: &File, topic: &Topic, segment: &Segment) -> Result<Tail, LogError> {
    let len = file.bytes()?;
    let place = segment.start.clone();
    let mut tail =
        Tail { index: vec![place.clone()], last_len: place.at as usize, end: place, sealed: None, wrong: None };
    while tail.end.at < len {
        let frames = match reader::read(file, Seed::of(&topic.log_id), tail.end.at, len, tail.end.number) {
            Err(LogError::Damaged { what, .. }) => {
                tail.wrong = Some(what);
                break;
            }
            frames => frames?,
        };
        let (index, sealed) = (&mut tail.index, &mut tail.sealed);
        reader::walk(file, &frames, &mut tail.end, |place, header| {
            if header.kind == Kind::Seal {
                *sealed = Some(place.clone());
            } else if index.last().is_none_or(|entry| place.at - entry.at >= INDEX_STEP) {
                index.push(place.clone());
            }
            true
        })?;
        if let Some((header, _)) = frames.frames.last() {
            tail.last_len = header.frame_len();
        }
        if let Some(seal) = &tail.sealed
            && tail.end.at < len
        {
            return Err(damaged(&segment.path, seal.at, "more follows after the end of the segment"));
        }
    }
    Ok(tail)
}

/// Judges what stands at `at`, where the frame of this number should begin and does not: `Ok(Ok)` if it is a torn
/// write, with its bytes, or none at all; `Ok(Err)` with the reason if it is damage.
fn judge(file: &File, seed: Seed, at: u64, number: u64) -> Result<Result<u64, String>, LogError> {
    let len = file.bytes()?;
    let Some(bytes) = written(file, at, len)? else {
        return Ok(Err(format!("more follows than the one group that can be unfinished ({FRAME_BYTES_MAX} bytes)")));
    };
    let later = (1..bytes.len()).find_map(|i| Header::read(&bytes[i..], seed).filter(|h| h.number > number));
    if let Some(later) = later {
        return Ok(Err(format!("group {} follows", later.number)));
    }
    let torn = Ok(bytes.len() as u64);
    let whole = Err("no part of it is missing, as it would be after a write that was cut short".to_owned());
    Ok(match Header::read(&bytes, seed) {
        Some(header) if header.number != number => Err("its number is wrong".into()),
        Some(header) if bytes.len() > header.frame_len() => Err("more follows after its end".into()),
        // The last byte of a frame is never 0: if it was written, `bytes` reaches to it.
        Some(header) if bytes.len() < header.frame_len() || misses_sector(&bytes, at) => torn,
        Some(_) => whole,
        None if bytes.len() < HEADER_LEN || misses_sector(&bytes[..HEADER_LEN], at) => torn,
        None => whole,
    })
}

/// The bytes from `at` to the last one that is not 0; `None` if they are more than one frame can have.
fn written(file: &File, at: u64, len: u64) -> Result<Option<Vec<u8>>, LogError> {
    let mut bytes = vec![0; (len - at).min(FRAME_BYTES_MAX as u64) as usize];
    file.read_exact_at(&mut bytes, at)?;
    let mut from = at + bytes.len() as u64;
    let mut more = vec![0; 1 << 20];
    while from < len {
        let n = (len - from).min(more.len() as u64) as usize;
        file.read_exact_at(&mut more[..n], from)?;
        if more[..n].iter().any(|byte| *byte != 0) {
            return Ok(None);
        }
        from += n as u64;
    }
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    Ok(Some(bytes))
}

/// Whether a part of `bytes`, which begin at `at` in the file, that lies in one sector is all zeros.
fn misses_sector(bytes: &[u8], at: u64) -> bool {
    let first = ((SECTOR - at % SECTOR) as usize).min(bytes.len());
    let (first, rest) = bytes.split_at(first);
    std::iter::once(first).chain(rest.chunks(SECTOR as usize)).any(|part| part.iter().all(|byte| *byte == 0))
}
