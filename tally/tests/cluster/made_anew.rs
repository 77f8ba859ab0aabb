//! The topic of clicks is removed and made anew while everything runs: nothing of the new one is taken for the old one's,
//! what is final stays, every command says what can be done, and that way leads on.

use crate::operator::{make, remove};
use crate::processes::{Cluster, Name};
use crate::repair::{LONG, click, complete_through, rows};
use click::{Clock, SystemClock};
use std::time::{Duration, Instant};
use tally_log::{Log, LogError};

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_made_anew_stops_the_closings_and_changes_nothing_that_is_final() {
    let Some(mut cluster) = Cluster::start() else { return };
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for impression in ["imp_1", "imp_2", "imp_3", "imp_1"] {
        click(&cluster, &client, impression).await;
    }
    let through = SystemClock.now().minute().end();
    let first = cluster.wait_for(0, LONG, |report| complete_through(report) >= through).await;
    assert_eq!(rows(&first).iter().map(|row| row.1).sum::<i64>(), 3, "{first}");
    let (topics, printed) = cluster.tally(&["topics"]);
    assert!(topics && printed.contains("checked   clicks\n"), "{printed}");

    // Clicks come all the while; the redirect answers them from its spool once it has seen that its log is gone. What it appends
    // before is in a topic that is removed below.
    let mut number = 0;
    let more = async |number: &mut i32| {
        for _ in 0..5 {
            *number += 1;
            click(&cluster, &client, &format!("imp_after_{number}")).await;
        }
    };
    let log = cluster.log();
    let old = log.topic("clicks").await.unwrap();
    remove(&cluster.settings(), "clicks").await;
    make(&cluster.settings(), "clicks", old.partitions, &[("message.timestamp.type", "LogAppendTime")]).await;
    let new = log.topic("clicks").await.unwrap();
    assert_ne!(new.log_id, old.log_id);
    // What is in it now looks like the next records of the old one.
    for partition in 0..new.partitions {
        for _ in 0..2_000 {
            let beat = format!(r#"{{"kind":"heartbeat","timestamp":"{}"}}"#, SystemClock.now());
            drop(log.append(&new, partition, None, beat.into()).await.unwrap());
        }
    }
    let stands = complete_through(&cluster.report(0).await);
    let began = Instant::now();
    while !cluster.printed(Name::Redirect(0)).contains("appends to the older topic are refused from here on")
        && !cluster.printed(Name::Redirect(0)).contains("appends are refused until the topic is as it was")
    {
        assert!(began.elapsed() < LONG, "{}", cluster.printed(Name::Redirect(0)));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    while !cluster.admin(Name::Load, "/metrics").await.1.lines().any(|line| line == "tally_load_failed 1.0") {
        assert!(began.elapsed() < LONG, "{}", cluster.printed(Name::Load));
        more(&mut number).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let [counts, found] =
        [format!("counts log {}, but ", old.log_id), format!(" is log {}: it was made anew", new.log_id)];
    loop {
        let printed = cluster.printed(Name::Load);
        if printed.lines().any(|line| line.contains(&counts) && line.contains(&found)) {
            break;
        }
        assert!(began.elapsed() < LONG, "{}", cluster.printed(Name::Load));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(cluster.printed(Name::Load).contains("Nothing more is counted. `tally topics` says what can be done"));
    assert_eq!(cluster.admin(Name::Load, "/readyz").await.0, 503);
    let (topics, printed) = cluster.tally(&["topics"]);
    let wrong = format!(
        "wrong     clicks: it was made anew: it is log {}, and the warehouse in database tally counts",
        new.log_id
    );
    assert!(!topics && printed.contains(&wrong) && printed.contains("begin a new warehouse"), "{printed}");

    // Two minutes would have become final.
    while SystemClock.now() < stands.plus(150_000) {
        more(&mut number).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let after = cluster.report(0).await;
    assert_eq!(complete_through(&after), stands, "{}", cluster.printed(Name::Load));
    let is_final = |row: &&(click::Minute, i64, bool)| !row.2;
    let (before, after) = (rows(&first), rows(&after));
    assert!(before.iter().filter(is_final).eq(after.iter().filter(is_final)), "{before:?} {after:?}");

    // Removed it is not made again, whether the warehouse says that it counts it or says nothing.
    remove(&cluster.settings(), "clicks").await;
    let (topics, printed) = cluster.tally(&["topics"]);
    let gone = format!("wrong     clicks: it is gone: the warehouse in database tally counts it as log {}", old.log_id);
    assert!(!topics && printed.contains(&gone) && printed.contains("begin a new warehouse"), "{printed}");
    cluster.kill(Name::ClickHouse);
    let (topics, printed) = cluster.tally(&["topics"]);
    assert!(!topics && printed.contains("wrong     clicks: it is missing, and was not made: "), "{printed}");
    assert!(printed.contains("run `tally topics` again when clickhouse.url = "), "{printed}");
    assert!(printed.contains("checked   raw_clicks\n"), "{printed}");
    assert!(matches!(log.topic("clicks").await.unwrap_err(), LogError::UnknownTopic(_)));
    tokio::task::block_in_place(|| cluster.start_again(Name::ClickHouse));

    // A new warehouse takes what the spools kept.
    cluster.kill(Name::Load);
    cluster.kill(Name::Run);
    cluster.stop_all();
    cluster.begin_anew("tally_2");
    cluster.once(&["topics"]);
    cluster.once(&["load", "--migrate"]);
    for name in [Name::Redirect(0), Name::Redirect(1), Name::Run, Name::Load, Name::Reporting(0), Name::Reporting(1)] {
        tokio::task::block_in_place(|| cluster.start_again(name));
    }
    click(&cluster, &client, "imp_last").await;
    let clicks = |report: &serde_json::Value| rows(report).iter().map(|row| row.1).sum::<i64>();
    let expected = i64::from(number) + 1;
    let through = SystemClock.now().minute().end();
    let is_all = |report: &serde_json::Value| complete_through(report) >= through && clicks(report) >= expected;
    let report = cluster.wait_for(0, LONG, is_all).await;
    assert_eq!(clicks(&report), expected, "{report}");

    // Unchanged pipelines are a new version when that is asked for, and only then.
    cluster.stop(Name::Run);
    let versions = |cluster: &Cluster| cluster.query("SELECT max(version) FROM tally_2.closings").trim().to_string();
    assert_eq!(versions(&cluster), "1");
    tokio::task::block_in_place(|| cluster.run_again());
    assert_eq!(versions(&cluster), "2");
    click(&cluster, &client, "imp_of_version_2").await;
    click(&cluster, &client, "imp_last").await;
    let report = cluster.wait_for(1, LONG, |report| clicks(report) > expected).await;
    assert_eq!(clicks(&report), expected + 1, "{report}");
    // Without ClickHouse topics that are there are checked, and it is said that this could not be.
    cluster.kill(Name::ClickHouse);
    let (topics, printed) = cluster.tally(&["topics"]);
    assert!(topics && printed.contains("checked   clicks\n"), "{printed}");
    assert!(
        printed.contains("warning   it is not known whether these are the topics that the warehouse counts"),
        "{printed}"
    );
}
