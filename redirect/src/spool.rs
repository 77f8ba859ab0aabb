//! The spool: clicks on this machine's disk that the log has not acknowledged in time.
//!
//! It is a local log of its own, with a topic of as many partitions as the clicks have, so that it is durable, ordered and
//! checked in the same way. Beside it stands the file `sent`, which says up to where each partition was sent again and
//! acknowledged. `resend` sends what is left; `aside` keeps what became too old for that; `probe` looks at the disk of a spool that
//! nothing is put into.
//!
//! # What a crash means
//!
//! * before a click is durable here: nobody was answered;
//! * after it: the next start sends it again, whether or not the first send arrived. The log may hold it twice, under one
//!   click id and one impression, and the pipeline counts one;
//! * after it was acknowledged, before `sent` says so: it is sent once more, which is the same.

pub mod aside;
mod probe;
mod queue;
mod resend;

use aside::Aside;
use bytes::Bytes;
use click::{Clock, Millis, Offset, Offsets, Partition};
use faults::Point;
use queue::Queue;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tally_log::durable::{self, checked};
use tally_log::local::{LocalLog, Settings as LogSettings};
use tally_log::{Log, LogError, Topic};
use tokio::sync::Notify;

const TOPIC: &str = "clicks";
const SENT: &str = "sent";
/// What an operator can do about a damaged one.
const SENT_IS_NOT_NEEDED: &str =
    "; without this file all that the spool holds is sent once more, and nothing counts twice";
/// How long a click waits for this disk. It is the last one that is asked.
const APPEND_WAIT: Duration = Duration::from_secs(1);
/// How often a spool that failed is opened again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// From here on it is said that the spool fills up, in parts of a hundred.
const NEARLY_FULL: u64 = 90;
/// What part of `bytes_max` one partition of several may take: one that is stuck leaves as much to all others.
const SHARE: u64 = 2;
/// How often `bytes_max` its segments may take on the disk, and two of them: what waits, and as much that was sent and cannot
/// leave yet. The segments are shared by all partitions and leave in the order in which they came, so that one click that
/// waits, of a partition that is stuck, keeps all that came after it, of any.
const ON_DISK: u64 = 2;

/// What can be set; also a table of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolSettings {
    /// Its folder, of one redirect alone.
    pub dir: PathBuf,
    /// Bytes of clicks that may wait, and half of them of one partition, where there are several. One more is not taken. On the
    /// disk it may be twice as much, and two segments.
    pub bytes_max: u64,
    /// When a file of it is full; what was sent leaves the disk by the file. Small, so that it does so soon.
    pub segment_bytes_max: u64,
    /// Clicks that wait for longer are kept aside and not sent: their impression's claim may be over.
    #[serde(deserialize_with = "serving::config::duration")]
    pub age_max: Duration,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        SpoolSettings {
            dir: "data/spool".into(),
            bytes_max: 256 << 20,
            segment_bytes_max: 8 << 20,
            age_max: Duration::from_secs(3_600),
        }
    }
}

impl SpoolSettings {
    fn disk_bytes_max(&self) -> u64 {
        self.bytes_max.saturating_mul(ON_DISK).saturating_add(self.segment_bytes_max.saturating_mul(2))
    }

    /// Bytes of clicks of one partition that may wait.
    fn share_bytes_max(&self, partitions: Partition) -> u64 {
        if partitions > 1 { self.bytes_max / SHARE } else { self.bytes_max }
    }

    fn log(&self, partitions: Partition) -> LogSettings {
        LogSettings { partitions_on_demand: Some(partitions), segment_bytes_max: self.segment_bytes_max }
    }
}

/// Why a click is not in the spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the spool is full: {0} bytes wait")]
    Full(u64),
    #[error("partition {partition} has its share of the spool: {bytes} of {bytes_max} bytes wait")]
    ShareFull { partition: Partition, bytes: u64, bytes_max: u64 },
    #[error(
        "the spool's files are full: {bytes} of {bytes_max} bytes, held by a click that waits while others after it were sent"
    )]
    DiskFull { bytes: u64, bytes_max: u64 },
    #[error("the spool cannot be written: {0}")]
    Unusable(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    File(#[from] durable::FileError),
    #[error("the spool's disk did not answer within {0:?}")]
    TimedOut(Duration),
    /// At a start. To go on without them would be to forget them.
    #[error(
        "{}: the clicks of partition {partition} from offset {from} to {to} wait there, and the disk gives none of them within {waited:?}",
        .dir.display()
    )]
    Unread { dir: PathBuf, partition: Partition, from: Offset, to: Offset, waited: Duration },
    #[error("the log did not answer within {0:?}")]
    LogTimedOut(Duration),
    #[error("{} is damaged: {what}", .file.display())]
    Damaged { file: PathBuf, what: String },
}

