//! Segments: the files of a topic, one after the other, and where in them an offset or a time is found.

use super::frame::{self, Builder, FRAME_BYTES_MAX, HEADER_LEN, Header, Kind, Seed};
use crate::durable::{self, File};
use crate::{LogError, Topic};
use click::{Millis, Offset};
use std::path::{Path, PathBuf};

/// Version of the form of segments that this program writes and reads.
const VERSION: u32 = 1;

/// Most partitions of a topic: bounds an index entry.
pub const PARTITIONS_MAX: i32 = 256;

/// A place between two frames of a segment, and what is known there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Byte in the segment.
    pub at: u64,
    /// Number of the frame that begins here.
    pub number: u64,
    /// Append time of the frame before.
    pub time: Millis,
    /// The next offset of every partition.
    pub next: Box<[Offset]>,
}

impl Place {
    fn write(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.at.to_le_bytes());
        body.extend_from_slice(&self.number.to_le_bytes());
        body.extend_from_slice(&self.time.get().to_le_bytes());
        self.next.iter().for_each(|next| body.extend_from_slice(&next.to_le_bytes()));
    }

    /// Bytes of a written place.
    fn len(partitions: usize) -> usize {
        24 + 8 * partitions
    }

    fn read(body: &[u8], at: usize, partitions: usize) -> Option<Place> {
        Some(Place {
            at: frame::u64_at(body, at)?,
            number: frame::u64_at(body, at + 8)?,
            time: Millis::new(frame::i64_at(body, at + 16)?),
            next: (0..partitions).map(|p| frame::i64_at(body, at + 24 + 8 * p)).collect::<Option<_>>()?,
        })
    }
}

/// A segment as it is known in memory. Its index is read when it is needed, except that of the last one.
#[derive(Debug, Clone)]
pub struct Segment {
    pub number: u64,
    pub path: PathBuf,
    /// Its first group: after its start frame.
    pub start: Place,
    /// Where its seal begins; `None` for the last segment.
    pub sealed: Option<Place>,
}

/// The file of the segment with this number.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.log"))
}

/// The number of a segment's file; `None` for other files.
pub fn number_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub fn damaged(file: &Path, at: u64, what: impl Into<String>) -> LogError {
    LogError::Damaged { file: file.to_path_buf(), at, what: what.into() }
}

/// Makes the file of a segment that follows `before` (a place whose `at` does not matter), with its start frame. It is
/// there as a whole or not at all, and for certain once `dir` was synced: that has to be before the manifest names it, but
/// for the first one, which is not the topic's before the folder is.
pub fn create(dir: &Path, topic: &Topic, number: u64, before: &Place) -> Result<Segment, LogError> {
    let mut builder = Builder::new();
    let body = builder.begin();
    body.extend_from_slice(&VERSION.to_le_bytes());
    body.extend_from_slice(&number.to_le_bytes());
    before.write(body);
    let frame =
        builder.end(Seed::of(&topic.log_id), Kind::Start, before.number, before.time, topic.partitions as usize);
    let path = path(dir, number);
    durable::write_aside_unsynced(&path, frame)?;
    let start = Place { at: frame.len() as u64, number: before.number + 1, ..before.clone() };
    Ok(Segment { number, path, start, sealed: None })
}

/// Reads the start of a segment and, if `sealed`, its seal. Everything that a segment says of itself is checked.
pub fn open(dir: &Path, topic: &Topic, number: u64, sealed: bool) -> Result<Segment, LogError> {
    let path = path(dir, number);
    let file = File::open(&path)?;
    let (seed, partitions) = (Seed::of(&topic.log_id), topic.partitions as usize);
    let body_len = 12 + Place::len(partitions);
    let mut bytes = vec![0; HEADER_LEN + body_len + 8];
    let len = file.bytes()?;
    if len < bytes.len() as u64 {
        return Err(damaged(&path, len, "the file is shorter than the start of a segment"));
    }
    file.read_exact_at(&mut bytes, 0)?;
    let start = Header::read(&bytes, seed)
        .filter(|header| header.kind == Kind::Start && header.frame_len() == bytes.len())
        .filter(|_| Header::is_intact(&bytes, seed));
    let body = &bytes[HEADER_LEN..];
    let (Some(header), Some(version), Some(is), Some(place)) =
        (start, frame::u32_at(body, 0), frame::u64_at(body, 4), Place::read(body, 12, partitions))
    else {
        return Err(damaged(&path, 0, format!("the start of a segment of topic {:?} is not there", topic.name)));
    };
    if version != VERSION || is != number {
        let what = format!("it says that it is segment {is} of version {version}, not {number} of version {VERSION}");
        return Err(damaged(&path, 0, what));
    }
    let start = Place { at: bytes.len() as u64, number: header.number + 1, ..place };
    let mut segment = Segment { number, path, start, sealed: None };
    if sealed {
        segment.sealed = Some(read_seal(&segment, &file, topic)?.1);
    }
    Ok(segment)
}

/// A seal: the segment's index, and at its end where the seal itself begins, so that it is found from the end of the
/// file.
pub fn seal<'a>(builder: &'a mut Builder, seed: Seed, end: &Place, index: &[Place]) -> &'a [u8] {
    let body = builder.begin();
    index.iter().for_each(|place| place.write(body));
    end.write(body);
    body.extend_from_slice(&end.at.to_le_bytes());
    builder.end(seed, Kind::Seal, end.number, end.time, index.len() + 1)
}

/// Reads the index of a sealed segment, and where its seal begins.
pub fn read_seal(segment: &Segment, file: &File, topic: &Topic) -> Result<(Vec<Place>, Place), LogError> {
    let (seed, partitions) = (Seed::of(&topic.log_id), topic.partitions as usize);
    let len = file.bytes()?;
    let no_seal = || damaged(&segment.path, len, "its end is missing: a later segment says that it was complete");
    let mut tail = [0; 16];
    let tail_at = len.checked_sub(16).ok_or_else(no_seal)?;
    file.read_exact_at(&mut tail, tail_at)?;
    let at = frame::u64_at(&tail, 0).filter(|at| *at < tail_at).ok_or_else(no_seal)?;
    if len - at > FRAME_BYTES_MAX as u64 {
        return Err(no_seal());
    }
    let mut bytes = vec![0; (len - at) as usize];
    file.read_exact_at(&mut bytes, at)?;
    let header = Header::read(&bytes, seed)
        .filter(|header| header.kind == Kind::Seal && header.frame_len() == bytes.len())
        .filter(|_| Header::is_intact(&bytes, seed))
        .ok_or_else(no_seal)?;
    let body = &bytes[HEADER_LEN..];
    let read = |i: usize| Place::read(body, i * Place::len(partitions), partitions);
    let mut index: Vec<Place> = (0..header.count).map(read).collect::<Option<_>>().ok_or_else(no_seal)?;
    let end = index.pop().filter(|end| (end.at, end.number) == (at, header.number)).ok_or_else(no_seal)?;
    Ok((index, end))
}
