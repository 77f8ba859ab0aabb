//! How fast a log takes records, each durable before it is acknowledged, and how fast it is read: the local one, or a
//! Kafka with one broker (such as `dev/kafka run --port 9092 --temporary`).
//!
//!     cargo run --release -p tally-log --example append -- [--seconds 5] [--appenders 64] [--bytes 300] [--dir .]
//!         [--kafka 127.0.0.1:9092 [--linger-ms 1] [--property NAME=VALUE]]
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use click::{Offsets, SystemClock};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::kafka::{self, KafkaLog};
use tally_log::local::{LocalLog, Settings};
use tally_log::{Log, Topic};

fn text(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn flag(name: &str, default: u64) -> u64 {
    text(name).map_or(default, |value| value.parse().unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    match text("--kafka") {
        Some(brokers) => on_kafka(brokers).await,
        None => on_disk().await,
    }
}

async fn on_disk() {
    let dir = tempfile::tempdir_in(text("--dir").unwrap_or_else(|| ".".into())).unwrap();
    let (log, _) = LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock)).unwrap();
    let log = Arc::new(log);
    let topic = log.create_topic("clicks", 4).await.unwrap();
    let (records, seconds) = append(log.clone(), &topic).await;
    let groups = log.groups(&topic).unwrap() as f64;
    println!("{:.0} fsyncs/s, {:.1} records a group", groups / seconds, records as f64 / groups);
    read(&*log, &topic, records).await;
    drop(log);
    let start = Instant::now();
    LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock)).unwrap();
    println!("opened again in {:?}", start.elapsed());
}

async fn on_kafka(brokers: String) {
    let property = text("--property");
    let property = property.as_deref().and_then(|property| property.split_once('='));
    let settings = kafka::Settings {
        brokers: vec![brokers],
        single_node: true,
        linger: Duration::from_millis(flag("--linger-ms", 1)),
        properties: property.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        ..kafka::Settings::default()
    };
    let name = format!("append-{}", std::process::id());
    kafka::topics::create_or_check(&settings, &[&name]).await.unwrap();
    let log = Arc::new(KafkaLog::new(settings).unwrap());
    let topic = log.topic(&name).await.unwrap();
    let (records, _) = append(log.clone(), &topic).await;
    read(&*log, &topic, records).await;
}

/// How many records were appended, and in how many seconds.
async fn append(log: Arc<dyn Log>, topic: &Topic) -> (usize, f64) {
    let (seconds, appenders, bytes) = (flag("--seconds", 5), flag("--appenders", 64), flag("--bytes", 300) as usize);
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..appenders)
        .map(|i| {
            let (log, topic, value) = (log.clone(), topic.clone(), Bytes::from(vec![b'x'; bytes]));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    let answer = log.append(&topic, i as i32 % 4, Some(b"imp_abc123"), value.clone()).await.unwrap();
                    answer.await.unwrap();
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let took = start.elapsed().as_secs_f64();
    latencies.sort();
    let records = latencies.len();
    let quantile = |q: f64| latencies[((records as f64 * q) as usize).min(records - 1)];
    println!(
        "{:.0} records/s, acknowledged after p50 {:?} p99 {:?}",
        records as f64 / took,
        quantile(0.5),
        quantile(0.99)
    );
    (records, took)
}

async fn read(log: &dyn Log, topic: &Topic, records: usize) {
    let mut consumer = log.consumer(topic, &Offsets::beginning(4)).await.unwrap();
    let start = Instant::now();
    let mut read = 0;
    while read < records {
        read += consumer.poll(8192, Duration::from_secs(1)).await.unwrap().len();
    }
    println!("{:.0} records/s read", read as f64 / start.elapsed().as_secs_f64());
}
