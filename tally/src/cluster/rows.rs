//! How far the rows of a version have come in `raw_clicks`. The topic is large, and rows of a version that works are at
//! its end: it is read from there, and from further back only as long as a partition of the log has no row.

use super::reading::{RECORDS_MAX, next};
use anyhow::Result;
use click::{Millis, Offset, Offsets, Partition};
use serde::Deserialize;
use std::collections::BTreeMap;
use tally_log::{Consumer, Log, Topic, ends};

/// How far back the first look goes, and how many times as far each further one. Heartbeats give every partition a row a
/// second.
const BACK_MS: i64 = 120_000;
const FURTHER: i64 = 12;

/// What was read of the rows of a version, so that each look reads on.
pub struct Seen {
    version: i64,
    /// Where its rows begin at the earliest.
    first: Offsets,
    /// Partitions of `clicks`.
    partitions: Partition,
    rows: Rows,
    reading: Option<Reading>,
}

/// The last rows of a version, by partition of `clicks`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// The offset after the last one's.
    pub next: Offsets,
    /// When it was written.
    pub written: BTreeMap<Partition, Millis>,
}

struct Reading {
    consumer: Box<dyn Consumer>,
    /// It began with the version's first row.
    is_whole: bool,
}

/// As much of a raw row as says whose it is.
#[derive(Deserialize)]
struct Row {
    log_partition: Partition,
    log_offset: Offset,
    version: i64,
}

impl Seen {
    /// Nothing yet of a version whose rows are at or after `first` in `raw_clicks`.
    pub fn new(version: i64, first: Offsets, partitions: Partition) -> Self {
        Seen { version, first, partitions, rows: Rows::default(), reading: None }
    }

    pub fn version(&self) -> i64 {
        self.version
    }

    /// Reads on in `raw_clicks`, to its end of this moment. Answers the last row of each partition of `clicks` that has one
    /// of this version.
    ///
    /// # Errors
    /// If the log fails. What was read counts all the same.
    pub async fn read_on(&mut self, log: &dyn Log, raw_clicks: &Topic, now: Millis) -> Result<&Rows> {
        let mut back_ms = BACK_MS;
        loop {
            let mut reading = match self.reading.take() {
                Some(reading) => reading,
                None => self.open(log, raw_clicks, now.plus(-back_ms)).await?,
            };
            let ends = ends(log, raw_clicks).await?;
            while let Some(records) = next(&mut *reading.consumer, &raw_clicks.name, &ends, RECORDS_MAX).await? {
                for record in records {
                    // A record that is no row is the loader's to complain about.
                    if let Ok(row) = serde_json::from_slice::<Row>(&record.value) {
                        self.take(&row, record.appended_at);
                    }
                }
            }
            if reading.is_whole || (0..self.partitions).all(|partition| self.row(partition).is_some()) {
                self.reading = Some(reading);
                return Ok(&self.rows);
            }
            back_ms = back_ms.saturating_mul(FURTHER);
        }
    }

    /// Begins with rows that were appended at or after `from`.
    // Not `&self`: a consumer is not shared between threads.
    async fn open(&mut self, log: &dyn Log, raw_clicks: &Topic, from: Millis) -> Result<Reading> {
        let (mut start, mut is_whole) = (Offsets::default(), true);
        for partition in 0..raw_clicks.partitions {
            let (first, held) = (self.first.get(partition), log.held(raw_clicks, partition).await?);
            // One that was made anew may end before it, and then all that it holds came later.
            let first = if first > held.end { held.start } else { first.max(held.start) };
            let near = log.offset_at(raw_clicks, partition, from).await?;
            start.set(partition, first.max(near));
            is_whole &= near <= first;
        }
        Ok(Reading { consumer: log.consumer(raw_clicks, &start).await?, is_whole })
    }

    fn row(&self, partition: Partition) -> Option<Offset> {
        self.rows.next.iter().find(|(known, _)| *known == partition).map(|(_, next)| next)
    }

