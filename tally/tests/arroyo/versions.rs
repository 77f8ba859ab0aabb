//! Deployments while `tally load` runs: it goes on under each, and every minute is exact by the version that judged it.

use crate::engine::Engine;
use crate::fake::Fake;
use crate::site::{PARTITIONS, Site};
use click::{Clock, Minute, Offset, SystemClock};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::kafka::KafkaLog;
use tally_log::{Log, Topic};
use tokio::task::JoinHandle;
use warehouse::report::{Dimension, Order, Report, ReportQuery, Reports, TimeUnit};

const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
pub const LONG: Duration = Duration::from_secs(180);

/// A click that was appended.
pub struct Click {
    partition: i32,
    offset: Offset,
    minute: Minute,
    impression: String,
    country: &'static str,
}

/// By minute and country.
pub type Counts = BTreeMap<(Minute, String), i64>;

/// Clicks, and what they must come to.
#[derive(Default)]
pub struct Oracle {
    clicks: Vec<Click>,
}

impl Oracle {
    /// Appends a click on an impression, as the redirect does: all of one are in one partition.
    pub async fn click(&mut self, site: &Site, impression: i32, country: &'static str) {
        let (now, partition) = (SystemClock.now(), impression % PARTITIONS);
        let impression = format!("imp_{impression}");
        let value = json!({
            "kind": "click", "clickId": click::ClickId::new(now).to_string(), "impressionId": &impression, "adId": "ad_9",
            "campaignId": "cmp_7", "publisherId": "pub_4", "timestamp": now.to_string(), "ipHash": "00",
            "userAgent": PERSON, "country": country, "seenBefore": null, "attempt": 1, "invalidReason": null,
        });
        let offset = site.append(&site.clicks, partition, value.to_string()).await.offset;
        self.clicks.push(Click { partition, offset, minute: now.minute(), impression, country });
    }

    pub fn last(&self) -> &Click {
        self.clicks.last().unwrap()
    }

    /// What is billed: the first click of each impression that the version at its position lets through. From version
    /// `strict` on none of country ZZ is.
    pub async fn billed(&self, site: &Site, strict: i64) -> Counts {
        let deployments = site.deployments().await;
        let mut clicks: Vec<&Click> = self.clicks.iter().collect();
        clicks.sort_by_key(|click| (click.partition, click.offset));
        let (mut counts, mut claimed) = (Counts::new(), HashSet::new());
        for click in clicks {
            let judges = deployments.iter().rfind(|entry| entry.positions.get(click.partition) <= click.offset);
            let version = judges.unwrap().version;
            let is_out = version >= strict && click.country == "ZZ";
            if !is_out && claimed.insert(&click.impression) {
                *counts.entry((click.minute, click.country.into())).or_default() += 1;
            }
        }
        counts
    }
}

impl Click {
    /// Whether the newest version judges it.
    pub async fn is_of_newest(&self, site: &Site) -> bool {
        let newest = site.deployments().await.pop().unwrap();
        newest.positions.get(self.partition) <= self.offset
    }
}

