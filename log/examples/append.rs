//! How fast the local log takes records, each durable before it is acknowledged, and how fast it is read.
//!
//!     cargo run --release -p tally-log --example append -- [--seconds 5] [--appenders 64] [--bytes 300] [--dir .]
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use click::{Offsets, SystemClock};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::Log;
use tally_log::local::{LocalLog, Settings};

fn flag(name: &str, default: u64) -> u64 {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1).map_or(default, |value| value.parse().unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (seconds, appenders, bytes) = (flag("--seconds", 5), flag("--appenders", 64), flag("--bytes", 300) as usize);
    let dir = std::env::args().skip_while(|arg| arg != "--dir").nth(1).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(dir).unwrap();
    let (log, _) = LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock)).unwrap();
    let log = Arc::new(log);
    let topic = log.create_topic("clicks", 4).await.unwrap();
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..appenders)
        .map(|i| {
            let (log, topic, value) = (log.clone(), topic.clone(), Bytes::from(vec![b'x'; bytes]));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    log.append(&topic, i as i32 % 4, value.clone()).await.unwrap().await.unwrap();
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
    let groups = log.groups(&topic).unwrap();
    println!(
        "{:.0} records/s, acknowledged after p50 {:?} p99 {:?}, {:.0} fsyncs/s, {:.1} records a group",
        records as f64 / took,
        quantile(0.5),
        quantile(0.99),
        groups as f64 / took,
        records as f64 / groups as f64
    );
    let mut consumer = log.consumer(&topic, &Offsets::beginning(4)).await.unwrap();
    let start = Instant::now();
    let mut read = 0;
    while read < records {
        read += consumer.poll(8192, Duration::from_secs(1)).await.unwrap().len();
    }
    println!("{:.0} records/s read", read as f64 / start.elapsed().as_secs_f64());
    drop((log, consumer));
    let start = Instant::now();
    LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock)).unwrap();
    println!("opened again in {:?}", start.elapsed());
}
