//! Reads frames in chunks. A chunk's bytes are shared by all records that come out of it.

use super::frame::{self, FRAME_BYTES_MAX, HEADER_LEN, Header, Kind, RecordAt, Seed};
use super::segment::{Place, damaged};
use crate::LogError;
use crate::durable::File;
use bytes::Bytes;

/// How much is read at once: a few thousand clicks.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// Whole frames, each as it was written.
#[derive(Debug)]
pub struct Frames {
    pub bytes: Bytes,
    /// Where `bytes` begins in the file.
    pub at: u64,
    /// Each header, and where its frame begins in `bytes`. Never empty.
    pub frames: Vec<(Header, usize)>,
    /// Where the next frame begins in the file, and its number.
    pub next_at: u64,
    pub next_number: u64,
}

/// Reads the frames from `at` on, the first of which has this number, but nothing at or past `end`: at least one,
/// and as many more as fit a chunk. What is wrong is named if it is the first frame, else it is left for the next call.
/// `at` must be below `end`.
pub fn read(file: &File, seed: Seed, at: u64, end: u64, number: u64) -> Result<Frames, LogError> {
    let mut want = CHUNK_BYTES;
    loop {
        let mut bytes = vec![0; want.min(end - at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        let mut frames = Vec::new();
        let mut pos = 0;
        let stopped = loop {
            match next_frame(&bytes[pos..], seed, end - at - pos as u64, number + frames.len() as u64) {
                Ok(header) => {
                    frames.push((header, pos));
                    pos += header.frame_len();
                }
                Err(stopped) => break stopped,
            }
        };
        if !frames.is_empty() {
            let next_number = number + frames.len() as u64;
            return Ok(Frames { bytes: bytes.into(), at, frames, next_at: at + pos as u64, next_number });
        }
        match stopped {
            // A frame that is longer than a chunk; never longer than `FRAME_BYTES_MAX`.
            Stopped::ChunkEnds { need } if need > want => want = need,
            Stopped::ChunkEnds { .. } => want = FRAME_BYTES_MAX as u64,
            Stopped::Bad(what) => return Err(damaged(file.path(), at, what)),
        }
    }
}

enum Stopped {
    ChunkEnds { need: u64 },
    Bad(String),
}

/// The frame at the start of `bytes`, after which the file holds `file_left` bytes in all.
fn next_frame(bytes: &[u8], seed: Seed, file_left: u64, number: u64) -> Result<Header, Stopped> {
    let bad = |what: &str| Stopped::Bad(format!("group {number} {what}"));
    if bytes.len() < HEADER_LEN {
        return Err(if file_left < HEADER_LEN as u64 {
            bad("is cut off in its header")
        } else {
            Stopped::ChunkEnds { need: HEADER_LEN as u64 }
        });
    }
    let header = Header::read(bytes, seed).ok_or_else(|| bad("has a header with a wrong checksum"))?;
    if header.number != number {
        return Err(bad(&format!("is not here, but group {}", header.number)));
    }
    let len = header.frame_len();
    match bytes.get(..len) {
        Some(frame) if Header::is_intact(frame, seed) => Ok(header),
        Some(_) => Err(bad(&format!("of {len} bytes has a wrong checksum"))),
        None if file_left < len as u64 => Err(bad(&format!("of {len} bytes is cut off after {file_left}"))),
        None => Err(Stopped::ChunkEnds { need: len as u64 }),
    }
}

/// Goes through the records of [`Frames`], one after the other.
#[derive(Debug)]
pub struct Cursor {
    frames: Frames,
    frame: usize,
    /// The next record, in `frames.bytes`; 0 when the frame was not begun.
    at: usize,
}

impl Cursor {
    pub fn new(frames: Frames) -> Self {
        Cursor { frames, frame: 0, at: 0 }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.frames.bytes
    }

    /// Where the group that is being read begins in the file.
    pub fn group_at(&self) -> u64 {
        self.frames.at + self.frames.frames.get(self.frame).map_or(0, |(_, start)| *start as u64)
    }

    /// The next record with the header of its group; `None` at the end. `Some(Err)` with a group's number when a record
    /// does not fit its group, which a right checksum makes impossible unless it was written so.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<(Header, RecordAt), u64>> {
        loop {
            let (header, start) = *self.frames.frames.get(self.frame)?;
            let body = start + HEADER_LEN;
            let end = body + header.body_len;
            if header.kind != Kind::Group || self.at == end {
                self.frame += 1;
                self.at = 0;
                continue;
            }
            let at = if self.at == 0 { body } else { self.at };
            return Some(match frame::record_at(&self.frames.bytes, at, end) {
                Some(record) => {
                    self.at = record.value.end;
                    Ok((header, record))
                }
                None => Err(header.number),
            });
        }
    }
}

/// Moves `place` behind every frame of `frames`, counting records, and calls `visit` before each with the place where
/// it begins. Stops at the first for which that answers `false`, and answers `false` then.
pub fn walk(
    file: &File,
    frames: &Frames,
    place: &mut Place,
    mut visit: impl FnMut(&Place, &Header) -> bool,
) -> Result<bool, LogError> {
    for (header, start) in &frames.frames {
        if !visit(place, header) {
            return Ok(false);
        }
        let frame_at = place.at;
        let wrong = |what: &str| damaged(file.path(), frame_at, format!("group {} {what}", header.number));
        if header.time < place.time {
            return Err(wrong("is older than the one before it"));
        }
        let mut at = start + HEADER_LEN;
        let end = at + header.body_len;
        while header.kind == Kind::Group && at < end {
            let record = frame::record_at(&frames.bytes, at, end).ok_or_else(|| wrong("holds a malformed record"))?;
            let next = place.next.get_mut(record.partition).filter(|next| **next == record.offset);
            *next.ok_or_else(|| wrong("holds a record whose offset does not follow"))? += 1;
            at = record.value.end;
        }
        place.at += header.frame_len() as u64;
        place.number = header.number + 1;
        place.time = header.time;
    }
    Ok(true)
}