/// Where a click is in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub partition: Partition,
    pub offset: Offset,
}

/// What a spool holds and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolCounters {
    /// Clicks that wait, and their bytes.
    pub records: u64,
    pub bytes: u64,
    /// Partitions of several that have their share of it, or nearly. Past it their clicks are not taken, and those of others
    /// are.
    pub partitions_full: u64,
    /// Age of the oldest of them.
    pub oldest_ms: i64,
    /// Bytes of its files: also what was sent, and has not left yet. 0 while it cannot be written.
    pub disk_bytes: u64,
    /// Clicks that were put in since the start.
    pub spooled: u64,
    /// Sends that followed a first one, and were acknowledged.
    pub sent_again: u64,
    /// Clicks that are kept aside.
    pub aside: u64,
    /// Clicks that could not be put in.
    pub failures: u64,
}

/// A redirect's spool. Clones are the same.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    settings: SpoolSettings,
    clock: Arc<dyn Clock>,
    /// As it was when this process opened it.
    topic: Topic,
    /// What a look at an idle spool's disk found to be wrong, if it did.
    unfit: RwLock<Option<String>>,
    /// None after a failure, until it was opened again.
    open: RwLock<Result<Open, (String, Instant)>>,
    /// By partition.
    queues: Mutex<Vec<Queue>>,
    aside: Aside,
    /// What the file `sent` says, as far as this process wrote it. Whoever tidies has it until that is done, so that an older
    /// word is not written over a newer one.
    sent: tokio::sync::Mutex<Vec<Offset>>,
    /// Somebody put something in, or took something out.
    changed: Notify,
    spooled: AtomicU64,
    sent_again: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone)]
struct Open {
    dir: PathBuf,
    log: Arc<SpoolLog>,
    topic: Topic,
}

/// The spool's log. Its end waits until what was handed over is written. That is right when a process stops; but of one that
/// was given up, whose disk may never answer, the end is waited for by a thread of its own: whoever is the last to let go of
/// it may be answering clicks.
struct SpoolLog {
    log: Option<LocalLog>,
    given_up: AtomicBool,
}

impl Deref for SpoolLog {
    type Target = LocalLog;

    fn deref(&self) -> &LocalLog {
        self.log.as_ref().expect("it is taken out only when this is dropped")
    }
}

impl Drop for SpoolLog {
    fn drop(&mut self) {
        let log = self.log.take();
        if self.given_up.load(Ordering::Relaxed) {
            // Dies the process before the end of it: nobody was answered for what it still writes.
            let closing = std::thread::Builder::new().name("spool-end".into()).spawn(move || drop(log));
            if let Err(error) = closing {
                tracing::error!(%error, "no thread could be had to close the spool's log");
            }
        }
    }
}

/// The file `sent`: a line of JSON, and one with its checksum.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sent {
    log_id: click::LogId,
    /// By partition the first offset that may have to be sent.
    next: Vec<Offset>,
}

impl Spool {
    /// Opens the spool, made if there is none, for a topic of so many partitions.
    ///
    /// # Errors
    /// If it cannot be written, is damaged, is another process's, or has clicks for another number of partitions.
    pub async fn open(
        settings: SpoolSettings,
        partitions: Partition,
        clock: Arc<dyn Clock>,
    ) -> Result<Spool, SpoolError> {
        durable::create_dir_all(&settings.dir)?;
        let open = open_log(&settings, partitions, clock.clone()).await?;
        if open.topic.partitions != partitions {
            let what =
                format!("it is for a topic of {} partitions, and the clicks have {partitions}", open.topic.partitions);
            return Err(SpoolError::Damaged { file: settings.dir, what });
        }
        let next = read_sent(&settings.dir, &open.topic)?;
        let mut queues = Vec::new();
        for (partition, next) in (0..partitions).zip(next) {
            queues.push(Queue::read(&open, settings.dir.join(SENT), partition, next).await?);
        }
        // Only now is this folder certainly nobody else's.
        durable::remove_leftovers(&settings.dir)?;
        let aside = Aside::open(&settings.dir.join(aside::ASIDE))?;
        let waiting: usize = queues.iter().map(Queue::len).sum();
        if waiting > 0 {
            tracing::warn!(waiting, "clicks wait in the spool; they are sent again");
        }
        Ok(Spool(Arc::new(Shared {
            settings,
            clock,
            topic: open.topic.clone(),
            unfit: RwLock::default(),
            open: RwLock::new(Ok(open)),
            queues: Mutex::new(queues),
            aside,
            sent: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            spooled: AtomicU64::new(0),
            sent_again: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })))
    }

