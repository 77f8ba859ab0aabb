//! What every backend promises.

use bytes::Bytes;
use click::{LogId, Offset, Offsets, Partition};
use std::sync::Arc;
use std::time::Duration;
use tally_log::partitioner::partition_of;
use tally_log::{Log, LogError, RECORD_BYTES_MAX, Record, Topic};

const LONG: Duration = Duration::from_secs(10);

/// Checks a log through a topic of at least two partitions, into which nobody else writes.
pub async fn conformance(log: &Arc<dyn Log>, topic: &Topic) {
    a_topic_is_the_same_each_time(&**log, topic).await;
    records_come_back_in_order(&**log, topic).await;
    what_is_not_there_is_named(&**log, topic).await;
    a_topic_made_anew_is_another_one(&**log, topic).await;
    a_consumer_begins_where_it_is_told(&**log, topic).await;
    a_consumer_follows_and_loses_nothing(&**log, topic).await;
    an_offset_is_found_by_its_time(&**log, topic).await;
    each_key_keeps_its_order_among_many_appenders(log, topic).await;
    a_record_may_be_as_large_as_is_said_and_no_larger(&**log, topic).await;
}

/// Everything that is held, by partition.
pub async fn read_all(log: &dyn Log, topic: &Topic) -> Result<Vec<Vec<Record>>, LogError> {
    let mut start = Offsets::default();
    let mut left = 0;
    for partition in 0..topic.partitions {
        let held = log.held(topic, partition).await?;
        start.set(partition, held.start);
        left += held.end - held.start;
    }
    let mut consumer = log.consumer(topic, &start).await?;
    let mut records = vec![Vec::new(); topic.partitions as usize];
    while left > 0 {
        let batch = consumer.poll(1_000, LONG).await?;
        assert!(!batch.is_empty(), "{left} records never came");
        left -= batch.len() as i64;
        for record in batch {
            records[record.partition as usize].push(record);
        }
    }
    Ok(records)
}

/// The values, in order.
pub fn values(records: &[Record]) -> Vec<&[u8]> {
    records.iter().map(|record| &record.value[..]).collect()
}

/// Appends records of these partitions and sizes, all in flight at once, and checks that each partition holds what
/// was appended to it: `expected`, which is carried on.
pub async fn append_and_read(
    log: &dyn Log,
    topic: &Topic,
    records: &[(Partition, usize)],
    expected: &mut [Vec<Bytes>],
) {
    let mut answers = Vec::new();
    for (n, (partition, bytes)) in records.iter().enumerate() {
        let value = Bytes::from(vec![(*bytes ^ n) as u8; *bytes]);
        answers.push(log.append(topic, *partition, None, value.clone()).await.unwrap());
        expected[*partition as usize].push(value);
    }
    for answer in answers {
        answer.await.unwrap();
    }
    let read = read_all(log, topic).await.unwrap();
    for (read, expected) in read.iter().zip(expected) {
        assert_eq!(values(read), expected.iter().map(|value| &value[..]).collect::<Vec<_>>());
        assert!(read.iter().enumerate().all(|(i, record)| record.offset == i as Offset));
    }
}

async fn a_topic_is_the_same_each_time(log: &dyn Log, topic: &Topic) {
    assert_eq!(log.topic(&topic.name).await.unwrap(), *topic);
}

async fn append(log: &dyn Log, topic: &Topic, partition: Partition, value: &str) -> tally_log::Appended {
    log.append(topic, partition, None, Bytes::copy_from_slice(value.as_bytes())).await.unwrap().await.unwrap()
}

async fn a_topic_made_anew_is_another_one(log: &dyn Log, topic: &Topic) {
    let older = Topic { log_id: LogId::random(), ..topic.clone() };
    let named = |error: LogError| match error {
        LogError::TopicReplaced { topic: name, expected, found } => {
            assert_eq!((name, expected, found), (topic.name.clone(), older.log_id, topic.log_id));
        }
        other => panic!("{other}"),
    };
    named(log.append(&older, 0, None, "x".into()).await.err().unwrap());
    named(log.held(&older, 0).await.unwrap_err());
    named(log.offset_at(&older, 0, click::Millis::new(0)).await.unwrap_err());
    named(log.consumer(&older, &Offsets::from_iter([(0, 0)])).await.err().unwrap());
}

