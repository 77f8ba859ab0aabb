//! A topic: what its writer, its readers and its callers share.

use super::consumer::LocalConsumer;
use super::frame::{BODY_BYTES_MAX, RECORD_HEADER_LEN, Seed};
use super::manifest::Manifest;
use super::reader;
use super::recover::Recovered;
use super::segment::{self, Place, Segment, damaged};
use super::writer::Writer;
use crate::durable::{self, File};
use crate::{Acknowledgement, Appended, LogError, RECORD_BYTES_MAX, Topic};
use bytes::Bytes;
use click::{Clock, Millis, Offset, Offsets, Partition};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Bytes that a record in flight counts for beside its value: those around it in memory, and no fewer than those
/// before it in its group, so that all that is in flight fits one group.
const RECORD_OVERHEAD: usize = 128;
const _: () = assert!(RECORD_OVERHEAD >= RECORD_HEADER_LEN);

/// A record that waits for its group.
pub struct Waiting {
    pub partition: usize,
    pub value: Bytes,
    pub answer: oneshot::Sender<Result<Appended, LogError>>,
    /// Its share of what may be in flight, given back when it is answered.
    _room: OwnedSemaphorePermit,
}

/// Records in the order in which they came.
#[derive(Default)]
pub struct Queue {
    pub waiting: Vec<Waiting>,
    /// The writer is woken when as many wait.
    pub wake_at: usize,
    /// The log is being closed: what waits is still written.
    pub closing: bool,
    /// Why nothing more is taken.
    pub stopped: Option<String>,
}

/// What is durable, and no more: readers never see past it.
#[derive(Debug, Clone)]
pub struct End {
    pub segment: u64,
    pub place: Place,
}

/// The segments that are held, in order, and the index of the last one.
pub struct Segments {
    /// Never empty.
    pub held: Vec<Segment>,
    pub index: Vec<Place>,
}

impl Segments {
    pub fn first(&self) -> &Segment {
        self.held.first().expect("a topic always has the segment that is written to")
    }
}

/// One topic of an open log.
pub struct LocalTopic {
    pub topic: Topic,
    pub seed: Seed,
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub segment_bytes_max: u64,
    pub queue: Mutex<Queue>,
    /// Wakes the writer.
    pub came: Condvar,
    room: Arc<Semaphore>,
    pub end: watch::Sender<End>,
    pub segments: RwLock<Segments>,
    pub manifest: Mutex<Manifest>,
}