    /// Puts a click in. With `Ok` it is durable, and will be in the log or aside. The first send of it, which may still
    /// arrive, is told by [`Spool::first_send_ended`].
    ///
    /// # Errors
    /// The click may be on this disk or not.
    pub async fn append(&self, partition: Partition, value: Bytes) -> Result<Place, SpoolError> {
        let appended = self.append_all(partition, value).await;
        if let Err(error) = &appended {
            // Said once, not a thousand times a second: `readyz` and the metrics say the rest.
            if self.0.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::error!(%error, "a click could not be put into the spool");
            }
        }
        appended
    }

    async fn append_all(&self, partition: Partition, value: Bytes) -> Result<Place, SpoolError> {
        let bytes = value.len() as u64;
        let open = self.current().map_err(SpoolError::Unusable)?;
        let (held, bytes_max) = (open.log.bytes(&open.topic)?, self.0.settings.disk_bytes_max());
        if held.saturating_add(bytes) > bytes_max {
            return Err(SpoolError::DiskFull { bytes: held, bytes_max });
        }
        let mut entering = Entering::new(self, partition, bytes)?;
        // Dies the process before this, nobody was answered and the click is nowhere.
        faults::at(Point::SpoolBefore);
        let writing = async { open.log.append(&open.topic, partition, None, value).await?.await };
        let written = tokio::time::timeout(APPEND_WAIT, writing)
            .await
            .unwrap_or_else(|_| Err(LogError::Stopped("its disk does not answer".into())));
        let appended = written.map_err(|error| {
            self.give_up(&open, &error);
            SpoolError::Log(error)
        })?;
        // Dies it from here on, the click is sent again at the next start.
        faults::at(Point::SpoolAfter);
        entering.entered(appended.offset, appended.appended_at);
        self.0.spooled.fetch_add(1, Ordering::Relaxed);
        self.0.changed.notify_one();
        Ok(Place { partition, offset: appended.offset })
    }

    /// How the first send of a click here ended: acknowledged after all, or to be sent again.
    pub fn first_send_ended(&self, place: Place, acknowledged: bool) {
        self.with(place.partition, |queue| match acknowledged {
            true => queue.done(place.offset),
            false => queue.ready(place.offset),
        });
        self.0.changed.notify_one();
    }

    /// Whether it can be written and has room; if not, why. While one partition has its share there is room for all others.
    pub fn ready(&self) -> Result<(), String> {
        self.current().map_err(|why| format!("the spool cannot be written: {why}"))?;
        if let Some(why) = &*self.0.unfit.read().unwrap_or_else(PoisonError::into_inner) {
            return Err(format!("the spool cannot be written: {why}"));
        }
        let SpoolCounters { bytes, disk_bytes, .. } = self.counters();
        let (bytes_max, disk_bytes_max) = (self.0.settings.bytes_max, self.0.settings.disk_bytes_max());
        if bytes >= bytes_max / 100 * NEARLY_FULL {
            return Err(format!("the spool is nearly full: {bytes} of {bytes_max} bytes wait"));
        }
        if disk_bytes >= disk_bytes_max / 100 * NEARLY_FULL {
            return Err(format!("the spool's files are nearly full: {disk_bytes} of {disk_bytes_max} bytes"));
        }
        Ok(())
    }

    /// What it holds and did.
    pub fn counters(&self) -> SpoolCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { spooled, sent_again, failures, aside, .. } = &*self.0;
        let mut counters = SpoolCounters {
            partitions_full: self.full_partitions().len() as u64,
            spooled: read(spooled),
            sent_again: read(sent_again),
            failures: read(failures),
            aside: aside.records(),
            disk_bytes: self.current().ok().and_then(|open| open.log.bytes(&open.topic).ok()).unwrap_or(0),
            ..SpoolCounters::default()
        };
        let mut oldest: Option<Millis> = None;
        for queue in self.queues().iter() {
            counters.records += queue.len() as u64;
            counters.bytes += queue.bytes();
            oldest = oldest.into_iter().chain(queue.oldest()).min();
        }
        counters.oldest_ms = oldest.map_or(0, |oldest| (self.0.clock.now().get() - oldest.get()).max(0));
        counters
    }

    /// The partitions of several that have their share of it, or nearly.
    fn full_partitions(&self) -> BTreeSet<Partition> {
        let partitions = self.0.topic.partitions;
        let nearly = self.0.settings.share_bytes_max(partitions) / 100 * NEARLY_FULL;
        let queues = self.queues();
        let full = (0..partitions).zip(queues.iter()).filter(|(_, queue)| partitions > 1 && queue.bytes() >= nearly);
        full.map(|(partition, _)| partition).collect()
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Queue>> {
        // A queue is changed in one step, so a panic elsewhere leaves it whole.
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, partition: Partition, look: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        let mut queues = self.queues();
        usize::try_from(partition).ok().and_then(|at| queues.get_mut(at)).map(look)
    }

    fn current(&self) -> Result<Open, String> {
        match &*self.0.open.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(open) => Ok(open.clone()),
            Err((why, _)) => Err(why.clone()),
        }
    }

    /// After a failed write or fsync nobody knows what is on disk until it was read again.
    fn give_up(&self, failed: &Open, error: &LogError) {
        let mut open = self.0.open.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*open, Ok(current) if Arc::ptr_eq(&current.log, &failed.log)) {
            tracing::error!(%error, "the spool cannot be written");
            failed.log.given_up.store(true, Ordering::Relaxed);
            *open = Err((error.to_string(), Instant::now()));
        }
    }

    /// Opens a spool that failed, if it is time to: not before the disk was looked at, by [`Spool::probe`]. What waits in the
    /// queues is as it was: it was durable. What is found beside it was not answered, and its browser was told so: this process
    /// leaves it alone, and the next one sends what of it lies after what was sent. Both are right for a click that nobody was
    /// answered for.
    async fn reopen(&self) {
        let due = match &*self.0.open.read().unwrap_or_else(PoisonError::into_inner) {
            Err((_, at)) => at.elapsed() >= REOPEN_EVERY,
            Ok(_) => false,
        };
        if !due {
            return;
        }
        let partitions = self.queues().len() as Partition;
        let opened = open_log(&self.0.settings, partitions, self.0.clock.clone()).await;
        let mut open = self.0.open.write().unwrap_or_else(PoisonError::into_inner);
        *open = match opened {
            // The offsets that are known are none of this one's.
            Ok(opened) if opened.topic != self.0.topic => {
                let dir = opened.dir.display();
                let why =
                    format!("{dir} is not the spool that it was when this process began, which has to begin again");
                opened.log.given_up.store(true, Ordering::Relaxed);
                Err((why, Instant::now()))
            }
            Ok(opened) => {
                tracing::info!("the spool can be written again");
                Ok(opened)
            }
            Err(error) => Err((error.to_string(), Instant::now())),
        };
    }

    /// Writes down up to where everything was sent, and removes the segments that lie before it, by their offsets: no clock
    /// has a say in what may go. A redirect does it every second; a proof whose time is another says when.
    ///
    /// # Errors
    /// What is not removed stays until the next time.
    pub async fn tidy(&self) -> Result<(), SpoolError> {
        let mut sent = self.0.sent.lock().await;
        let Ok(open) = self.current() else { return Ok(()) };
        let next: Vec<Offset> = self.queues().iter().map(Queue::next).collect();
        // With nothing sent since the last look it is written down already.
        if *sent != next {
            self.write_sent(&open, &next).await?;
            sent.clone_from(&next);
        }
        // Dies the process before this, the next one removes them; on the way, the log finishes it when it is opened.
        if open.log.retain_from(TOPIC, &Offsets::from_iter((0..).zip(next))).await? > 0 {
            faults::at(Point::SpoolRemoved);
        }
        Ok(())
    }

    /// Dies the process before it is in place, what was acknowledged since the last time is sent once more; and also if the old
    /// one comes back after a power cut, so that its name is not synced.
    async fn write_sent(&self, open: &Open, next: &[Offset]) -> Result<(), SpoolError> {
        let sent = Sent { log_id: open.topic.log_id, next: next.to_vec() };
        let path = self.0.settings.dir.join(SENT);
        let json = serde_json::to_string(&sent).expect("numbers and an id, which JSON can hold");
        let written = tokio::task::spawn_blocking(move || {
            durable::write_aside_unsynced(&path, checked::with_sum(&json).as_bytes())
        })
        .await;
        Ok(written.map_err(|panicked| SpoolError::Unusable(panicked.to_string()))??)
    }
}

