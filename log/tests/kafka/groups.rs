//! Where a consumer group of somebody else begins.

use crate::support::{LONG, Test, eventually, unique};
use click::Offsets;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::time::Duration;
use tally_log::LogError;
use tally_log::kafka::groups;

fn consumer(test: &Test, group: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", test.settings.brokers.join(",")).set("group.id", group);
    config.set("auto.offset.reset", "error").set("enable.auto.commit", "false").set("session.timeout.ms", "6000");
    config.create().unwrap()
}

/// What stands there for each partition of the test's topic.
async fn committed(test: &Test, group: &str) -> Vec<Offset> {
    let (client, topic) = (consumer(test, group), test.topic.clone());
    tokio::task::spawn_blocking(move || {
        let mut asked = TopicPartitionList::new();
        for partition in 0..topic.partitions {
            asked.add_partition(&topic.name, partition);
        }
        // The coordinator of a new group takes a moment to be one.
        let found = (0..100).find_map(|_| {
            let found = client.committed_offsets(asked.clone(), LONG).ok();
            found.or_else(|| {
                std::thread::sleep(Duration::from_millis(50));
                None
            })
        });
        let found = found.expect("a coordinator");
        (0..topic.partitions).map(|p| found.find_partition(&topic.name, p).unwrap().offset()).collect()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_group_begins_at_what_was_committed_for_it() {
    let Some(test) = Test::new().await else { return };
    let group = unique();
    for number in 0..5 {
        let value = format!("record {number}").into_bytes().into();
        test.log.append(&test.topic, 1, None, value).await.unwrap().await.unwrap();
    }
    assert_eq!(committed(&test, &group).await, vec![Offset::Invalid; 4]);
    // Partitions that are not named begin at 0, and an earlier commit is overwritten, also by a lower offset.
    for start in [4, 3] {
        groups::commit(&test.settings, &group, &test.topic, &Offsets::from_iter([(1, start)])).await.unwrap();
        let expected = [0, start, 0, 0].map(Offset::Offset);
        assert_eq!(committed(&test, &group).await, expected);
    }
    let found = groups::committed(&test.settings, &group, &test.topic).await.unwrap();
    assert_eq!(found, Offsets::from_iter([(0, 0), (1, 3), (2, 0), (3, 0)]));
    assert!(groups::committed(&test.settings, &unique(), &test.topic).await.unwrap().is_empty());
    let (member, topic) = (consumer(&test, &group), test.topic.name.clone());
    let (member, first) = tokio::task::spawn_blocking(move || {
        member.subscribe(&[&topic]).unwrap();
        // A poll also ends with what is no record, such as a partition that was assigned.
        let first = (0..600).find_map(|_| member.poll(Duration::from_millis(100)));
        let first = first.expect("a record").unwrap();
        let first = (first.partition(), first.offset(), first.payload().unwrap().to_vec());
        (member, first)
    })
    .await
    .unwrap();
    assert_eq!(first, (1, 3, b"record 3".to_vec()));

    // While it has a member nothing is committed for it, and the error says for which.
    let error = groups::commit(&test.settings, &group, &test.topic, &Offsets::from_iter([(1, 1)])).await.unwrap_err();
    let text = error.to_string();
    let doing = format!("commit offsets of topic {:?} for group {group:?}", test.topic.name);
    assert!(matches!(error, LogError::Kafka { .. }) && text.contains(&doing), "{text}");
    assert_eq!(committed(&test, &group).await, [0, 3, 0, 0].map(Offset::Offset));
    tokio::task::spawn_blocking(move || drop(member)).await.unwrap();
    let again = Offsets::from_iter([(1, 1)]);
    eventually("a group without members", async || {
        groups::commit(&test.settings, &group, &test.topic, &again).await.ok()
    })
    .await;
    assert_eq!(committed(&test, &group).await, [0, 1, 0, 0].map(Offset::Offset));
}

#[tokio::test]
async fn brokers_that_are_away_are_said() {
    let Some(test) = Test::new().await else { return };
    let port = services::free_port();
    let wait = Duration::from_secs(1);
    let settings = tally_log::kafka::Settings { request_timeout: wait, ..crate::support::settings(port) };
    let error = groups::commit(&settings, "anyone", &test.topic, &Offsets::default()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("Kafka at 127.0.0.1:{port}: cannot commit offsets of topic ")), "{error}");
    assert!(error.contains("a connection failed: ") && error.contains("Connection refused"), "{error}");
    let error = groups::committed(&settings, "anyone", &test.topic).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("Kafka at 127.0.0.1:{port}: cannot read offsets of topic ")), "{error}");
    assert!(error.contains("a connection failed: ") && error.contains("Connection refused"), "{error}");
}
