//! Appending and reading, as every log does, and what Kafka adds to it.

use crate::conformance::{append_and_read, conformance, read_all, values};
use crate::support::{LONG, Test, eventually, settings};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Kind, Metric};
use tally_log::partitioner::partition_of;
use tally_log::{Log, LogError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_conforms() {
    let Some(test) = Test::new().await else { return };
    conformance(&test.log, &test.topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_appended_is_read_by_another_client() {
    let Some(test) = Test::new().await else { return };
    let given = std::env::var("TALLY_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
    println!("TALLY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut expected = vec![Vec::new(); test.topic.partitions as usize];
    let mut log = test.kafka;
    for _ in 0..6 {
        let records: Vec<_> = (0..random.random_range(0..400))
            .map(|_| {
                let size = if random.random_ratio(1, 50) { 300_000 } else { 3_000 };
                (random.random_range(0..4), random.random_range(0..size))
            })
            .collect();
        append_and_read(&*log, &test.topic, &records, &mut expected).await;
        log = KafkaLog::new(test.settings.clone()).unwrap().into();
        append_and_read(&*log, &test.topic, &[], &mut expected).await;
    }
}

/// Any other client puts a key where we do, and finds the key in our records.
#[tokio::test]
async fn keys_are_kept_and_their_partitions_are_kafkas_own() {
    let Some(test) = Test::new().await else { return };
    let keys: Vec<String> = (0..100).map(|n| format!("imp_{n}")).collect();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", test.settings.brokers.join(",")).set("group.id", "other");
    // The partitioner of Kafka's own clients.
    let other: BaseProducer = config.clone().set("partitioner", "murmur2_random").create().unwrap();
    for key in &keys {
        let partition = partition_of(key.as_bytes(), test.topic.partitions);
        let appended = test.log.append(&test.topic, partition, Some(key.as_bytes()), "ours".into()).await.unwrap();
        appended.await.unwrap();
        other.send(BaseRecord::to(&test.topic.name).key(key).payload("theirs")).map_err(|(error, _)| error).unwrap();
    }
    other.flush(LONG).unwrap();
    let reader: BaseConsumer = config.create().unwrap();
    let mut partitions = rdkafka::TopicPartitionList::new();
    for partition in 0..test.topic.partitions {
        partitions.add_partition_offset(&test.topic.name, partition, rdkafka::Offset::Beginning).unwrap();
    }
    reader.assign(&partitions).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 * keys.len() {
        let record = reader.poll(LONG).unwrap().unwrap();
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        assert_eq!(record.partition(), partition_of(key.as_bytes(), test.topic.partitions), "{key}");
        seen.push(key);
    }
    seen.sort();
    let mut expected = [keys.clone(), keys].concat();
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn an_acknowledgement_that_is_dropped_leaves_the_record_in_flight() {
    let Some(test) = Test::new().await else { return };
    drop(test.log.append(&test.topic, 0, None, "first".into()).await.unwrap());
    let last = test.log.append(&test.topic, 0, None, "last".into()).await.unwrap().await.unwrap();
    assert_eq!(last.offset, 1);
    // What is in flight when the log is dropped is appended, too.
    let answers: Vec<_> = [(); 10].map(|()| test.log.append(&test.topic, 0, None, "in flight".into())).into();
    for answer in answers {
        drop(answer.await.unwrap());
    }
    drop((test.log, test.kafka));
    let log = KafkaLog::new(test.settings).unwrap();
    let read = read_all(&log, &test.topic).await.unwrap();
    assert_eq!(values(&read[0][..2]), [b"first" as &[u8], b"last"]);
    assert_eq!(read[0].len(), 12);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let port = services::free_port();
    let log = KafkaLog::new(tally_log::kafka::Settings {
        request_timeout: Duration::from_millis(300),
        delivery_timeout: Duration::from_millis(300),
        ..settings(port)
    });
    let log = log.unwrap();
    let error = log.topic("clicks").await.unwrap_err();
    assert!(matches!(error, LogError::Kafka { .. }));
    let expected = format!(r#"Kafka at 127.0.0.1:{port}: cannot describe topic "clicks": "#);
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn statistics_become_metrics() {
    let Some(test) = Test::new().await else { return };
    for _ in 0..30 {
        test.log.append(&test.topic, 2, None, "x".into()).await.unwrap().await.unwrap();
    }
    let start = click::Offsets::from_iter([(2, 0)]);
    let mut consumer = test.log.consumer(&test.topic, &start).await.unwrap();
    let mut read = 0;
    while read < 30 {
        read += consumer.poll(100, LONG).await.unwrap().len();
    }
    let find = |name: &str, label: Option<(&str, &str)>, holds: &dyn Fn(f64) -> bool| {
        let labelled = |metric: &Metric| {
            label.is_none_or(|(name, value)| metric.labels.iter().any(|(n, v)| *n == name && v == value))
        };
        let metrics = test.kafka.statistics();
        metrics.into_iter().find(|metric| metric.name == name && labelled(metric) && holds(metric.value))
    };
    for (name, label, kind, expected) in [
        ("tally_log_kafka_records_sent_total", None, Kind::Counter, 30.0),
        ("tally_log_kafka_records_fetched_total", None, Kind::Counter, 30.0),
        ("tally_log_kafka_consumer_lag_records", Some(("partition", "2")), Kind::Gauge, 0.0),
        ("tally_log_kafka_unacknowledged_records", None, Kind::Gauge, 0.0),
        ("tally_log_kafka_broker_up", Some(("broker", "1")), Kind::Gauge, 1.0),
        ("tally_log_kafka_producers_replaced_total", None, Kind::Counter, 0.0),
    ] {
        let metric = eventually(name, async || find(name, label, &|value| value == expected)).await;
        assert_eq!(metric.kind, kind);
    }
    // Seconds, not a thousand or a million of them.
    let seconds = |value: f64| value > 0.0 && value < 100.0;
    let name = "tally_log_kafka_round_trip_seconds";
    eventually(name, async || find(name, Some(("quantile", "0.99")), &seconds)).await;
    // A consumer that is gone is not in the metrics for ever.
    drop(consumer);
    let name = "tally_log_kafka_consumer_lag_records";
    eventually("its end", async || find(name, None, &|_| true).is_none().then_some(())).await;
}
