//! Two brokers, each the only replica of a part of a topic's partitions, one of which dies: those partitions have no leader.

use crate::conformance::read_all;
use crate::faults::{Appenders, Follower, check};
use crate::support::{LONG, Test, eventually, settings};
use click::{Offsets, Partition};
use services::kafka::Kafka;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings};
use tally_log::{Log, LogError};

/// The controller takes a node that is silent for two seconds for dead.
const LINES: [&str; 2] = ["broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=300"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_leader_holds_back_no_other_and_loses_nothing() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(broker) = Kafka::start_with(first.path(), &LINES) else { return };
    let mut lost = broker.join(2, second.path());
    let quick = Settings { request_timeout: Duration::from_secs(1), ..settings(broker.port()) };
    let test = Test::with(quick.clone()).await;
    // Gives up soon; the other one holds on for as long as the broker is away.
    let hasty = KafkaLog::new(Settings { delivery_timeout: Duration::from_secs(5), ..quick }).unwrap();
    let partitions = 0..test.topic.partitions;
    let appenders = Appenders::start(&test.log, &test.topic);

    let follower = Follower::start(&test);
    appenders.until_acknowledged(2_000).await;
    lost.kill();

    // Without a leader nobody can say what a partition holds, and that is said of it alone.
    let mut without: Vec<Partition> = Vec::new();
    let mut with: Vec<Partition> = Vec::new();
    for partition in partitions.clone() {
        match test.log.held(&test.topic, partition).await {
            Ok(_) => with.push(partition),
            Err(error @ LogError::Kafka { .. }) => {
                let named = format!("topic {:?} partition {partition} holds", test.topic.name);
                assert!(error.to_string().contains(&named), "{error}");
                without.push(partition);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(!with.is_empty() && !without.is_empty(), "with a leader {with:?}, without {without:?}");
    let lack = |holds: fn(f64) -> bool| {
        let name = "tally_log_kafka_partitions_without_leader";
        let named = test.kafka.statistics().into_iter().filter(|metric| metric.name == name);
        let found = named.filter(|metric| metric.labels.contains(&("topic", test.topic.name.clone())));
        found.map(|metric| metric.value).filter(|value| holds(*value)).collect::<Vec<_>>()
    };
    // Producer and consumer say the same.
    let expected = vec![without.len() as f64; 2];
    eventually("the lack in the metrics", async || (lack(|value| value > 0.0) == expected).then_some(())).await;

    // An append to one of them fails, and those to others go on while it waits.
    let waiting = test.log.append(&test.topic, without[0], None, "0 999999999".into()).await.unwrap();
    let mut waiting = std::pin::pin!(waiting);
    let given_up = hasty.append(&test.topic, without[0], None, "given up".into()).await.unwrap();
    for number in 0..200 {
        let partition = with[number % with.len()];
        let value = format!("others {number}");
        let appended = hasty.append(&test.topic, partition, None, value.into()).await.unwrap().await.unwrap();
        assert_eq!(appended.partition, partition);
    }
    let error = tokio::time::timeout(LONG, given_up).await.expect("the delivery timeout is over").unwrap_err();
    assert!(matches!(error, LogError::Kafka { .. }), "{error}");
    let nothing = tokio::time::timeout(Duration::ZERO, &mut waiting).await;
    assert!(nothing.is_err(), "its delivery timeout is not over: {nothing:?}");
    // So goes on who appends to many in turn, and the consumer with what came in by then.
    appenders.until_acknowledged(1_000).await;
    for partition in with {
        let end = test.log.held(&test.topic, partition).await.unwrap().end;
        let passed = &follower.seen[partition as usize];
        eventually("the others' records", async || (passed.load(Ordering::Relaxed) >= end).then_some(())).await;
    }

    lost.restart();
    waiting.await.unwrap();
    eventually("an end of the lack", async || lack(|value| value > 0.0).is_empty().then_some(())).await;
    appenders.until_acknowledged(2_000).await;
    let told = appenders.end().await;
    assert!(told.values().all(Option::is_some), "the broker came back before any record was given up");
    let mut read = read_all(&*test.log, &test.topic).await.unwrap();

    assert_eq!(follower.end().await, read);
    for records in &mut read {
        records.retain(|record| {
            let beside = [&b"others "[..], b"given up", b"0 999999999"];
            !beside.iter().any(|start| record.value.starts_with(start))
        });
    }
    check(&told, &read);
}

/// Each client asks one broker for the topic's id, again and again, and does not know before that it may die.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_when_the_broker_that_it_asked_is_dead() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(broker) = Kafka::start_with(first.path(), &LINES) else { return };
    let mut lost = broker.join(2, second.path());
    let test = Test::with(settings(broker.port())).await;
    let start = Offsets::beginning(test.topic.partitions);
    let mut consumers = Vec::new();
    for _ in 0..8 {
        let log = KafkaLog::new(test.settings.clone()).unwrap();
        let topic = log.topic(&test.topic.name).await.unwrap();
        consumers.push((log.consumer(&topic, &start).await.unwrap(), log));
    }
    lost.kill();
    let with = eventually("a partition that has a leader", async || {
        for partition in 0..test.topic.partitions {
            let appended = test.log.append(&test.topic, partition, None, "after".into()).await.unwrap();
            if let Ok(Ok(appended)) = tokio::time::timeout(Duration::from_secs(2), appended).await {
                return Some(appended.partition);
            }
        }
        None
    })
    .await;
    for (mut consumer, _log) in consumers {
        let records = consumer.poll(1, LONG).await.unwrap();
        assert_eq!(records.first().map(|record| record.partition), Some(with), "{records:?}");
    }
}
