//! Topics that are not what they were: made anew, with more partitions, with another time, or cut off.

use crate::support::{LONG, Test, eventually, expire, make, remove, widen};
use click::{Offset, Offsets, Partition};
use std::time::Duration;
use tally_log::{Log, LogError, Topic};

async fn append(test: &Test, topic: &Topic, n: usize, value: &str) {
    let mut answers = Vec::new();
    for _ in 0..n {
        answers.push(test.log.append(topic, 0, None, value.to_owned().into()).await.unwrap());
    }
    for answer in answers {
        answer.await.unwrap();
    }
}

fn from(partition: Partition, offset: Offset) -> Offsets {
    Offsets::from_iter([(partition, offset)])
}

/// librdkafka goes on in the new topic, at the old one's offsets, when there is something at them.
#[tokio::test]
async fn nothing_of_a_topic_made_anew_is_handed_over() {
    let Some(test) = Test::new().await else { return };
    // Nobody looks at the topic but for the sake of a record.
    let seldom = tally_log::kafka::Settings { check_every: Duration::from_secs(60), ..test.settings };
    let test = Test::with(seldom).await;
    let old = &test.topic;
    let mut consumer = test.log.consumer(old, &from(0, 0)).await.unwrap();
    remove(&test.settings, &old.name).await;
    make(&test.settings, &old.name, 4, &[("message.timestamp.type", "LogAppendTime")]).await;
    let other = tally_log::kafka::KafkaLog::new(test.settings.clone()).unwrap();
    let new = eventually("the new topic", async || other.topic(&old.name).await.ok()).await;
    for _ in 0..5 {
        other.append(&new, 0, None, "new".into()).await.unwrap().await.unwrap();
    }
    let error = eventually("the error", async || match consumer.poll(1_000, Duration::from_millis(50)).await {
        Ok(records) => {
            assert_eq!(records, [], "of another topic");
            None
        }
        Err(error) => Some(error),
    });
    match error.await {
        LogError::TopicReplaced { expected, found, .. } => assert_eq!((expected, found), (old.log_id, new.log_id)),
        // It was asked for in the moment when there was none.
        LogError::UnknownTopic(name) => assert_eq!(name, old.name),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_topic_made_anew_is_noticed_and_named() {
    for records_anew in [0, 50] {
        let Some(test) = Test::new().await else { return };
        let old = &test.topic;
        let mut consumer = test.log.consumer(old, &from(0, 0)).await.unwrap();
        // Batches of one record each, more than may wait: the consumer stands still until it is polled, and does not
        // see that there is no topic for a moment.
        let records = 12;
        for _ in 0..records {
            append(&test, old, 1, "old").await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        remove(&test.settings, &old.name).await;
        make(&test.settings, &old.name, 4, &[("message.timestamp.type", "LogAppendTime")]).await;
        let other = tally_log::kafka::KafkaLog::new(test.settings.clone()).unwrap();
        let new = eventually("the new topic", async || other.topic(&old.name).await.ok()).await;
        for _ in 0..records_anew {
            other.append(&new, 0, None, "new".into()).await.unwrap().await.unwrap();
        }
        let named = |error: LogError| match error {
            LogError::TopicReplaced { topic, expected, found } => {
                assert_eq!((topic, expected, found), (old.name.clone(), old.log_id, new.log_id));
            }
            other => panic!("{other}"),
        };
        let mut read = 0;
        let error = eventually("the error", async || match consumer.poll(1_000, Duration::from_millis(50)).await {
            Ok(records) => {
                assert!(records.iter().all(|record| record.value == "old"), "of another topic");
                read += records.len();
                None
            }
            Err(error) => Some(error),
        });
        named(error.await);
        assert!(read <= records, "{read}");
        // It stays the answer.
        named(consumer.poll(1, LONG).await.unwrap_err());
        let refused = eventually("the refusal", async || {
            let error = test.log.append(old, 0, None, "x".into()).await.err();
            error.filter(|error| !matches!(error, LogError::UnknownTopic(_)))
        });
        named(refused.await);
        named(test.log.held(old, 0).await.unwrap_err());
        named(test.log.consumer(old, &from(0, 0)).await.err().unwrap());
        // The new one is taken into use as any other, by the same log.
        assert_eq!(test.log.topic(&old.name).await.unwrap(), new);
        test.log.append(&new, 0, None, "new".into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn a_topic_that_was_removed_is_unknown() {
    let Some(test) = Test::new().await else { return };
    append(&test, &test.topic, 1, "x").await;
    let mut consumer = test.log.consumer(&test.topic, &from(0, 1)).await.unwrap();
    remove(&test.settings, &test.topic.name).await;
    let unknown = |error: LogError| matches!(error, LogError::UnknownTopic(name) if name == test.topic.name);
    assert!(unknown(eventually("the error", async || consumer.poll(1, LONG).await.err()).await));
    assert!(unknown(test.log.topic(&test.topic.name).await.unwrap_err()));
    let refused = eventually("the refusal", async || test.log.append(&test.topic, 0, None, "x".into()).await.err());
    assert!(unknown(refused.await));
}

#[tokio::test]
async fn partitions_that_were_added_are_refused() {
    let Some(test) = Test::new().await else { return };
    append(&test, &test.topic, 1, "x").await;
    let mut consumer = test.log.consumer(&test.topic, &from(0, 1)).await.unwrap();
    widen(&test.settings, &test.topic.name, 5).await;
    let named = |error: LogError| {
        assert!(matches!(error, LogError::PartitionsChanged { expected: 4, found: 5, .. }), "{error}");
    };
    named(eventually("the error", async || consumer.poll(1, Duration::from_millis(50)).await.err()).await);
    named(eventually("the refusal", async || test.log.append(&test.topic, 0, None, "x".into()).await.err()).await);
    named(test.log.topic(&test.topic.name).await.unwrap_err());
    named(test.log.consumer(&test.topic, &from(0, 0)).await.err().unwrap());
}

#[tokio::test]
async fn records_without_the_time_of_appending_are_refused() {
    let Some(test) = Test::new().await else { return };
    let name = format!("{}-create-time", test.topic.name);
    make(&test.settings, &name, 4, &[("message.timestamp.type", "CreateTime")]).await;
    let topic = test.log.topic(&name).await.unwrap();
    let error = test.log.append(&topic, 0, None, "x".into()).await.unwrap().await.unwrap_err();
    assert!(matches!(&error, LogError::NotAppendTime { topic } if *topic == name), "{error}");
    let mut consumer = test.log.consumer(&topic, &from(0, 0)).await.unwrap();
    let error = consumer.poll(1, LONG).await.unwrap_err();
    assert!(matches!(&error, LogError::NotAppendTime { topic } if *topic == name), "{error}");
}

#[tokio::test]
async fn an_offset_that_is_no_longer_held_is_named_and_nothing_is_skipped() {
    let Some(test) = Test::new().await else { return };
    let test = Test::with(tally_log::kafka::Settings { fetched_bytes_max: 4 << 20, ..test.settings }).await;
    let mut quiet = test.log.consumer(&test.topic, &from(1, 0)).await.unwrap();
    // More than a consumer may hold: it stops fetching until it is polled.
    let records = 60;
    for n in 0..records {
        let value = vec![n as u8; 1 << 20].into();
        test.log.append(&test.topic, 0, None, value).await.unwrap().await.unwrap();
    }
    let mut slow = test.log.consumer(&test.topic, &from(0, 0)).await.unwrap();
    let first = slow.poll(1, LONG).await.unwrap();
    assert_eq!((first.len(), first[0].offset), (1, 0));
    expire(&test.settings, &test.topic.name, &from(0, records - 2)).await;
    assert_eq!(test.log.held(&test.topic, 0).await.unwrap(), records - 2..records);
    let named = |error: LogError, next: Offset| match error {
        LogError::OutOfRange { topic, partition: 0, offset, held } => {
            assert_eq!((topic, offset, held), (test.topic.name.clone(), next, records - 2..records));
        }
        other => panic!("{other}"),
    };
    // What was fetched already comes, in order; then the error, at the first that does not.
    loop {
        let next = slow.next().get(0);
        match slow.poll(1_000, LONG).await {
            Ok(more) => assert!(more.iter().map(|record| record.offset).eq(next..next + more.len() as i64)),
            Err(error) => {
                assert!(next < records - 2, "everything was fetched, whatever was polled");
                named(error, next);
                break;
            }
        }
    }
    for wrong in [0, records - 3, records + 1] {
        named(test.log.consumer(&test.topic, &from(0, wrong)).await.err().unwrap(), wrong);
    }
    // One that had nothing to read there goes on.
    test.log.append(&test.topic, 1, None, "x".into()).await.unwrap().await.unwrap();
    assert_eq!(quiet.poll(10, LONG).await.unwrap().len(), 1);
}
