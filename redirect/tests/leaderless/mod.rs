//! The process itself on a real Kafka of two brokers, one of which dies: the partitions that it led have no leader.

use crate::app::Answer;
use click::{Event, Offsets, Partition};
use services::kafka::Kafka;
use services::{Server, free_port};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tally_log::kafka::{KafkaLog, Settings, topics};
use tally_log::partitioner::partition_of;
use tally_log::{Log, Topic};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const LONG: Duration = Duration::from_secs(60);
/// The controller takes a node that is silent for two seconds for dead.
const LINES: [&str; 2] = ["broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=300"];

pub struct Redirect {
    server: Server,
    admin: u16,
    partitions: Partition,
}

impl Redirect {
    fn start(dir: &Path, broker: u16, partitions: Partition) -> Redirect {
        let (command, port, admin) = command(dir, broker);
        let server = Server::start(command, port, &dir.join("redirect.out"), LONG);
        Redirect { server, admin, partitions }
    }

    pub async fn get(port: u16, target: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(stream).await
    }

    /// A click that is answered with a 302: its partition and its id.
    async fn click(&self, impression: &str) -> (Partition, String) {
        let answer = Self::get(self.server.port, &format!("/api/v1/click/{impression}?ad_id=ad_9")).await;
        assert_eq!(answer.status, 302, "{impression}: {answer:?}");
        (partition_of(impression.as_bytes(), self.partitions), answer.click_id())
    }

    async fn metric(&self, name: &str) -> u64 {
        let metrics = Self::get(self.admin, "/metrics").await.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse::<f64>().unwrap() as u64
    }

    /// Clicks that were put into the spool since the start.
    async fn spooled(&self) -> u64 {
        self.metric("tally_spool_puts_total").await
    }
}

/// The process on a Kafka, with its spool in this folder; with its port, and the operators'.
pub fn command(dir: &Path, broker: u16) -> (Command, u16, u16) {
    let (port, admin) = (free_port(), free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally-redirect"));
    for (name, value) in [
        ("LISTEN", format!("127.0.0.1:{port}")),
        ("ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
        ("CATALOG", concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog/sample.csv").into()),
        ("IP_HASH_KEY", "a secret of this test".into()),
        ("SPOOL__DIR", dir.join("spool").display().to_string()),
        // A machine that is busy must not be taken for a log that is stuck.
        ("APPEND_WAIT", "10s".into()),
        ("KAFKA__BROKERS", format!("[\"127.0.0.1:{broker}\"]")),
        ("KAFKA__SINGLE_NODE", "true".into()),
        ("KAFKA__REQUEST_TIMEOUT", "1s".into()),
    ] {
        command.env(format!("TALLY_REDIRECT_{name}"), value);
    }
    (command, port, admin)
}

/// The clicks that partitions hold: the ids of each, in their order.
async fn held(log: &KafkaLog, topic: &Topic, partitions: &[Partition]) -> Vec<(Partition, Vec<String>)> {
    let mut clicks = Vec::new();
    for partition in partitions {
        let began = Instant::now();
        let held = loop {
            // A client may not have heard yet who leads it.
            match log.held(topic, *partition).await {
                Ok(held) => break held,
                Err(error) => assert!(began.elapsed() < LONG, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut consumer = log.consumer(topic, &Offsets::from_iter([(*partition, held.start)])).await.unwrap();
        let mut ids = Vec::new();
        while consumer.next().get(*partition) < held.end {
            let records = consumer.poll(1_000, LONG).await.unwrap();
            assert!(!records.is_empty(), "partition {partition} ends before {}", held.end);
            for record in records {
                if let Event::Click(click) = serde_json::from_slice(&record.value).unwrap() {
                    ids.push(click.click_id.to_string());
                }
            }
        }
        clicks.push((*partition, ids));
    }
    clicks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clicks_of_a_partition_without_a_leader_wait_in_the_spool_and_others_do_not() {
    let [first, second, own] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let Some(broker) = Kafka::start_with(first.path(), &LINES) else { return };
    let mut lost = broker.join(2, second.path());
    let settings = Settings {
        brokers: vec![format!("127.0.0.1:{}", broker.port())],
        single_node: true,
        request_timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    topics::create_or_check(&settings, &["clicks"]).await.unwrap();
    let log = KafkaLog::new(settings).unwrap();
    let topic = log.topic("clicks").await.unwrap();
    let redirect = Redirect::start(own.path(), broker.port(), topic.partitions);
    let mut answered = Vec::new();
    for number in 0..40 {
        answered.push(redirect.click(&format!("before_{number}")).await);
    }
    assert_eq!(redirect.spooled().await, 0);

    lost.kill();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for partition in 0..topic.partitions {
        match log.held(&topic, partition).await {
            Ok(_) => with.push(partition),
            Err(_) => without.push(partition),
        }
    }
    assert!(!with.is_empty() && !without.is_empty(), "with a leader {with:?}, without {without:?}");
    // The first click of each waits as long as a click may; those after it do not.
    let began = redirect.spooled().await;
    let mut expected = began;
    for number in 0..200 {
        let (partition, id) = redirect.click(&format!("without_{number}")).await;
        expected += u64::from(without.contains(&partition));
        answered.push((partition, id));
    }
    assert!(expected > began && expected < began + 200);
    assert_eq!(redirect.spooled().await, expected, "those without a leader, and no other");
    for (partition, ids) in held(&log, &topic, &with).await {
        let of_it: Vec<_> = answered.iter().filter(|(of, _)| *of == partition).map(|(_, id)| id.clone()).collect();
        assert_eq!(ids, of_it, "partition {partition}");
    }

    lost.restart();
    let until = std::time::Instant::now() + LONG;
    while redirect.metric("tally_spool_clicks").await > 0 {
        assert!(std::time::Instant::now() < until, "the spool is not emptied");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Then the way is free again: a click of each goes past the spool.
    let (mut free, mut after) = (BTreeSet::new(), BTreeSet::new());
    for number in 0.. {
        let before = redirect.spooled().await;
        let (partition, id) = redirect.click(&format!("after_{number}")).await;
        after.insert(id);
        if redirect.spooled().await == before {
            free.insert(partition);
        }
        if without.iter().all(|partition| free.contains(partition)) {
            break;
        }
        assert!(std::time::Instant::now() < until + LONG, "only {free:?} take clicks, {without:?} had no leader");
    }
    while redirect.metric("tally_spool_clicks").await > 0 {
        assert!(std::time::Instant::now() < until + LONG, "the spool is not emptied");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Each is there, one that was sent twice perhaps twice, and those up to the broker's return in the order of the answers.
    let partitions: Vec<Partition> = (0..topic.partitions).collect();
    for (partition, ids) in held(&log, &topic, &partitions).await {
        let mut seen = BTreeSet::new();
        let new = ids.into_iter().filter(|id| seen.insert(id.clone()) && !after.remove(id));
        let firsts: Vec<_> = new.collect();
        let of_it: Vec<_> = answered.iter().filter(|(of, _)| *of == partition).map(|(_, id)| id.clone()).collect();
        assert_eq!(firsts, of_it, "partition {partition}");
    }
    assert!(after.is_empty(), "answered, and not in the log: {after:?}");
}