/// A lock whose holder panicked is taken all the same: each is held for a few plain assignments only.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalTopic {
    /// Goes on where a topic was found to end: the topic, and its writer, which is to run on a thread of its own.
    pub fn new(found: Recovered, dir: PathBuf, clock: Arc<dyn Clock>, segment_bytes_max: u64) -> (Arc<Self>, Writer) {
        let segment = found.segments.last().map_or(0, |segment| segment.number);
        let topic = Arc::new(LocalTopic {
            seed: Seed::of(&found.topic.log_id),
            topic: found.topic,
            dir,
            clock,
            segment_bytes_max,
            queue: Mutex::default(),
            came: Condvar::new(),
            room: Arc::new(Semaphore::new(BODY_BYTES_MAX)),
            end: watch::Sender::new(End { segment, place: found.end }),
            segments: RwLock::new(Segments { held: found.segments, index: found.index }),
            manifest: Mutex::new(found.manifest),
        });
        let writer = Writer::new(topic.clone(), found.file);
        (topic, writer)
    }

    pub async fn append(&self, partition: Partition, value: Bytes) -> Result<Acknowledgement, LogError> {
        let partition = self.topic.partition(partition)?;
        if value.len() > RECORD_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: value.len(), bytes_max: RECORD_BYTES_MAX });
        }
        let closed = |_| LogError::Stopped("the log was closed".into());
        let room = (value.len() + RECORD_OVERHEAD) as u32;
        let room = self.room.clone().acquire_many_owned(room).await.map_err(|_| closed(()))?;
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = lock(&self.queue);
            if let Some(why) = &queue.stopped {
                return Err(LogError::Stopped(why.clone()));
            }
            queue.waiting.push(Waiting { partition, value, answer, _room: room });
            if queue.waiting.len() == queue.wake_at {
                self.came.notify_one();
            }
        }
        Ok(Box::pin(async move { answered.await.unwrap_or_else(|_| Err(closed(()))) }))
    }

    pub fn held(&self, partition: Partition) -> Result<Range<Offset>, LogError> {
        let partition = self.topic.partition(partition)?;
        // In this order, so that the end is never before the first, whatever is removed and appended in between.
        let first = self.segments().first().start.next[partition];
        Ok(first..self.end.borrow().place.next[partition])
    }

    pub fn segments(&self) -> std::sync::RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn out_of_range(&self, partition: usize, offset: Offset) -> Result<LogError, LogError> {
        let partition = partition as Partition;
        Ok(LogError::OutOfRange { topic: self.topic.name.clone(), partition, offset, held: self.held(partition)? })
    }

    pub fn consumer(self: Arc<Self>, start: &Offsets) -> Result<LocalConsumer, LogError> {
        let mut next = vec![None; self.topic.partitions as usize];
        for (partition, offset) in start.iter() {
            let i = self.topic.partition(partition)?;
            let held = self.held(partition)?;
            if offset < held.start || offset > held.end {
                return Err(self.out_of_range(i, offset)?);
            }
            next[i] = Some(offset);
        }
        LocalConsumer::new(self, next)
    }

    /// A place before which there is no record that is still to be read: the segment's number, and the place in it.
    /// `next` has the next offset of every partition that is read.
    pub fn seek(&self, next: &[Option<Offset>]) -> Result<(u64, Place), LogError> {
        let behind =
            |place: &Place| next.iter().zip(&place.next).all(|(next, there)| next.is_none_or(|next| *there <= next));
        let (segment, _, index) = self.find(|segment| behind(&segment.start))?;
        let i = index.partition_point(behind).saturating_sub(1);
        Ok((segment.number, index.into_iter().nth(i).unwrap_or(segment.start)))
    }

    /// The first offset of the partition that was appended at or after `at`.
    pub fn offset_at(&self, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        let partition = self.topic.partition(partition)?;
        let before = |place: &Place| place.time < at;
        let (segment, file, index) = self.find(|segment| before(&segment.start))?;
        let i = index.partition_point(before).saturating_sub(1);
        let mut place = index.into_iter().nth(i).unwrap_or(segment.start);
        if !before(&place) {
            return Ok(place.next[partition]);
        }
        let bytes = match &*self.end.borrow() {
            end if end.segment == segment.number => end.place.at,
            _ => file.bytes()?,
        };
        while place.at < bytes {
            let frames = reader::read(&file, self.seed, place.at, bytes, place.number)?;
            if !reader::walk(&file, &frames, &mut place, |_, header| header.time < at)? {
                break;
            }
        }
        Ok(place.next[partition])
    }

    /// The last segment for which `holds` is true (true for some first ones, then false for the others), or the first
    /// one, with its file and its index.
    fn find(&self, holds: impl Fn(&Segment) -> bool) -> Result<(Segment, File, Vec<Place>), LogError> {
        loop {
            let (segment, index) = {
                let segments = self.segments();
                let i = segments.held.partition_point(&holds).saturating_sub(1);
                let segment = segments.held.get(i).unwrap_or(segments.first()).clone();
                let index = segment.sealed.is_none().then(|| segments.index.clone());
                (segment, index)
            };
            // Retention may have removed it meanwhile: then a later one is found.
            let Some(file) = self.open_segment(segment.number)? else { continue };
            let index = match index {
                Some(index) => index,
                None => segment::read_seal(&segment, &file, &self.topic)?.0,
            };
            return Ok((segment, file, index));
        }
    }

    /// Removes the first segments, as long as `is_over` is true of their ends, but never the one that is written to.
    /// How many there were.
    pub fn retain(&self, is_over: impl Fn(&Place) -> bool) -> Result<usize, LogError> {
        let mut manifest = lock(&self.manifest);
        let over: Vec<Segment> = {
            let over = |segment: &&Segment| segment.sealed.as_ref().is_some_and(&is_over);
            self.segments().held.iter().take_while(over).cloned().collect()
        };
        let Some(last) = over.last() else { return Ok(0) };
        // First it is written that they are gone, then they are removed: if the process dies in between, the next one
        // removes them.
        let mut shorter = manifest.clone();
        shorter.first_segment = last.number + 1;
        shorter.write(&self.dir)?;
        *manifest = shorter;
        self.segments.write().unwrap_or_else(PoisonError::into_inner).held.drain(..over.len());
        // One that comes back after a power cut is removed by the next open as well.
        for segment in &over {
            durable::remove_file(&segment.path)?;
        }
        Ok(over.len())
    }

    /// Opens the segment with this number to read; `None` if it is no longer held.
    pub fn open_segment(&self, number: u64) -> Result<Option<File>, LogError> {
        let path = segment::path(&self.dir, number);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(_) if number < self.segments().first().number => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(damaged(&path, 0, "the segment is missing"))
            }
            Err(error) => Err(error.into()),
        }
    }
}
