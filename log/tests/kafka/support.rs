//! What the tests share, and what tests of other crates do to a Kafka as its operator.

use click::Offsets;
use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings, topics};
use tally_log::{Log, Topic};

pub const LONG: Duration = Duration::from_secs(30);

/// Settings for one broker on this port, quick to notice what tests wait for.
pub fn settings(port: u16) -> Settings {
    Settings {
        brokers: vec![format!("127.0.0.1:{port}")],
        single_node: true,
        check_every: Duration::from_millis(100),
        statistics_every: Duration::from_millis(200),
        ..Settings::default()
    }
}

/// A topic of a test's own on the broker that all share, and a log to use it with.
pub struct Test {
    pub log: Arc<dyn Log>,
    pub kafka: Arc<KafkaLog>,
    pub topic: Topic,
    pub settings: Settings,
}

impl Test {
    /// `None` where there is no Kafka.
    pub async fn new() -> Option<Test> {
        Some(Test::with(settings(services::kafka::shared()?)).await)
    }

    pub async fn with(settings: Settings) -> Test {
        let name = unique();
        let report = topics::create_or_check(&settings, &[&name]).await.unwrap();
        assert_eq!((report.created, report.problems), (vec![name.clone()], vec![]));
        let kafka = Arc::new(KafkaLog::new(settings.clone()).unwrap());
        let topic = kafka.topic(&name).await.unwrap();
        Test { log: kafka.clone(), kafka, topic, settings }
    }
}

pub fn unique() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("topic-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

pub fn admin(settings: &Settings) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", settings.brokers.join(",")).create().unwrap()
}

pub fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(LONG)).request_timeout(Some(LONG))
}

/// Makes a topic with these settings, as an operator could.
pub async fn make(settings: &Settings, name: &str, partitions: i32, set: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    topic.config = set.to_vec();
    admin(settings).create_topics([&topic], &options()).await.unwrap().remove(0).unwrap();
}

pub async fn remove(settings: &Settings, name: &str) {
    admin(settings).delete_topics(&[name], &options()).await.unwrap().remove(0).unwrap();
}

/// Gives a topic more partitions, `partitions` in all.
pub async fn widen(settings: &Settings, name: &str, partitions: usize) {
    let more = NewPartitions::new(name, partitions);
    admin(settings).create_partitions([&more], &options()).await.unwrap().remove(0).unwrap();
}

/// Removes the records of a topic before these offsets, as retention does.
pub async fn expire(settings: &Settings, name: &str, before: &Offsets) {
    let mut until = TopicPartitionList::new();
    for (partition, offset) in before.iter() {
        until.add_partition_offset(name, partition, rdkafka::Offset::Offset(offset)).unwrap();
    }
    admin(settings).delete_records(&until, &options()).await.unwrap();
}

/// Asks until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come");
}
