//! A minute that can never close, and `tally repair` on the cluster, as an operator runs it.

use crate::PERSON;
use crate::processes::{Cluster, Name, root};
use click::{Clock, Millis, Minute, SystemClock};
use serde_json::Value;
use std::time::Duration;
use tally_log::Log;

pub const LONG: Duration = Duration::from_secs(180);

pub async fn click(cluster: &Cluster, client: &reqwest::Client, impression: &str) {
    let url = format!("{}/api/v1/click/{impression}?ad_id=ad_9&campaign_id=cmp_7", cluster.redirect(0));
    let answer = client.get(url).header("User-Agent", PERSON).header("X-Country", "DE").send().await.unwrap();
    assert_eq!(answer.status(), 302);
}

pub fn complete_through(report: &Value) -> Millis {
    report["completeThrough"].as_str().unwrap().parse().unwrap()
}

/// Minute, clicks, and whether they may change.
pub fn rows(report: &Value) -> Vec<(Minute, i64, bool)> {
    let row = |row: &Value| {
        let minute = row["minute"].as_str().unwrap().parse::<Millis>().unwrap().minute();
        (minute, row["clicks"].as_i64().unwrap(), row["provisional"] == true)
    };
    report["rows"].as_array().unwrap().iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_that_never_closes_is_repaired_by_one_command() {
    let Some(mut cluster) = Cluster::start() else { return };
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    // So that they are all clicks of one minute.
    while SystemClock.now().minute().end().get() - SystemClock.now().get() < 20_000 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let minute = SystemClock.now().minute();
    for impression in ["imp_1", "imp_2", "imp_3", "imp_1"] {
        click(&cluster, &client, impression).await;
    }
    let report = cluster.wait_for(0, LONG, |report| rows(report) == [(minute, 3, true)]).await;
    assert!(complete_through(&report) <= minute.start());
    // A row that no engine of this cluster wrote: it says another number than the raw rows.
    let log = cluster.log();
    let topic = log.topic("clicks_by_minute").await.unwrap();
    let foreign = format!(
        r#"{{"minute":"{}","ad_id":"ad_9","campaign_id":"cmp_7","publisher_id":"pub_4","country":"DE","device":"desktop","clicks":5,"version":1}}"#,
        minute.to_string().trim_end_matches('Z')
    );
    log.append(&topic, 0, None, foreign.into()).await.unwrap().await.unwrap();
    assert_eq!(SystemClock.now().minute(), minute, "the clicks came within one minute");

    // The minute is due, and does not close.
    let wanted = ["tally_load_waiting 1.0", "tally_load_refused_minutes 1.0", "tally_load_open_minutes 1.0"];
    let began = std::time::Instant::now();
    let metrics = loop {
        let metrics = cluster.admin(Name::Load, "/metrics").await.1;
        if wanted.iter().all(|wanted| metrics.lines().any(|line| line == *wanted)) {
            break metrics;
        }
        assert!(began.elapsed() < LONG, "{metrics}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for partition in 0..log.topic("clicks").await.unwrap().partitions {
        let reached = format!("tally_load_reached_timestamp_seconds{{partition=\"{partition}\"}} ");
        let reached =
            metrics.lines().find_map(|line| line.strip_prefix(&reached)).unwrap_or_else(|| panic!("{metrics}"));
        let reached: f64 = reached.parse().unwrap();
        assert!(reached >= minute.end().get() as f64 / 1000.0, "{metrics}");
        assert!(metrics.contains(&format!("tally_load_lag_records{{partition=\"{partition}\"}} ")), "{metrics}");
    }
    let report = cluster.report(0).await;
    assert!(complete_through(&report) <= minute.start() && rows(&report)[0] == (minute, 3, true), "{report}");
    cluster.stop(Name::Load);

    let file = root().join("docker/cluster.toml").display().to_string();
    let given = minute.to_string();
    let repair = ["repair", "--cluster", &file, "--minute", &given];
    let (repaired, printed) = cluster.tally(&repair);
    assert!(repaired, "{printed}");
    assert!(printed.contains(&format!("{minute}  3 clicks")), "{printed}");
    let last = "SELECT number, toString(kind) AS what, toUnixTimestamp64Milli(through) FROM tally.closings WHERE what NOT LIKE '%begun' ORDER BY number DESC LIMIT 1";
    let entry = cluster.query(last);
    let [number, kind, through] = entry.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{entry:?}") };
    assert_eq!((kind, through), ("repair", &*minute.end().get().to_string()));
    assert!(printed.contains(&format!("as repair {number} of the warehouse")), "{printed}");
    // What is final is not repaired.
    let (repaired, printed) = cluster.tally(&repair);
    assert!(!repaired && printed.contains("it is final"), "{printed}");
    assert_eq!(cluster.query(last), entry);

    // The loader goes on behind it, and both nodes tell it.
    cluster.start_again(Name::Load);
    for node in [0, 1] {
        let report = cluster.wait_for(node, LONG, |report| complete_through(report) >= minute.end()).await;
        assert_eq!(rows(&report).first(), Some(&(minute, 3, false)), "{report}");
    }
    // Who was billed is not billed again.
    let next = SystemClock.now().minute();
    for impression in ["imp_1", "imp_4", "imp_2"] {
        click(&cluster, &client, impression).await;
    }
    let through = SystemClock.now().minute().end();
    let report = cluster.wait_for(1, LONG, |report| complete_through(report) >= through).await;
    let rows = rows(&report);
    assert_eq!(rows[0], (minute, 3, false), "{report}");
    assert!(matches!(rows[1..], [(minute, 1, false)] if minute >= next), "{report}");
    cluster.stop_all();
}