async fn open_log(settings: &SpoolSettings, partitions: Partition, clock: Arc<dyn Clock>) -> Result<Open, SpoolError> {
    let (dir, settings) = (settings.dir.join("log"), settings.log(partitions));
    let at = dir.clone();
    let opened = tokio::task::spawn_blocking(move || LocalLog::open(&at, settings, clock)).await;
    let (log, repairs) = opened.unwrap_or_else(|_| Err(LogError::Stopped("its opening panicked".into())))?;
    for repair in repairs {
        tracing::warn!(%repair, "the spool was repaired");
    }
    let log = Arc::new(SpoolLog { log: Some(log), given_up: AtomicBool::new(false) });
    let topic = log.topic(TOPIC).await?;
    Ok(Open { dir, log, topic })
}

/// By partition the first offset that may have to be sent. What lies before it is never looked at again, so nothing is taken
/// from a file that is not as it was written.
fn read_sent(dir: &Path, topic: &Topic) -> Result<Vec<Offset>, SpoolError> {
    let file = dir.join(SENT);
    let from_the_beginning = vec![0; usize::try_from(topic.partitions).unwrap_or(0)];
    if !file.exists() {
        return Ok(from_the_beginning);
    }
    let damaged = |what: String| SpoolError::Damaged { file: file.clone(), what: what + SENT_IS_NOT_NEEDED };
    let bytes = durable::read(&file)?;
    let json = checked::line(&bytes).map_err(|what| damaged(what.to_string()))?;
    let sent: Sent = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
    // Of a spool that was taken away, it says nothing about this one.
    if sent.log_id != topic.log_id {
        return Ok(from_the_beginning);
    }
    if sent.next.len() != from_the_beginning.len() {
        return Err(damaged(format!("it is of {} partitions, not {}", sent.next.len(), topic.partitions)));
    }
    Ok(sent.next)
}

