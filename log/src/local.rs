//! The log of one machine: segmented files, fsynced in groups.
//!
//! # Layout
//!
//! One folder a log, one a topic in it; a topic's records of all partitions stand in one row of segments, in the order
//! in which they became durable. So a commit is one write and one fsync, whatever it holds. The file of the segment that
//! is written to is a little longer than what it holds, so that most fsyncs find its length as it was.
//!
//! * `frame`: the one form of everything in a segment, with its checksums
//! * `segment`: files, their start and their seal, the index
//! * `manifest`: what a topic is and which segments it must have
//! * `recover`: what is found when a topic is opened; what is a torn tail and what is damage
//! * `topic`: what writer, readers and callers share; seeking; retention
//! * `writer`: the thread that commits groups
//! * `reader`, `consumer`: chunks of whole frames, and the records in them

mod consumer;
mod frame;
mod manifest;
mod reader;
mod recover;
mod segment;
mod topic;
mod writer;

pub use segment::PARTITIONS_MAX;

use crate::durable::{self, File};
use crate::{Acknowledgement, Consumer, Log, LogError, Topic};
use async_trait::async_trait;
use bytes::Bytes;
use click::{Clock, LogId, Millis, Offset, Offsets, Partition};
use manifest::Manifest;
use segment::Place;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use topic::LocalTopic;

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A topic that does not exist is made with this many partitions when it is first asked for; with `None` it is an
    /// error.
    pub partitions_on_demand: Option<Partition>,
    /// A segment is full at this many bytes; a group can take it past them. What retention removes at once, and what
    /// is read at a start.
    pub segment_bytes_max: u64,
}

impl Settings {
    /// What `segment_bytes_max` may be. Its index must fit one frame.
    pub const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1..=256 << 20;
}

impl Default for Settings {
    fn default() -> Self {
        Settings { partitions_on_demand: Some(4), segment_bytes_max: 128 << 20 }
    }
}

/// What a process or a machine that died left at the end of a topic, and was cut off: bytes of a group that nobody was
/// told is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    pub file: PathBuf,
    pub at: u64,
    pub bytes_cut: u64,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repair { file, at, bytes_cut } = self;
        write!(f, "{}: cut {bytes_cut} bytes of an unfinished write off at byte {at}", file.display())
    }
}

/// A log in a folder of this machine. It is closed when it is dropped: what waits is written first.
pub struct LocalLog(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    settings: Settings,
    clock: Arc<dyn Clock>,
    topics: RwLock<HashMap<String, Running>>,
    /// Held while a topic is made, which takes several fsyncs.
    making: Mutex<()>,
    /// Keeps a second process out of the folder.
    _lock: File,
}

struct Running {
    topic: Arc<LocalTopic>,
    writer: JoinHandle<()>,
}

impl LocalLog {
    /// Opens the log in a folder, which is made if there is none, and says what it had to cut off. Reads the last
    /// segment of every topic: blocks for up to a few tenths of a second each.
    pub fn open(dir: &Path, settings: Settings, clock: Arc<dyn Clock>) -> Result<(LocalLog, Vec<Repair>), LogError> {
        if !Settings::SEGMENT_BYTES.contains(&settings.segment_bytes_max) {
            let allowed = Settings::SEGMENT_BYTES;
            let what = format!("segment_bytes_max is {}, not in {allowed:?}", settings.segment_bytes_max);
            return Err(invalid(dir, what));
        }
        if let Some(partitions) = settings.partitions_on_demand {
            check_partitions(dir, partitions)?;
        }
        durable::create_dir_all(&dir.join("topics"))?;
        let lock = File::lock(&dir.join("lock"))?.ok_or_else(|| LogError::InUse(dir.to_path_buf()))?;
        let topics = dir.join("topics");
        durable::remove_leftovers(&topics)?;
        let inner = Inner {
            dir: topics.clone(),
            settings,
            clock,
            topics: RwLock::default(),
            making: Mutex::new(()),
            _lock: lock,
        };
        let mut repairs = Vec::new();
        for dir in durable::list(&topics)? {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            check_name(&dir, name)?;
            inner.run(name, dir.clone(), &mut repairs)?;
        }
        Ok((LocalLog(Arc::new(inner)), repairs))
    }

