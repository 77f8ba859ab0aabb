//! The one form that everything in a segment has.
//!
//! A segment is a row of frames without gaps: one [`Kind::Start`], any number of [`Kind::Group`]s (a group is what one
//! fsync made durable), and at its end one [`Kind::Seal`], which the last segment of a topic does not have yet. All
//! numbers are little-endian.
//!
//! ```text
//!  0  magic      "TL1" and the kind
//!  4  body_len   u32
//!  8  number     u64, one more than that of the frame before, across segments
//! 16  time       i64, append time in ms, never below that of the frame before
//! 24  count      u32, records of a group, entries of a seal, partitions of a start
//! 28  check      u32, low half of xxh3 of the 28 bytes before: tells a header from anything else
//! 32  body
//!     check      u64, xxh3 of header and body, its last byte never 0
//! ```
//!
//! Both checksums are seeded with the log id, so that bytes of another topic, or of a life of this one that is over,
//! are never taken for the topic's. That the last byte is never 0 tells a frame of which the end was not written.

use click::{LogId, Millis, Offset};
use std::ops::Range;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub const HEADER_LEN: usize = 32;
const CHECK_LEN: usize = 8;
/// Most bytes of a body. One group holds everything that is in flight, which is bounded by this.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Most bytes of a frame.
pub const FRAME_BYTES_MAX: usize = HEADER_LEN + BODY_BYTES_MAX + CHECK_LEN;

const MAGIC: [u8; 3] = *b"TL1";
/// Bits that are set in the last byte of every frame: two, so that no single flipped bit can make it 0.
const LAST_BYTE: u64 = 0x81 << 56;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Where the segment stands in the topic.
    Start,
    /// Records that became durable together.
    Group,
    /// The segment is complete; its index.
    Seal,
}

/// The seed of a topic's checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    pub fn of(log_id: &LogId) -> Seed {
        Seed(xxh3_64(log_id.as_bytes()))
    }

    fn sum(self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.0)
    }
}

/// A frame's header, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub body_len: usize,
    pub number: u64,
    pub time: Millis,
    pub count: usize,
}

impl Header {
    /// The header at the start of `bytes`; `None` if it is not one.
    pub fn read(bytes: &[u8], seed: Seed) -> Option<Header> {
        let header = bytes.get(..HEADER_LEN)?;
        let kind = match header.strip_prefix(&MAGIC)?[0] {
            b'A' => Kind::Start,
            b'G' => Kind::Group,
            b'Z' => Kind::Seal,
            _ => return None,
        };
        let body_len = u32_at(header, 4)? as usize;
        let is_one = seed.sum(&header[..28]) as u32 == u32_at(header, 28)? && body_len <= BODY_BYTES_MAX;
        is_one.then_some(Header {
            kind,
            body_len,
            number: u64_at(header, 8)?,
            time: Millis::new(i64_at(header, 16)?),
            count: u32_at(header, 24)? as usize,
        })
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.body_len + CHECK_LEN
    }

    /// Whether `frame`, of [`Self::frame_len`] bytes, is as it was written.
    pub fn is_intact(frame: &[u8], seed: Seed) -> bool {
        let (covered, check) = frame.split_at(frame.len().saturating_sub(CHECK_LEN));
        u64_at(check, 0) == Some(seed.sum(covered) | LAST_BYTE)
    }
}

/// Writes frames into a buffer that is used again.
pub struct Builder(Vec<u8>);

impl Builder {
    pub fn new() -> Self {
        Builder(Vec::new())
    }

    /// Begins a frame, whose body is then appended to the returned buffer: at most [`BODY_BYTES_MAX`] bytes.
    pub fn begin(&mut self) -> &mut Vec<u8> {
        self.0.clear();
        self.0.resize(HEADER_LEN, 0);
        &mut self.0
    }