/// A click on its way in: its room is taken, and nothing from where it may be on is taken for sent, until it is there or will
/// not be.
struct Entering<'s> {
    spool: &'s Spool,
    partition: Partition,
    /// What [`Queue::enter`] answered.
    began: Offset,
    bytes: u64,
    entered: Option<(Offset, Millis)>,
}

impl<'s> Entering<'s> {
    fn new(spool: &'s Spool, partition: Partition, bytes: u64) -> Result<Self, SpoolError> {
        let mut queues = spool.queues();
        let Shared { settings, topic, .. } = &*spool.0;
        let held: u64 = queues.iter().map(Queue::bytes).sum();
        if held + bytes > settings.bytes_max {
            return Err(SpoolError::Full(held));
        }
        let queue = usize::try_from(partition).ok().and_then(|at| queues.get_mut(at));
        let (of_it, bytes_max) =
            (queue.as_ref().map_or(0, |queue| queue.bytes()), settings.share_bytes_max(topic.partitions));
        if of_it + bytes > bytes_max {
            return Err(SpoolError::ShareFull { partition, bytes: of_it, bytes_max });
        }
        let began = queue.map_or(0, |queue| queue.enter(bytes));
        drop(queues);
        Ok(Entering { spool, partition, began, bytes, entered: None })
    }

    fn entered(&mut self, offset: Offset, at: Millis) {
        self.entered = Some((offset, at));
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        let Entering { began, bytes, entered, .. } = *self;
        self.spool.with(self.partition, |queue| queue.entered(began, bytes, entered));
    }
}

/// The offsets from which partitions are read.
fn from(partition: Partition, offset: Offset) -> Offsets {
    Offsets::from_iter([(partition, offset)])
}
