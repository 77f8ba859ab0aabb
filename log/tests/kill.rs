//! A process that is killed while it appends. A binary of its own: a child that is being started holds what its parent
//! has open for a moment, also the locks of other tests' folders.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "log/conformance.rs"]
mod conformance;
#[allow(dead_code)]
#[path = "log/support.rs"]
mod support;

use click::SystemClock;
use conformance::read_all;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::{PARTITIONS, TOPIC};
use tally_log::Log;
use tally_log::local::{LocalLog, Settings};

/// What the child of the test below does; alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_appends() {
    let Ok(dir) = std::env::var("TALLY_LOG_TEST_DIR") else { return };
    let settings = Settings { segment_bytes_max: 100_000, ..Settings::default() };
    let (log, _) = LocalLog::open(dir.as_ref(), settings, Arc::new(SystemClock)).unwrap();
    let topic = log.topic(TOPIC).await.unwrap();
    let (log, topic) = (Arc::new(log), Arc::new(topic));
    let appenders: Vec<_> = (0..64)
        .map(|i| {
            let (log, topic) = (log.clone(), topic.clone());
            tokio::spawn(async move {
                for n in 0_u64.. {
                    let value = format!("{} {i} {n} {}", std::process::id(), "x".repeat((n % 700) as usize));
                    let appended =
                        log.append(&topic, i % PARTITIONS, None, value.clone().into()).await.unwrap().await.unwrap();
                    // One write a line, so that a kill does not cut it.
                    println!("acknowledged {} {} {value}", appended.partition, appended.offset);
                }
            })
        })
        .collect();
    for appender in appenders {
        appender.await.unwrap();
    }
}

#[tokio::test]
async fn every_acknowledged_record_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_appends", "--nocapture"])
            .env("TALLY_LOG_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            if let Some((_, acknowledgement)) = line.split_once("acknowledged ") {
                acknowledged.push(acknowledgement.to_owned());
                seen += 1;
                if seen == 300 * round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= 300 * round, "the child ended by itself");
        let (log, _) = LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock)).unwrap();
        let topic = log.topic(TOPIC).await.unwrap();
        let records = read_all(&log, &topic).await.unwrap();
        for line in &acknowledged {
            let [partition, offset, value] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            let record = &records[partition.parse::<usize>().unwrap()][offset.parse::<usize>().unwrap()];
            assert_eq!(record.value, value.as_bytes());
        }
    }
}