    fn take(&mut self, row: &Row, written: Millis) {
        let next = row.log_offset.saturating_add(1);
        // A row that is written again is no progress.
        if row.version == self.version && self.row(row.log_partition).is_none_or(|known| known < next) {
            self.rows.next.set(row.log_partition, next);
            self.rows.written.insert(row.log_partition, written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use click::ManualClock;
    use std::ops::Range;
    use std::sync::{Arc, Mutex};
    use tally_log::local::{LocalLog, Settings};
    use tally_log::{Acknowledgement, LogError};

    const HOUR_MS: i64 = 3_600_000;

    /// A log that notes where reading began.
    struct Noting {
        log: LocalLog,
        began: Mutex<Vec<Offset>>,
    }

    #[async_trait]
    impl Log for Noting {
        async fn topic(&self, name: &str) -> Result<Topic, LogError> {
            self.log.topic(name).await
        }

        async fn append(
            &self,
            topic: &Topic,
            partition: Partition,
            key: Option<&[u8]>,
            value: Bytes,
        ) -> Result<Acknowledgement, LogError> {
            self.log.append(topic, partition, key, value).await
        }

        async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
            self.began.lock().unwrap().push(start.get(0));
            self.log.consumer(topic, start).await
        }

        async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
            self.log.held(topic, partition).await
        }

        async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
            self.log.offset_at(topic, partition, at).await
        }
    }

    #[tokio::test]
    async fn the_end_is_read_and_more_only_while_a_partition_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Millis::new(1_776_686_400_000)));
        let (log, _) = LocalLog::open(dir.path(), Settings::default(), clock.clone()).unwrap();
        let topic = log.create_topic("raw_clicks", 1).await.unwrap();
        let log = Noting { log, began: Mutex::default() };
        let append = async |value: String| {
            log.append(&topic, 0, None, Bytes::from(value)).await.unwrap().await.unwrap();
        };
        let row = |partition, offset, version| {
            format!(r#"{{"log_partition":{partition},"log_offset":{offset},"version":{version}}}"#)
        };
        let pass = |ms| clock.set(click::Clock::now(&*clock).plus(ms));
        // A row of an older version, then one a partition of this one, a day before those that follow.
        append(row(1, 90, 1)).await;
        append(row(0, 7, 2)).await;
        append("no row".into()).await;
        append(row(1, 3, 2)).await;
        pass(24 * HOUR_MS);
        append(row(0, 9, 2)).await;
        append(row(0, 8, 2)).await;
        let first = Offsets::from_iter([(0, 1)]);
        let look = async |seen: &mut Seen| {
            let rows = seen.read_on(&log, &topic, click::Clock::now(&*clock)).await.unwrap();
            let hours = |at: Millis| (at.get() - 1_776_686_400_000) / HOUR_MS;
            // Hours after the first row, too.
            let rows: Vec<_> = rows.next.iter().map(|(of, next)| (of, next, hours(rows.written[&of]))).collect();
            (rows, std::mem::take(&mut *log.began.lock().unwrap()))
        };
        // Partition 1 has no row near the end: two minutes, 24 minutes, 5 hours and then all of it.
        let mut seen = Seen::new(2, first.clone(), 2);
        assert_eq!(look(&mut seen).await, (vec![(0, 10, 24), (1, 4, 0)], vec![4, 4, 4, 1]));
        // The next look reads on.
        append(row(1, 4, 2)).await;
        assert_eq!(look(&mut seen).await, (vec![(0, 10, 24), (1, 5, 24)], vec![]));
        // With a row of every partition near the end nothing else is read.
        assert_eq!(look(&mut Seen::new(2, first.clone(), 2)).await, (vec![(0, 10, 24), (1, 5, 24)], vec![4]));
        // A version that has written nothing is looked for up to its beginning, once.
        let mut silent = Seen::new(3, first, 2);
        let (rows, began) = look(&mut silent).await;
        assert_eq!((rows, began.last()), (vec![], Some(&1)));
        assert_eq!(look(&mut silent).await, (vec![], vec![]));
        // A topic that ends before a version's beginning was made anew: all of it is looked through.
        let beyond = Offsets::from_iter([(0, 100)]);
        assert_eq!(look(&mut Seen::new(1, beyond.clone(), 2)).await, (vec![(1, 91, 0)], vec![4, 4, 4, 0]));
        assert_eq!(look(&mut Seen::new(2, beyond, 2)).await, (vec![(0, 10, 24), (1, 5, 24)], vec![4]));
    }
}
