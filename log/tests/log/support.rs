//! What the tests share.

use bytes::Bytes;
use click::{Clock, ManualClock, Millis, Partition};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tally_log::local::{LocalLog, Repair, Settings};
use tally_log::{Appended, Log, LogError, Topic};

pub const PARTITIONS: Partition = 4;
pub const TOPIC: &str = "clicks";

/// A log in a folder of its own, with a clock that is set by hand.
pub struct TestLog {
    pub log: LocalLog,
    pub topic: Topic,
    pub clock: Arc<ManualClock>,
    pub settings: Settings,
    pub dir: tempfile::TempDir,
}

impl TestLog {
    pub async fn new(segment_bytes_max: u64) -> TestLog {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_bytes_max, ..Settings::default() };
        let clock = Arc::new(ManualClock::new(Millis::new(1_000)));
        let (log, repairs) = LocalLog::open(dir.path(), settings, clock.clone()).unwrap();
        assert_eq!(repairs, []);
        let topic = log.create_topic(TOPIC, PARTITIONS).await.unwrap();
        TestLog { log, topic, clock, settings, dir }
    }

    /// Closes it and opens it again.
    pub fn reopen(self) -> TestLog {
        let TestLog { log, topic, clock, settings, dir } = self;
        drop(log);
        let (log, repairs) = LocalLog::open(dir.path(), settings, clock.clone()).unwrap();
        assert_eq!(repairs, []);
        TestLog { log, topic, clock, settings, dir }
    }

    /// Where the last frame of the first segment ends, whose last byte is never 0; room for more follows.
    pub fn end(&self) -> u64 {
        let bytes = std::fs::read(self.dir.path().join("topics").join(TOPIC).join(format!("{:020}.log", 0))).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
    }

    /// Appends one record and waits until it is durable: a group of its own.
    pub async fn append(&self, partition: Partition, value: impl Into<Bytes>) -> Appended {
        self.log.append(&self.topic, partition, None, value.into()).await.unwrap().await.unwrap()
    }

    /// What the disk holds at this moment, as a process that dies now leaves it. No segment may be about to be full:
    /// the files are copied one after the other.
    pub fn crashed(&self) -> Crashed {
        let dir = tempfile::tempdir().unwrap();
        let topic = dir.path().join("topics").join(TOPIC);
        std::fs::create_dir_all(&topic).unwrap();
        for entry in std::fs::read_dir(self.dir.path().join("topics").join(TOPIC)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, topic.join(from.file_name().unwrap())).unwrap();
        }
        Crashed { dir, settings: self.settings }
    }
}

/// The files of a log that nobody has open.
pub struct Crashed {
    pub dir: tempfile::TempDir,
    pub settings: Settings,
}

impl Crashed {
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("topics").join(TOPIC).join(name)
    }

    /// The file of a segment.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.file(&format!("{number:020}.log"))
    }

    pub fn open(&self) -> Result<(LocalLog, Vec<Repair>), LogError> {
        LocalLog::open(self.dir.path(), self.settings, Arc::new(ManualClock::new(Millis::new(0))) as Arc<dyn Clock>)
    }

    /// Takes the room after the last frame away, as if the log had been closed.
    pub fn cut_room(&self, end: u64) {
        std::fs::OpenOptions::new().write(true).open(self.segment(0)).unwrap().set_len(end).unwrap();
    }

    /// The file and the byte of the damage that stops it.
    pub fn damage(&self) -> (PathBuf, u64) {
        match self.open() {
            Err(LogError::Damaged { file, at, .. }) => (file, at),
            Err(other) => panic!("{other}"),
            Ok((_, repairs)) => panic!("damage was not found; repairs: {repairs:?}"),
        }
    }
}

/// Closes a log and leaves its files.
pub fn closed(test: TestLog) -> Crashed {
    let TestLog { log, settings, dir, .. } = test;
    drop(log);
    Crashed { dir, settings }
}

/// Changes one bit.
pub fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}