async fn records_come_back_in_order(log: &dyn Log, topic: &Topic) {
    let before = [log.held(topic, 0).await.unwrap().end, log.held(topic, 1).await.unwrap().end];
    // Many in flight at once: each partition keeps the order of the calls.
    let mut answers = Vec::new();
    for n in 0..300 {
        answers.push(log.append(topic, n % 2, Some(&[n as u8]), format!("value {n}").into()).await.unwrap());
    }
    let mut last = [i64::MIN; 2];
    for (n, answer) in answers.into_iter().enumerate() {
        let appended = answer.await.unwrap();
        assert_eq!((appended.partition, appended.offset), (n as i32 % 2, before[n % 2] + n as i64 / 2));
        assert!(appended.appended_at.get() >= last[n % 2]);
        last[n % 2] = appended.appended_at.get();
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
    assert!(unknown(log.append(topic, partition, None, Bytes::new()).await.err().unwrap()));
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
    assert!(matches!(log.append(topic, 0, None, large).await.err().unwrap(), LogError::TooLarge { .. }));
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

async fn an_offset_is_found_by_its_time(log: &dyn Log, topic: &Topic) {
    let mut times = Vec::new();
    let begin = log.held(topic, 1).await.unwrap().end;
    for n in 0..40 {
        times.push(append(log, topic, 1, "at its time").await.appended_at);
        tokio::time::sleep(Duration::from_millis(n % 4)).await;
    }
    let (first, last) = (times[0].get(), times[times.len() - 1].get());
    for at in first + 1..=last + 3 {
        let expected = times.iter().position(|time| time.get() >= at).unwrap_or(times.len());
        let found = log.offset_at(topic, 1, click::Millis::new(at)).await.unwrap();
        assert_eq!(found, begin + expected as Offset, "{at} among {times:?}");
    }
    for long_ago in [i64::MIN, -1, 0] {
        let found = log.offset_at(topic, 1, click::Millis::new(long_ago)).await.unwrap();
        assert_eq!(found, log.held(topic, 1).await.unwrap().start);
    }
}

async fn each_key_keeps_its_order_among_many_appenders(log: &Arc<dyn Log>, topic: &Topic) {
    let (keys, each) = (64, 30);
    let appenders: Vec<_> = (0..keys)
        .map(|key| {
            let (log, topic) = (log.clone(), topic.clone());
            tokio::spawn(async move {
                let name = format!("key {key}");
                let partition = partition_of(name.as_bytes(), topic.partitions);
                let mut offsets = Vec::new();
                for n in 0..each {
                    let value = format!("{key} {n}").into();
                    let answer = log.append(&topic, partition, Some(name.as_bytes()), value).await.unwrap();
                    offsets.push(answer.await.unwrap().offset);
                }
                assert!(offsets.is_sorted());
                (partition, offsets)
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for (key, appender) in appenders.into_iter().enumerate() {
        acknowledged.push((key, appender.await.unwrap()));
    }
    let records = read_all(&**log, topic).await.unwrap();
    for (key, (partition, offsets)) in acknowledged {
        let records = &records[partition as usize];
        for (n, offset) in offsets.into_iter().enumerate() {
            let record = &records[(offset - records[0].offset) as usize];
            assert_eq!((record.offset, &record.value[..]), (offset, format!("{key} {n}").as_bytes()));
        }
    }
}

async fn a_record_may_be_as_large_as_is_said_and_no_larger(log: &dyn Log, topic: &Topic) {
    let largest = |byte: u8| Bytes::from(vec![byte; RECORD_BYTES_MAX]);
    let refused = log.append(topic, 0, None, vec![7; RECORD_BYTES_MAX + 1].into()).await.err().unwrap();
    assert_eq!(refused.to_string(), "a record of 1048577 bytes is larger than 1048576");
    let mut answers = vec![
        log.append(topic, 0, None, largest(7)).await.unwrap(),
        log.append(topic, 0, None, Bytes::new()).await.unwrap(),
    ];
    // More than is read at once, and on the local log in one group.
    for n in 0..20 {
        answers.push(log.append(topic, 1, None, largest(n)).await.unwrap());
    }
    for answer in answers {
        answer.await.unwrap();
    }
    let records = read_all(log, topic).await.unwrap();
    let last = |partition: usize, n: usize| values(&records[partition][records[partition].len() - n..]);
    assert_eq!(last(0, 2), [&largest(7)[..], b""]);
    assert!(last(1, 20).iter().enumerate().all(|(n, value)| *value == largest(n as u8)));
}