    /// Ends it; the answer is the whole frame.
    pub fn end(&mut self, seed: Seed, kind: Kind, number: u64, time: Millis, count: usize) -> &[u8] {
        let frame = &mut self.0;
        let body_len = frame.len() - HEADER_LEN;
        assert!(body_len <= BODY_BYTES_MAX, "what goes into one frame is bounded by what may be in flight");
        let kind = match kind {
            Kind::Start => b'A',
            Kind::Group => b'G',
            Kind::Seal => b'Z',
        };
        frame[..3].copy_from_slice(&MAGIC);
        frame[3] = kind;
        frame[4..8].copy_from_slice(&(body_len as u32).to_le_bytes());
        frame[8..16].copy_from_slice(&number.to_le_bytes());
        frame[16..24].copy_from_slice(&time.get().to_le_bytes());
        frame[24..28].copy_from_slice(&(count as u32).to_le_bytes());
        let check = seed.sum(&frame[..28]) as u32;
        frame[28..32].copy_from_slice(&check.to_le_bytes());
        let check = seed.sum(frame) | LAST_BYTE;
        frame.extend_from_slice(&check.to_le_bytes());
        frame
    }
}

/// Bytes before the value of a record in a group: partition u32, length u32, offset i64.
pub const RECORD_HEADER_LEN: usize = 16;

/// Appends a record to a group's body.
pub fn push_record(body: &mut Vec<u8>, partition: usize, offset: Offset, value: &[u8]) {
    body.extend_from_slice(&(partition as u32).to_le_bytes());
    body.extend_from_slice(&(value.len() as u32).to_le_bytes());
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(value);
}

/// A record of a group, as a place in the bytes that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordAt {
    pub partition: usize,
    pub offset: Offset,
    pub value: Range<usize>,
}

/// The record that begins at `at` in `bytes`, in a group that ends at `end`; `None` if that cannot be.
pub fn record_at(bytes: &[u8], at: usize, end: usize) -> Option<RecordAt> {
    let body = bytes.get(..end)?;
    let partition = u32_at(body, at)? as usize;
    let start = at + RECORD_HEADER_LEN;
    let value = start..start.checked_add(u32_at(body, at + 4)? as usize)?;
    let offset = i64_at(body, at + 8)?;
    (value.end <= end).then_some(RecordAt { partition, offset, value })
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    u64_at(bytes, at).map(|n| n as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_any_byte_changed_is_no_frame() {
        let seed = Seed::of(&LogId::from_bytes([1; 16]));
        let mut builder = Builder::new();
        let body = builder.begin();
        push_record(body, 3, 77, b"value");
        push_record(body, 0, 5, b"");
        let frame = builder.end(seed, Kind::Group, 9, Millis::new(1_000), 2).to_vec();
        let whole = |frame: &[u8], seed| {
            Header::read(frame, seed).is_some_and(|h| h.frame_len() == frame.len()) && Header::is_intact(frame, seed)
        };
        let header = Header::read(&frame, seed).unwrap();
        let expected = Header { kind: Kind::Group, body_len: 37, number: 9, time: Millis::new(1_000), count: 2 };
        assert_eq!(header, expected);
        assert!(whole(&frame, seed) && !whole(&frame, Seed::of(&LogId::from_bytes([2; 16]))));
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                assert!(!whole(&flipped, seed), "byte {at} bit {bit}");
                assert_ne!(flipped.last(), Some(&0));
            }
        }
        let end = frame.len() - CHECK_LEN;
        let first = record_at(&frame, HEADER_LEN, end).unwrap();
        assert_eq!((first.partition, first.offset, &frame[first.value.clone()]), (3, 77, &b"value"[..]));
        let second = record_at(&frame, first.value.end, end).unwrap();
        assert_eq!((second.partition, second.offset, second.value), (0, 5, end..end));
        assert_eq!(record_at(&frame, end, end), None);
        assert_eq!(record_at(&frame, HEADER_LEN, end - 17), None, "a value that does not fit its group");
    }
}
