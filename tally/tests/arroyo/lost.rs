//! Result topics that expired unread, or were made anew: no minute closes by what is left, it is said what to do, and one
//! command has every row made again. At last `clicks` gets another partition.

use crate::engine::Engine;
use crate::fake::Fake;
use crate::operator::{expire, remove, widen};
use crate::site::{Load, PARTITIONS, Site};
use crate::versions::{LONG, Oracle, all_final, heartbeats, report, room_in_the_minute};
use std::time::{Duration, Instant};
use tally_log::kafka::KafkaLog;
use tally_log::{Log, ends};

/// Waits until the loader's metrics have a line.
async fn until_tells(load: &mut Load, line: &str) {
    let began = Instant::now();
    while !load.tells(line).await {
        assert!(began.elapsed() < LONG, "{line}: {}", load.printed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until it has printed this behind what it printed before, and answers the line.
async fn until_prints(load: &Load, before: usize, text: &str) -> String {
    let began = Instant::now();
    loop {
        let printed = load.printed();
        if let Some(line) = printed[before..].lines().find(|line| line.contains(text)) {
            return line.to_string();
        }
        assert!(began.elapsed() < LONG, "{text}: {printed}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_lost_stop_the_closings_until_they_are_made_again() {
    let fake = Fake::default();
    let Some(site) = Site::start_quick(&fake.listen().await).await else { return };
    let engine = Engine::start(&fake, &site);
    let beats = heartbeats(site.log.clone(), site.clicks.clone());
    let load = site.load();
    site.tally(&["deploy"]).said("version 1 counts");
    let mut oracle = Oracle::default();
    let click = async |oracle: &mut Oracle, impressions: std::ops::Range<i32>| {
        for impression in impressions {
            oracle.click(&site, impression, ["DE", "US"][impression as usize % 2]).await;
        }
    };
    click(&mut oracle, 0..10).await;
    let first = all_final(&site).await;
    assert_eq!((&first, first.values().sum::<i64>()), (&oracle.billed(&site, i64::MAX).await, 10));
    site.tally(&["topics"]).said("checked   clicks_by_minute");

    // While the loader is away, rows of these are written, and expire.
    let printed = load.printed().len();
    load.stop();
    click(&mut oracle, 5..20).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let raw_clicks = site.log.topic("raw_clicks").await.unwrap();
    expire(&site.settings, "raw_clicks", &ends(&*site.log, &raw_clicks).await.unwrap()).await;
    let stands = report(&site).await.complete_through;
    let topics = site.tally(&["topics"]);
    topics.refused("what is wrong with the topics (1)");
    assert!(topics.out.contains("wrong     raw_clicks: partition 0 holds "), "{}", topics.out);
    assert!(
        topics.out.contains("rows expired before they were read\n          `tally deploy --again`"),
        "{}",
        topics.out
    );
    let mut load = site.load();
    until_tells(&mut load, "tally_load_failed 1.0").await;
    let line = until_prints(&load, printed, "raw_clicks\\\" partition 0: offset ").await;
    assert!(line.contains("rows expired before they were read") && line.contains("`tally deploy --again`"), "{line}");
    assert_eq!(report(&site).await.complete_through, stands);
    site.tally(&["deploy", "--again"]).said("version 2 counts");
    assert_eq!(all_final(&site).await, oracle.billed(&site, i64::MAX).await);
    site.tally(&["topics"]).said("checked   raw_clicks");

    // Both are made anew, and are longer than the old ones were before the loader comes back. No minute's rows are due yet.
    load.stop();
    room_in_the_minute(Duration::from_secs(15)).await;
    let positions = site.last().await.result_positions;
    for (name, positions) in [("raw_clicks", positions.raw_clicks), ("clicks_by_minute", positions.clicks_by_minute)] {
        remove(&site.settings, name).await;
        // Made again it is empty.
        let topics = site.tally(&["topics"]);
        for named in [format!("created   {name}\n"), format!("wrong     {name}: partition ")] {
            assert!(!topics.succeeded && topics.out.contains(&named), "{named}: {topics:?}");
        }
        assert!(topics.out.contains("it was made anew, or has lost rows"), "{}", topics.out);
        // One that knew the old topic finds the new one after a while only.
        let log = KafkaLog::new(site.settings.clone()).unwrap();
        let topic = log.topic(name).await.unwrap();
        for partition in 0..PARTITIONS {
            while log.held(&topic, partition).await.unwrap().end < positions.get(partition) {
                log.append(&topic, partition, None, "no row".into()).await.unwrap().await.unwrap();
            }
        }
    }
    click(&mut oracle, 15..30).await;
    let stands = report(&site).await.complete_through;
    let mut load = site.load();
    let printed = load.printed().len();
    until_tells(&mut load, "tally_load_waiting 1.0").await;
    let line = until_prints(&load, printed, "no minute closes").await;
    assert!(line.contains("the engine skipped a record at ") || line.contains("no raw row of partition"), "{line}");
    assert!(line.contains("`tally deploy --again`"), "{line}");
    assert_eq!(report(&site).await.complete_through, stands);
    site.tally(&["deploy", "--again"]).said("version 3 counts");
    assert_eq!(all_final(&site).await, oracle.billed(&site, i64::MAX).await);

    // Made anew and left as they are, they end before what is recorded of them.
    let printed = load.printed().len();
    load.stop();
    drop(engine);
    click(&mut oracle, 25..40).await;
    for name in ["raw_clicks", "clicks_by_minute"] {
        remove(&site.settings, name).await;
        let topics = site.tally(&["topics"]);
        assert!(topics.out.contains(&format!("created   {name}\n")), "{topics:?}");
    }
    let status = site.tally(&["deploy", "--status"]);
    status.refused("problems");
    assert!(status.out.contains("no row of version 3 has come from partition 0"), "{status:?}");
    site.tally(&["deploy", "--again", "--dry-run"]).said("record version 4: unchanged, deployed again");
    let mut load = site.load();
    until_tells(&mut load, "tally_load_failed 1.0").await;
    let line = until_prints(&load, printed, "raw_clicks\\\" partition ").await;
    assert!(line.contains("or the topic was made anew") && line.contains("`tally deploy --again`"), "{line}");
    let engine = Engine::start(&fake, &site);
    site.tally(&["deploy", "--again"]).said("version 4 counts");
    assert_eq!(all_final(&site).await, oracle.billed(&site, i64::MAX).await);

    // Keys would go to other partitions from here on.
    drop(engine);
    let printed = load.printed().len();
    let before = report(&site).await;
    widen(&site.settings, "clicks", PARTITIONS as usize + 1).await;
    until_tells(&mut load, "tally_load_failed 1.0").await;
    until_prints(&load, printed, "has 3 partitions, not 2").await;
    let topics = site.tally(&["topics"]);
    assert!(!topics.succeeded && topics.out.contains("wrong     clicks: it has 3 partitions, not 2"), "{topics:?}");
    let after = report(&site).await;
    assert_eq!((after.complete_through, after.rows), (before.complete_through, before.rows));
    beats.abort();
}
