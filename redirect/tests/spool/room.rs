//! What was sent leaves the disk.

use super::*;
use crate::app::{Mode, eventually};
use click::{Event, Offsets};
use redirect::spool::SpoolCounters;
use std::sync::atomic::{AtomicBool, Ordering};
use tally_log::Log;
use tally_log::local::LocalLog;

/// Clicks come so that one is on its way in at every moment, and each is acknowledged a little later. What was sent is
/// written down and leaves the disk all the same, and the next process sends what was not acknowledged, and nothing else.
#[tokio::test]
async fn under_a_load_without_a_pause_what_was_sent_leaves_the_disk() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = SpoolSettings { bytes_max: 256 << 20, segment_bytes_max: 64 << 10, ..settings(dir.path()) };
    let sent = settings.dir.join("sent");
    let spool = open(&settings, noon()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool.clone()), ..no_rules() }).await;
    assert_eq!(app.get(&click(1)).await.status, 302);
    let value = bytes::Bytes::from(log.click_texts()[0].1.clone());
    let go_on = Arc::new(AtomicBool::new(true));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (spool, value, go_on) = (spool.clone(), value.clone(), go_on.clone());
        load.spawn(async move {
            while go_on.load(Ordering::Relaxed) {
                // From the answer to the next one's way in nothing else runs on this thread.
                let place = spool.append(number % PARTITIONS, value.clone()).await.unwrap();
                spool.first_send_ended(place, true);
            }
        });
    }
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    eventually("what was sent is written down again and again, and most of it has left", || {
        seen.borrow_mut().extend(next_of(&sent));
        let SpoolCounters { spooled, disk_bytes, .. } = spool.counters();
        seen.borrow().len() > 3 && disk_bytes < spooled * value.len() as u64 / 2
    })
    .await;
    let first = settings.dir.join("log/topics/clicks/00000000000000000000.log");
    assert!(!first.exists(), "its clicks were sent");
    go_on.store(false, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    // The last ones are not acknowledged.
    let all = spool.counters().spooled;
    log.mode.send_replace(Mode::Fails);
    for partition in [0, 0, 3] {
        let place = spool.append(partition, value.clone()).await.unwrap();
        spool.first_send_ended(place, false);
    }
    eventually("the rest is written down", || next_of(&sent).is_some_and(|next| next.iter().sum::<u64>() == all)).await;
    drop(spool);
    app.kill().await;
    let spool = open(&settings, noon()).await;
    assert_eq!((spool.counters().records, spool.counters().bytes), (3, 3 * value.len() as u64));
}

const DIES_IN: &str = "TALLY_TEST_DIES_IN";

/// The process that dies at a commit point, which [`a_death_while_the_spool_is_emptied_loses_no_click`] starts.
#[tokio::test]
#[ignore = "a part of another test"]
async fn dies_while_the_spool_is_emptied() {
    let dir = std::path::PathBuf::from(std::env::var_os(DIES_IN).unwrap());
    let (local, _) = LocalLog::open(&dir.join("log"), tally_log::local::Settings::default(), noon()).unwrap();
    let log = TestLog::before(Arc::new(local)).await;
    let app = start(log.clone(), &settings(&dir)).await;
    for number in 0..5_000 {
        // All of a hundred wait, and then they are sent, before a quick machine has more than the spool has room for.
        match number % 200 {
            0 => _ = log.mode.send_replace(Mode::Fails),
            100 => {
                log.mode.send_replace(Mode::Works);
                eventually("the spool is empty", || waiting(&app) == 0).await;
            }
            _ => {}
        }
        let answer = app.get(&click(number)).await;
        assert_eq!(answer.status, 302);
        println!("answered {}", answer.click_id());
    }
}

#[tokio::test]
async fn a_death_while_the_spool_is_emptied_loses_no_click() {
    // In the second hundred that is sent again; and after the first file of the spool is gone.
    for point in ["spool.replay:150", "spool.removed"] {
        let dir = tempfile::tempdir().unwrap();
        let died = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "spool::room::dies_while_the_spool_is_emptied", "--ignored", "--nocapture"])
            .env(DIES_IN, dir.path())
            .env(faults::DIE_AT, point)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&died.stderr);
        assert!(said.contains(&format!("as {} says", faults::DIE_AT)), "{point}: {said}");
        let answered: Vec<String> = String::from_utf8_lossy(&died.stdout)
            .lines()
            .filter_map(|line| Some(line.split_once("answered ")?.1.to_owned()))
            .collect();
        assert!(answered.len() > 100, "{point}: {}", answered.len());
        let first = dir.path().join("spool/log/topics/clicks/00000000000000000000.log");
        assert!(point != "spool.removed" || !first.exists());

        let (local, _) =
            LocalLog::open(&dir.path().join("log"), tally_log::local::Settings::default(), noon()).unwrap();
        let local = Arc::new(local);
        let app = start(TestLog::before(local.clone()).await, &settings(dir.path())).await;
        eventually("the spool is empty", || waiting(&app) == 0).await;
        let there: std::collections::BTreeSet<_> = clicks_on_disk(&local).await.into_iter().collect();
        let lost: Vec<_> = answered.iter().filter(|click| !there.contains(*click)).collect();
        assert!(lost.is_empty(), "{point}: {lost:?}");
    }
}

/// The ids of the clicks in a log on this disk.
async fn clicks_on_disk(log: &LocalLog) -> Vec<String> {
    let topic = log.topic("clicks").await.unwrap();
    let ends = tally_log::ends(log, &topic).await.unwrap();
    let mut consumer = log.consumer(&topic, &Offsets::beginning(topic.partitions)).await.unwrap();
    let mut ids = Vec::new();
    while consumer.next() != ends {
        for record in consumer.poll(1_000, Duration::from_secs(10)).await.unwrap() {
            if let Event::Click(click) = serde_json::from_slice(&record.value).unwrap() {
                ids.push(click.click_id.to_string());
            }
        }
    }
    ids
}
