//! What every backend promises.

use crate::support::{TestLog, read_all, values};
use bytes::Bytes;
use click::{Offsets, Partition};
use std::time::Duration;
use tally_log::{Log, LogError, Topic};

const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn local() {
    let test = TestLog::new(2_000).await;
    conformance(&test.log, &test.topic).await;
}

/// Checks a log through a topic of at least two partitions, into which nobody else writes.
pub async fn conformance(log: &dyn Log, topic: &Topic) {
    a_topic_is_the_same_each_time(log, topic).await;
    records_come_back_in_order(log, topic).await;
    what_is_not_there_is_named(log, topic).await;
    a_consumer_begins_where_it_is_told(log, topic).await;
    a_consumer_follows_and_loses_nothing(log, topic).await;
}

async fn a_topic_is_the_same_each_time(log: &dyn Log, topic: &Topic) {
    assert_eq!(log.topic(&topic.name).await.unwrap(), *topic);
}

async fn append(log: &dyn Log, topic: &Topic, partition: Partition, value: &str) -> tally_log::Appended {
    log.append(topic, partition, Bytes::copy_from_slice(value.as_bytes())).await.unwrap().await.unwrap()
}

async fn records_come_back_in_order(log: &dyn Log, topic: &Topic) {
    let before = [log.held(topic, 0).await.unwrap().end, log.held(topic, 1).await.unwrap().end];
    // Many in flight at once: each partition keeps the order of the calls.
    let mut answers = Vec::new();
    for n in 0..300 {
        answers.push(log.append(topic, n % 2, format!("value {n}").into()).await.unwrap());
    }
    let mut last = i64::MIN;
    for (n, answer) in answers.into_iter().enumerate() {
        let appended = answer.await.unwrap();
        assert_eq!((appended.partition, appended.offset), (n as i32 % 2, before[n % 2] + n as i64 / 2));
        assert!(appended.appended_at.get() >= last || n < 2);
        last = appended.appended_at.get();
    }
    let records = read_all(log, topic).await.unwrap();
    for partition in 0..2 {
        let records = &records[partition];
        let expected: Vec<String> = (0..150).map(|n| format!("value {}", 2 * n + partition)).collect();
        assert_eq!(values(&records[records.len() - 150..]), expected.iter().map(String::as_bytes).collect::<Vec<_>>());
        assert!(records.windows(2).all(|two| two[0].offset + 1 == two[1].offset));
        assert!(records.windows(2).all(|two| two[0].appended_at <= two[1].appended_at));
    }
}

async fn what_is_not_there_is_named(log: &dyn Log, topic: &Topic) {
    let partition = topic.partitions;
    let unknown = |error: LogError| matches!(error, LogError::UnknownPartition { partition: p, partitions: n, .. } if p == partition && n == partition);
    assert!(unknown(log.append(topic, partition, Bytes::new()).await.err().unwrap()));
    assert!(unknown(log.held(topic, partition).await.unwrap_err()));
    assert!(unknown(log.consumer(topic, &Offsets::from_iter([(partition, 0)])).await.err().unwrap()));
    let held = log.held(topic, 0).await.unwrap();
    for wrong in [-1, held.end + 1] {
        match log.consumer(topic, &Offsets::from_iter([(0, wrong)])).await.err().unwrap() {
            LogError::OutOfRange { partition: 0, offset, held: said, .. } => {
                assert_eq!((offset, said), (wrong, held.clone()))
            }
            other => panic!("{other}"),
        }
    }
    let large = Bytes::from(vec![0; 64 << 20]);
    assert!(matches!(log.append(topic, 0, large).await.err().unwrap(), LogError::TooLarge { .. }));
}

async fn a_consumer_begins_where_it_is_told(log: &dyn Log, topic: &Topic) {
    let all = read_all(log, topic).await.unwrap();
    let held = log.held(topic, 1).await.unwrap();
    for (i, start) in held.clone().enumerate().step_by(37) {
        // Partition 1 alone: nothing of the others comes.
        let mut consumer = log.consumer(topic, &Offsets::from_iter([(1, start)])).await.unwrap();
        let mut read = Vec::new();
        while read.len() < all[1].len() - i {
            let batch = consumer.poll(10, LONG).await.unwrap();
            assert!((1..=10).contains(&batch.len()));
            read.extend(batch);
            assert_eq!(consumer.next(), Offsets::from_iter([(1, start + read.len() as i64)]));
        }
        assert_eq!(read, all[1][i..]);
        assert_eq!(consumer.poll(10, Duration::ZERO).await.unwrap(), []);
    }
    for record in all[1].iter().step_by(50) {
        let at = log.offset_at(topic, 1, record.appended_at).await.unwrap();
        let first = all[1].iter().find(|other| other.appended_at >= record.appended_at).unwrap();
        assert_eq!(at, first.offset);
    }
    let newest = all[1].last().unwrap().appended_at;
    assert_eq!(log.offset_at(topic, 1, newest.plus(1)).await.unwrap(), held.end);
}

async fn a_consumer_follows_and_loses_nothing(log: &dyn Log, topic: &Topic) {
    let end = log.held(topic, 0).await.unwrap().end;
    let mut consumer = log.consumer(topic, &Offsets::from_iter([(0, end)])).await.unwrap();
    for n in 0..50 {
        // A poll that waits is woken, and one that is given up loses nothing.
        let _ = tokio::time::timeout(Duration::from_micros(n * 100), consumer.poll(1, LONG)).await.map(|polled| {
            panic!("nothing was appended, but {polled:?} came");
        });
        let value = format!("followed {n}");
        let (polled, appended) = tokio::join!(consumer.poll(10, LONG), append(log, topic, 0, &value));
        let polled = polled.unwrap();
        assert_eq!(values(&polled), [value.as_bytes()]);
        assert_eq!((polled[0].offset, polled[0].appended_at), (appended.offset, appended.appended_at));
    }
    let n = 500;
    let appends = async {
        for i in 0..n {
            append(log, topic, 0, &i.to_string()).await;
        }
    };
    let reads = async {
        let mut read = Vec::new();
        let mut give_up_us = 0;
        while read.len() < n {
            give_up_us = (give_up_us + 37) % 3_000;
            match tokio::time::timeout(Duration::from_micros(give_up_us), consumer.poll(7, LONG)).await {
                Ok(batch) => read.extend(batch.unwrap()),
                Err(_) => continue,
            }
        }
        read
    };
    let (_, read) = tokio::join!(appends, reads);
    let expected: Vec<String> = (0..n).map(|i| i.to_string()).collect();
    assert_eq!(values(&read), expected.iter().map(String::as_bytes).collect::<Vec<_>>());
}