    /// Makes a topic, unless there is one of this name and with as many partitions already.
    pub async fn create_topic(&self, name: &str, partitions: Partition) -> Result<Topic, LogError> {
        let topic = match self.0.find(name) {
            Some(topic) => topic.topic.clone(),
            None => {
                let (inner, name) = (self.0.clone(), name.to_owned());
                blocking(move || inner.make(&name, partitions)).await?
            }
        };
        if topic.partitions != partitions {
            let what = format!("the topic has {} partitions for its whole life, not {partitions}", topic.partitions);
            return Err(invalid(&self.0.dir.join(name), what));
        }
        Ok(topic)
    }

    /// Removes records that were appended before `before`: whole segments, so that some of them stay. How many segments
    /// there were. A consumer that has yet to read one of them gets [`LogError::OutOfRange`].
    pub async fn retain(&self, topic: &str, before: Millis) -> Result<usize, LogError> {
        self.remove(topic, move |end| end.time < before).await
    }

    /// Removes records that lie before `next` in their partition: whole segments, the oldest first, and none that has a
    /// record of any partition at or after it. How many segments there were.
    pub async fn retain_from(&self, topic: &str, next: &Offsets) -> Result<usize, LogError> {
        let next = next.clone();
        let is_over = move |end: &Place| (0..).zip(end.next.iter()).all(|(partition, end)| *end <= next.get(partition));
        self.remove(topic, is_over).await
    }

    async fn remove(&self, topic: &str, is_over: impl Fn(&Place) -> bool + Send + 'static) -> Result<usize, LogError> {
        let topic = self.0.find(topic).ok_or_else(|| LogError::UnknownTopic(topic.to_owned()))?;
        let inner = self.0.clone();
        blocking(move || {
            // The folder stays locked until this is done, even if the log is dropped meanwhile.
            let _inner = inner;
            topic.retain(is_over)
        })
        .await
    }

    /// Bytes of the segments that are held, but for their indexes and the room that was made for what comes.
    pub fn bytes(&self, topic: &Topic) -> Result<u64, LogError> {
        let topic = self.open_topic(topic)?;
        let sealed: u64 = topic.segments().held.iter().filter_map(|held| Some(held.sealed.as_ref()?.at)).sum();
        let written = topic.end.borrow().place.at;
        Ok(sealed + written)
    }

    /// How many groups were committed to the topic in its life, counting each start and end of a segment as one: with
    /// the records, how many share an fsync.
    pub fn groups(&self, topic: &Topic) -> Result<u64, LogError> {
        Ok(self.open_topic(topic)?.end.borrow().place.number)
    }

    /// The failure after which a topic takes nothing more, if there was one: only a restart, which looks at what is on
    /// disk, mends it.
    pub fn stopped(&self) -> Option<LogError> {
        let topics = self.0.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().find_map(|running| topic::lock(&running.topic.queue).stopped.clone()).map(LogError::Stopped)
    }

    /// The topic as it is open here, if it is the same one and not an older one of its name.
    fn open_topic(&self, topic: &Topic) -> Result<Arc<LocalTopic>, LogError> {
        let found = self.0.find(&topic.name).ok_or_else(|| LogError::UnknownTopic(topic.name.clone()))?;
        if found.topic.log_id != topic.log_id {
            let (topic, expected, found) = (topic.name.clone(), topic.log_id, found.topic.log_id);
            return Err(LogError::TopicReplaced { topic, expected, found });
        }
        Ok(found)
    }
}

