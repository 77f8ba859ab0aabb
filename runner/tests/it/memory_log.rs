//! A log in memory whose records have the append times that a test gives them.

use async_trait::async_trait;
use bytes::Bytes;
use click::{LogId, Millis, Offset, Offsets, Partition};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tally_log::{Acknowledgement, Appended, Consumer, Log, LogError, Record, Topic};

type Records = BTreeMap<(String, Partition), Vec<Record>>;

#[derive(Clone)]
pub struct MemoryLog {
    records: Arc<Mutex<Records>>,
    /// A consumer hands out at most this many at once.
    batch_max: usize,
}

pub const PARTITIONS: Partition = 4;

pub fn log_id() -> LogId {
    LogId::from_bytes([1; 16])
}

impl MemoryLog {
    pub fn new(batch_max: usize) -> Self {
        MemoryLog { records: Arc::default(), batch_max }
    }

    pub fn put(&self, topic: &str, partition: Partition, appended_at: Millis, value: impl Into<Bytes>) -> Offset {
        let mut records = self.records.lock().unwrap();
        let records = records.entry((topic.to_string(), partition)).or_default();
        let offset = records.len() as Offset;
        records.push(Record { partition, offset, appended_at, value: value.into() });
        offset
    }

    /// Values of all partitions.
    pub fn values(&self, topic: &str) -> Vec<Bytes> {
        let records = self.records.lock().unwrap();
        let of = records.iter().filter(|((name, _), _)| name == topic);
        of.flat_map(|(_, records)| records.iter().map(|record| record.value.clone())).collect()
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        Ok(Topic { name: name.to_string(), log_id: log_id(), partitions: PARTITIONS })
    }

    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        _: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        let appended_at = Millis::new(0);
        let offset = self.put(&topic.name, partition, appended_at, value);
        Ok(Box::pin(async move { Ok(Appended { partition, offset, appended_at }) }))
    }

    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(MemoryConsumer { log: self.clone(), topic: topic.name.clone(), next: start.clone() }))
    }

    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        let records = self.records.lock().unwrap();
        Ok(0..records.get(&(topic.name.clone(), partition)).map_or(0, |r| r.len() as Offset))
    }

    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        let records = self.records.lock().unwrap();
        let records = records.get(&(topic.name.clone(), partition));
        Ok(records.map_or(0, |r| r.partition_point(|record| record.appended_at < at) as Offset))
    }
}

struct MemoryConsumer {
    log: MemoryLog,
    topic: String,
    next: Offsets,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn poll(&mut self, records_max: usize, _: Duration) -> Result<Vec<Record>, LogError> {
        let records = self.log.records.lock().unwrap();
        let mut taken = Vec::new();
        for partition in 0..PARTITIONS {
            let room = records_max.min(self.log.batch_max) - taken.len();
            let Some(held) = records.get(&(self.topic.clone(), partition)) else { continue };
            let from = self.next.get(partition) as usize;
            let part = &held[from.min(held.len())..held.len().min(from + room)];
            self.next.set(partition, (from + part.len()) as Offset);
            taken.extend_from_slice(part);
        }
        Ok(taken)
    }

    fn next(&self) -> Offsets {
        self.next.clone()
    }
}