/// Lets the time of every partition go on, as redirects do.
pub fn heartbeats(log: Arc<KafkaLog>, clicks: Topic) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            for partition in 0..PARTITIONS {
                let value = json!({"kind": "heartbeat", "timestamp": SystemClock.now().to_string()}).to_string();
                // One that is not taken is followed by the next.
                if let Ok(appended) = log.append(&clicks, partition, None, value.into()).await {
                    let _ = appended.await;
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
}

/// Waits until a minute has at least this long to go.
pub async fn room_in_the_minute(least: Duration) {
    while SystemClock.now().minute().end().get() - SystemClock.now().get() < least.as_millis() as i64 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Everything that is reported.
pub async fn report(site: &Site) -> Report {
    let now = SystemClock.now();
    let query = ReportQuery {
        from: now.plus(-86_400_000).minute().start(),
        to: now.plus(86_400_000).minute().start(),
        filters: BTreeMap::new(),
        time: Some(TimeUnit::Minute),
        dimensions: vec![Dimension::Country],
        limit: 1_000,
        order: Order::Columns,
    };
    site.reports().await.report(&query).await.unwrap()
}

pub fn counts(report: &Report) -> Counts {
    let row =
        |row: &warehouse::report::ReportRow| ((row.time.unwrap().minute(), row.values[0].to_string()), row.clicks);
    report.rows.iter().map(row).collect()
}

/// Waits for a report that says so.
pub async fn until(site: &Site, says: impl Fn(&Report) -> bool) -> Report {
    let began = Instant::now();
    loop {
        let report = report(site).await;
        if says(&report) {
            return report;
        }
        assert!(began.elapsed() < LONG, "{report:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Waits until all that was clicked by now is final, and answers what it came to.
pub async fn all_final(site: &Site) -> Counts {
    let through = SystemClock.now().minute().end();
    let report = until(site, |report| report.complete_through >= through).await;
    assert!(report.rows.iter().all(|row| !row.provisional), "{report:?}");
    counts(&report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_that_runs_goes_on_under_a_version_that_another_process_deploys() {
    let fake = Fake::default();
    let Some(site) = Site::start_quick(&fake.listen().await).await.map(Arc::new) else { return };
    let _engine = Engine::start(&fake, &site);
    let beats = heartbeats(site.log.clone(), site.clicks.clone());
    // It waits for the first deployment.
    let mut load = site.load();
    site.tally(&["deploy"]).said("version 1 counts");
    let mut oracle = Oracle::default();
    for (impression, country) in [(1, "DE"), (2, "ZZ"), (3, "DE"), (1, "DE"), (4, "ZZ"), (6, "DE")] {
        oracle.click(&site, impression, country).await;
    }
    let first = all_final(&site).await;
    assert_eq!(first, oracle.billed(&site, i64::MAX).await);
    assert_eq!(first.values().sum::<i64>(), 5);

    // The first click of impression 11 is billed by the rules of now, and not by those that will judge it; 2 is billed.
    room_in_the_minute(Duration::from_secs(30)).await;
    for (impression, country) in [(11, "ZZ"), (11, "DE"), (12, "ZZ"), (13, "DE"), (2, "DE")] {
        oracle.click(&site, impression, country).await;
    }
    let by_first = oracle.billed(&site, i64::MAX).await;
    until(&site, |report| counts(report) == by_first).await;
    let sql = std::fs::read_to_string(site.pipeline()).unwrap();
    let changed = sql.replace("ELSE bot_reason(", "WHEN country = 'ZZ' THEN 'nowhere' ELSE bot_reason(");
    assert_ne!(changed, sql);
    std::fs::write(site.pipeline(), changed).unwrap();
    let deployed = tokio::task::spawn_blocking({
        let site = site.clone();
        move || site.tally(&["deploy"])
    });
    // Clicks come all the while.
    for impression in (20..).take_while(|_| !deployed.is_finished()) {
        oracle.click(&site, impression, ["DE", "ZZ", "US"][impression as usize % 3]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    oracle.click(&site, 12, "DE").await;
    deployed.await.unwrap().said("version 2 counts");
    let strict = oracle.billed(&site, 2).await;
    assert_ne!(strict, oracle.billed(&site, i64::MAX).await);
    // What is final stays, whatever the new rules say of it.
    assert!(first.iter().all(|(cell, clicks)| strict.get(cell) == Some(clicks)), "{first:?} {strict:?}");
    assert!(oracle.last().is_of_newest(&site).await && !oracle.clicks[0].is_of_newest(&site).await);
    assert_eq!(all_final(&site).await, strict);

    // Again, with nothing changed: nothing changes.
    site.tally(&["deploy", "--again"]).said("version 3 counts");
    oracle.click(&site, 1_000_000, "ZZ").await;
    oracle.click(&site, 1_000_001, "DE").await;
    assert_eq!(all_final(&site).await, oracle.billed(&site, 2).await);
    let printed = load.printed();
    for version in [2, 3] {
        let followed = format!("another process deployed a pipeline version={version}");
        assert!(printed.contains(&followed), "{followed}: {printed}");
    }
    assert!(!printed.contains("failed; clicks are taken on"), "{printed}");
    assert!(load.tells("tally_load_waiting 0.0").await && load.tells("tally_load_failed 0.0").await);
    load.stop();
    beats.abort();
}