impl Inner {
    fn find(&self, name: &str) -> Option<Arc<LocalTopic>> {
        Some(self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name)?.topic.clone())
    }

    /// Opens a topic's folder and starts its writer.
    fn run(&self, name: &str, dir: PathBuf, repairs: &mut Vec<Repair>) -> Result<Topic, LogError> {
        let found = recover::open(&dir, name, repairs)?;
        let (topic, writer) = LocalTopic::new(found, dir.clone(), self.clock.clone(), self.settings.segment_bytes_max);
        let writer = std::thread::Builder::new().name(format!("log-{name}")).spawn(move || writer.run());
        let running = Running { topic: topic.clone(), writer: writer.map_err(|error| LogError::io(dir, error))? };
        self.topics.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), running);
        Ok(topic.topic.clone())
    }

    /// Makes a topic, or finds that it was made meanwhile.
    fn make(&self, name: &str, partitions: Partition) -> Result<Topic, LogError> {
        let dir = self.dir.join(name);
        check_name(&dir, name)?;
        check_partitions(&dir, partitions)?;
        let _making = topic::lock(&self.making);
        if let Some(topic) = self.find(name) {
            return Ok(topic.topic.clone());
        }
        let topic = Topic { name: name.to_owned(), log_id: LogId::random(), partitions };
        // A topic is there as a whole or not at all: its folder is filled first and then moved into place.
        // Until then nobody looks for it, so what is in it is made durable once, with the manifest, and its first name never.
        let aside = durable::aside(&dir);
        durable::create_dir(&aside)?;
        let next = vec![0; partitions as usize].into();
        segment::create(&aside, &topic, 0, &Place { at: 0, number: 0, time: Millis::new(i64::MIN), next })?;
        Manifest::new(&topic).write(&aside)?;
        durable::rename(&aside, &dir)?;
        self.run(name, dir, &mut Vec::new())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let topics = self.topics.get_mut().unwrap_or_else(PoisonError::into_inner);
        for running in topics.values() {
            topic::lock(&running.topic.queue).closing = true;
            running.topic.came.notify_one();
        }
        for (name, running) in topics.drain() {
            if running.writer.join().is_err() {
                tracing::error!(topic = name, "the writer of the log panicked");
            }
        }
    }
}

#[async_trait]
impl Log for LocalLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        match (self.0.find(name), self.0.settings.partitions_on_demand) {
            (Some(topic), _) => Ok(topic.topic.clone()),
            (None, Some(partitions)) => {
                let (inner, name) = (self.0.clone(), name.to_owned());
                blocking(move || inner.make(&name, partitions)).await
            }
            (None, None) => Err(LogError::UnknownTopic(name.to_owned())),
        }
    }

    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        _key: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        self.open_topic(topic)?.append(partition, value).await
    }

    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        let (topic, start) = (self.open_topic(topic)?, start.clone());
        Ok(Box::new(blocking(move || topic.consumer(&start)).await?))
    }

    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        self.open_topic(topic)?.held(partition)
    }

    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        let topic = self.open_topic(topic)?;
        blocking(move || topic.offset_at(partition, at)).await
    }
}

/// Does what waits for the disk away from the threads that serve everything else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| LogError::Stopped(format!("file work did not end: {error}")))?
}

fn invalid(path: &Path, what: String) -> LogError {
    LogError::io(path, io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// A topic's name is the name of its folder; the same names that Kafka takes, but for a dot in front.
fn check_name(path: &Path, name: &str) -> Result<(), LogError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(allowed) {
        let what = format!("topic name {name:?} is not valid: 1 to 200 of A-Z a-z 0-9 . _ -, not a dot in front");
        return Err(invalid(path, what));
    }
    Ok(())
}

fn check_partitions(path: &Path, partitions: Partition) -> Result<(), LogError> {
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(invalid(path, format!("{partitions} partitions are not possible: 1 to {PARTITIONS_MAX}")));
    }
    Ok(())
}
