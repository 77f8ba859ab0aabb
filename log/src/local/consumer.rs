//! Reads a topic from given offsets on, and follows it.

use super::frame::Kind;
use super::reader::{self, Cursor, Frames};
use super::segment::damaged;
use super::topic::{End, LocalTopic};
use crate::durable::File;
use crate::{Consumer, LogError, Record};
use async_trait::async_trait;
use click::{Offset, Offsets, Partition};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Goes through the topic's groups in the order in which they became durable, which is fair to all partitions, and
/// leaves out what it was not asked for.
pub struct LocalConsumer {
    topic: Arc<LocalTopic>,
    end: watch::Receiver<End>,
    /// The next offset of every partition that is read.
    next: Vec<Option<Offset>>,
    at: ReadFrom,
    /// Frames that were read, and the file they came from.
    chunk: Option<Chunk>,
}

type Chunk = (Arc<File>, Cursor);

/// Where the next chunk begins.
#[derive(Debug, Clone)]
struct ReadFrom {
    segment: u64,
    at: u64,
    number: u64,
    /// Opened when it is first read.
    file: Option<Arc<File>>,
}

impl LocalConsumer {
    pub fn new(topic: Arc<LocalTopic>, next: Vec<Option<Offset>>) -> Result<Self, LogError> {
        let end = topic.end.subscribe();
        let at = ReadFrom::seek(&topic, &next)?;
        Ok(LocalConsumer { topic, end, next, at, chunk: None })
    }

    /// Takes records out of the chunk.
    fn take(&mut self, records_max: usize) -> Result<Vec<Record>, LogError> {
        let mut records = Vec::new();
        let Some((file, cursor)) = &mut self.chunk else { return Ok(records) };
        while records.len() < records_max {
            let Some(record) = cursor.next() else {
                self.chunk = None;
                break;
            };
            let at = cursor.group_at();
            let wrong = |number: u64, what: &str| damaged(file.path(), at, format!("group {number} {what}"));
            let (group, record) = record.map_err(|number| wrong(number, "holds a malformed record"))?;
            let Some(next) = self.next.get_mut(record.partition) else {
                return Err(wrong(group.number, &format!("has a record of partition {}", record.partition)));
            };
            let Some(next) = next.as_mut().filter(|next| **next <= record.offset) else { continue };
            if *next != record.offset {
                let what = format!("has offset {} where {next} should follow", record.offset);
                return Err(wrong(group.number, &what));
            }
            *next += 1;
            records.push(Record {
                partition: record.partition as Partition,
                offset: record.offset,
                appended_at: group.time,
                value: cursor.bytes().slice(record.value),
            });
        }
        Ok(records)
    }

    /// Reads the next chunk, if there is one before `end`; `false` if not.
    async fn fill(&mut self, end: (u64, u64)) -> Result<bool, LogError> {
        if (self.at.segment, self.at.at) >= end {
            return Ok(false);
        }
        let (topic, at, next) = (self.topic.clone(), self.at.clone(), self.next.clone());
        // If this future is dropped here, the chunk is read again: nothing has moved on yet.
        let read = tokio::task::spawn_blocking(move || at.read(&topic, &next, end)).await;
        let (chunk, at) = read.map_err(|error| LogError::Stopped(format!("a read did not end: {error}")))??;
        self.chunk = chunk;
        self.at = at;
        Ok(true)
    }
}

impl ReadFrom {
    fn seek(topic: &LocalTopic, next: &[Option<Offset>]) -> Result<ReadFrom, LogError> {
        let (segment, place) = topic.seek(next)?;
        Ok(ReadFrom { segment, at: place.at, number: place.number, file: None })
    }

    /// The frames that begin here, and where those after them begin. No frames: they are no longer held, or the
    /// segment had none, and it goes on elsewhere.
    fn read(
        mut self,
        topic: &LocalTopic,
        next: &[Option<Offset>],
        end: (u64, u64),
    ) -> Result<(Option<Chunk>, ReadFrom), LogError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => match topic.open_segment(self.segment)? {
                Some(file) => Arc::new(file),
                None => return Ok((None, Self::seek_again(topic, next)?)),
            },
        };
        let bytes = if self.segment == end.0 { end.1 } else { file.bytes()? };
        if self.at >= bytes {
            return Err(damaged(file.path(), bytes, "the segment ends without its seal, and another one follows"));
        }
        let frames = reader::read(&file, topic.seed, self.at, bytes, self.number)?;
        let Frames { next_at, next_number, .. } = frames;
        let is_last = frames.frames.last().is_some_and(|(header, _)| header.kind == Kind::Seal);
        let after = if is_last {
            ReadFrom { segment: self.segment + 1, at: 0, number: next_number, file: None }
        } else {
            ReadFrom { segment: self.segment, at: next_at, number: next_number, file: Some(file.clone()) }
        };
        Ok((Some((file, Cursor::new(frames))), after))
    }

    /// The segment was removed. That is an error only if it held a record that was still to be read.
    fn seek_again(topic: &LocalTopic, next: &[Option<Offset>]) -> Result<ReadFrom, LogError> {
        for (partition, next) in next.iter().enumerate() {
            let Some(next) = *next else { continue };
            if next < topic.held(partition as Partition)?.start {
                return Err(topic.out_of_range(partition, next)?);
            }
        }
        Self::seek(topic, next)
    }
}

#[async_trait]
impl Consumer for LocalConsumer {
    async fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<Record>, LogError> {
        let deadline = Instant::now().checked_add(wait);
        if records_max == 0 {
            return Ok(Vec::new());
        }
        loop {
            let records = self.take(records_max)?;
            if !records.is_empty() {
                return Ok(records);
            }
            let end = {
                let end = self.end.borrow_and_update();
                (end.segment, end.place.at)
            };
            if self.fill(end).await? {
                continue;
            }
            let changed = self.end.changed();
            let changed = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, changed).await,
                None => Ok(changed.await),
            };
            match changed {
                Ok(Ok(())) => {}
                // Nothing in time, or nothing ever again.
                Ok(Err(_)) | Err(_) => return Ok(Vec::new()),
            }
        }
    }

    fn next(&self) -> Offsets {
        let next = self.next.iter().enumerate();
        next.filter_map(|(partition, next)| Some((partition as Partition, (*next)?))).collect()
    }
}
