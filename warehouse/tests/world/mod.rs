//! A clicks log, a hand-made engine and a warehouse, in virtual time.
// Each test binary uses a part of it.
#![allow(dead_code)]

mod dying;
mod site;

#[allow(unused_imports)]
pub use dying::{dying, dying_tables};
pub use site::{Kind, Site, temp};

use click::{Clock, Lateness, ManualClock, Millis, Minute, Offset, Offsets, Partition};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tally_log::local::{LocalLog, Settings as LogSettings};
use tally_log::{Log, Topic};
use warehouse::report::{Dimension, Order, Report, ReportQuery, Reports, TimeUnit};
use warehouse::sequence::Entry;
use warehouse::{Deployment, Loader, Settings, Topics, Warehouse};

/// Makes a test of each function for each kind of tables. One that this machine has not passes, and says so.
#[macro_export]
macro_rules! on_each_kind {
    ($($name:ident),* $(,)?) => {
        mod on_delta {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Kind::Delta).await;
            })*
        }
        mod on_clickhouse {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if super::Kind::ClickHouse.is_there() {
                    super::$name(super::Kind::ClickHouse).await;
                }
            })*
        }
    };
}

pub const PARTITIONS: Partition = 2;

/// An instant of the day that all tests play on.
pub fn at(text: &str) -> Millis {
    format!("2026-04-20T{text}Z").parse().unwrap()
}

pub fn minute(text: &str) -> Millis {
    at(&format!("{text}:00"))
}

/// What the engine made of one record.
#[derive(Debug, Clone)]
pub struct Row {
    pub position: (Partition, Offset),
    pub json: Value,
}

pub struct World {
    pub site: Site,
    pub clock: Arc<ManualClock>,
    pub log: Arc<LocalLog>,
    pub warehouse: Warehouse,
    pub loader: Option<Loader>,
    pub deployment: Option<Deployment>,
    pub clicks: Topic,
    raw: Topic,
    minutes: Topic,
    /// Raw rows that the engine has made and not written yet.
    pub rows: Vec<Row>,
    /// Clicks of the minutes that the engine has open.
    pub windows: BTreeMap<(Millis, [String; 5]), i64>,
}

pub fn settings() -> Settings {
    Settings { lateness: Lateness::DEFAULT, ..Settings::default() }
}

impl World {
    /// At noon, with nothing in the log and version 1 deployed.
    pub async fn new(site: &Site) -> World {
        let mut world = World::open(site, at("12:00:00")).await;
        world.deploy("one").await;
        world
    }

    pub async fn open(site: &Site, now: Millis) -> World {
        let clock = Arc::new(ManualClock::new(now));
        let log = World::open_log(site.path(), &clock);
        let warehouse = site.warehouse(&clock).await.unwrap();
        World::with(site, clock, log, warehouse).await
    }

    pub fn open_log(dir: &Path, clock: &Arc<ManualClock>) -> Arc<LocalLog> {
        Arc::new(LocalLog::open(&dir.join("log"), LogSettings::default(), clock.clone()).unwrap().0)
    }

    pub async fn with(site: &Site, clock: Arc<ManualClock>, log: Arc<LocalLog>, warehouse: Warehouse) -> World {
        let clicks = log.create_topic("clicks", PARTITIONS).await.unwrap();
        let raw = log.create_topic("raw_clicks", 3).await.unwrap();
        let minutes = log.create_topic("clicks_by_minute", 2).await.unwrap();
        let (loader, deployment, rows, windows) = (None, None, Vec::new(), BTreeMap::new());
        let site = site.clone();
        World { site, clock, log, warehouse, loader, deployment, clicks, raw, minutes, rows, windows }
    }

    /// Dies and starts again: everything that was only in memory is gone.
    pub async fn restart(self) -> World {
        let World { site, clock, log, warehouse, loader, deployment, rows, windows, .. } = self;
        drop((loader, warehouse, log));
        let mut world = World::open(&site, clock.now()).await;
        (world.deployment, world.rows, world.windows) = (deployment, rows, windows);
        world
    }

    pub async fn deploy(&mut self, digest: &str) -> Deployment {
        let deployment = self.warehouse.deploy(&*self.log, &Topics::default(), digest).await.unwrap();
        self.deployment = Some(deployment.clone());
        deployment
    }

    pub fn version(&self) -> i64 {
        self.deployment.as_ref().map_or(1, |deployment| deployment.version)
    }

    async fn append(&self, topic: &Topic, partition: Partition, value: Vec<u8>) -> Offset {
        self.log.append(topic, partition, None, value.into()).await.unwrap().await.unwrap().offset
    }

    /// Appends a record to the log at an append time, and says where it stands.
    pub async fn record(&self, partition: Partition, appended_at: Millis, value: &[u8]) -> Offset {
        self.clock.set(appended_at);
        self.append(&self.clicks, partition, value.to_vec()).await
    }

    /// A heartbeat in every partition: the engine's time goes on.
    pub async fn heartbeat(&mut self, appended_at: Millis) {
        for partition in 0..PARTITIONS {
            self.heartbeat_in(partition, appended_at).await;
        }
    }

    pub async fn heartbeat_in(&mut self, partition: Partition, appended_at: Millis) {
        let value = json!({"kind": "heartbeat", "timestamp": appended_at.to_string()});
        let offset = self.record(partition, appended_at, value.to_string().as_bytes()).await;
        self.judge(partition, offset, appended_at, appended_at, None, "heartbeat");
    }

    /// A click, as the engine judges it.
    pub async fn click(&mut self, partition: Partition, clicked: Millis, appended: Millis, ad: &str, verdict: &str) {
        let value = json!({
            "kind": "click", "clickId": click::ClickId::new(clicked).to_string(), "impressionId": "imp", "adId": ad,
            "campaignId": campaign(ad), "publisherId": "pub", "timestamp": clicked.to_string(), "ipHash": "00",
            "userAgent": "Mozilla/5.0", "country": "DE", "seenBefore": null, "attempt": 1, "invalidReason": null
        });
        let offset = self.record(partition, appended, value.to_string().as_bytes()).await;
        self.judge(partition, offset, clicked, appended, Some(ad), verdict);
    }

    /// A billable click that is appended when it was clicked.
    pub async fn billable(&mut self, partition: Partition, clicked: Millis, ad: &str) {
        self.click(partition, clicked, clicked, ad, "billable").await;
    }

    /// Makes the rows of one record, as an engine does.
    pub fn judge(
        &mut self,
        partition: Partition,
        offset: Offset,
        clicked: Millis,
        appended: Millis,
        ad: Option<&str>,
        verdict: &str,
    ) {
        let no_zone = |at: Millis| at.to_string().trim_end_matches('Z').to_string();
        let of_click = |value: &str| ad.map(|_| value.to_string());
        let campaign = ad.map(campaign);
        let json = json!({
            "log_id": self.clicks.log_id.to_string(), "log_partition": partition, "log_offset": offset,
            "kind": if ad.is_some() { "click" } else { "heartbeat" }, "click_id": of_click("c"),
            "impression_id": of_click("imp"), "ad_id": ad, "campaign_id": campaign, "publisher_id": of_click("pub"),
            "timestamp": no_zone(clicked), "appended_at": no_zone(appended), "country": of_click("DE"),
            "device": of_click("mobile"), "ip_hash": of_click("00"), "user_agent": of_click("Mozilla/5.0"),
            "seen_before": null, "attempt": 1, "invalid_reason": null, "verdict": verdict, "version": self.version()
        });
        self.rows.push(Row { position: (partition, offset), json });
        if verdict == "billable" {
            let ad = ad.unwrap();
            let values = [ad.to_string(), self::campaign(ad), "pub".into(), "DE".into(), "mobile".into()];
            *self.windows.entry((clicked.min(appended).minute().start(), values)).or_default() += 1;
        }
    }

    /// The newest deployment.
    pub async fn deployed(&self) -> Entry {
        self.warehouse.deployments().await.unwrap().pop().unwrap()
    }

    /// The rows of the newest version in the result topic, each position once.
    pub async fn raw_rows(&self) -> Vec<Value> {
        let version = self.deployed().await.version;
        let mut consumer = self.log.consumer(&self.raw, &Offsets::beginning(self.raw.partitions)).await.unwrap();
        let mut rows = BTreeMap::new();
        loop {
            let records = consumer.poll(1_000, std::time::Duration::ZERO).await.unwrap();
            if records.is_empty() {
                return rows.into_values().collect();
            }
            for record in records {
                let row: Value = serde_json::from_slice(&record.value).unwrap();
                if row["version"] == version {
                    rows.insert((row["log_partition"].as_i64(), row["log_offset"].as_i64()), row);
                }
            }
        }
    }

    /// The result topic forgets all that it holds.
    pub async fn lose_raw_rows(site: &Site, now: Millis) {
        let clock = Arc::new(ManualClock::new(now.plus(1)));
        let settings = LogSettings { segment_bytes_max: 1, ..LogSettings::default() };
        let log = LocalLog::open(&site.path().join("log"), settings, clock).unwrap().0;
        let raw = log.topic("raw_clicks").await.unwrap();
        // The segment that is written to is kept, so it must not be theirs.
        for _ in 0..2 {
            log.append(&raw, 0, None, "nothing".into()).await.unwrap().await.unwrap();
        }
        assert!(log.retain("raw_clicks", now.plus(60_000)).await.unwrap() > 0);
    }

    /// Lets an engine of this version make rows from its start on, and minutes of them.
    pub async fn judge_again(&mut self, rows: Vec<Value>, deployment: &Entry) {
        self.windows.clear();
        let mut end = Millis::default();
        for mut row in rows {
            let number = |name: &str| row[name].as_i64().unwrap();
            let (partition, offset) = (number("log_partition") as Partition, number("log_offset"));
            let time = |name: &str| format!("{}Z", row[name].as_str().unwrap()).parse::<Millis>().unwrap();
            let (clicked, appended) = (time("timestamp"), time("appended_at"));
            end = end.max(appended);
            if offset < deployment.positions.get(partition) {
                continue;
            }
            if row["verdict"] == "billable" {
                let values = ["ad_id", "campaign_id", "publisher_id", "country", "device"];
                let values = values.map(|name| row[name].as_str().unwrap().to_string());
                *self.windows.entry((clicked.min(appended).minute().start(), values)).or_default() += 1;
            }
            row["version"] = deployment.version.into();
            self.write_raw(&row).await;
        }
        let (version, positions) = (deployment.version, deployment.positions.clone());
        self.deployment = Some(Deployment { version, positions, new: true, given_up: None });
        self.write_minutes(end).await;
    }

    pub async fn write_raw(&self, row: &Value) {
        let partition = (row["log_offset"].as_i64().unwrap() % 3) as Partition;
        self.append(&self.raw, partition, row.to_string().into_bytes()).await;
    }

    /// Writes the raw rows that wait, but for those that `keep` refuses.
    pub async fn write_rows(&mut self, keep: impl Fn(&Row) -> bool) {
        for row in std::mem::take(&mut self.rows) {
            if keep(&row) {
                self.write_raw(&row.json).await;
            }
        }
    }

    pub fn minute_row(&self, minute: Millis, values: &[String; 5], clicks: i64) -> Value {
        let [ad, campaign, publisher, country, device] = values;
        json!({"minute": minute.to_string().replace(".000Z", ""), "ad_id": ad, "campaign_id": campaign,
            "publisher_id": publisher, "country": country, "device": device, "clicks": clicks, "version": self.version()})
    }

    pub async fn write_minute(&self, row: &Value) {
        self.append(&self.minutes, 0, row.to_string().into_bytes()).await;
    }

    /// Writes the minutes that are over at the watermark of this append time.
    pub async fn write_minutes(&mut self, appended_at: Millis) {
        let through = Lateness::DEFAULT.watermark(appended_at).minute().start();
        for ((minute, values), clicks) in self.windows.clone() {
            if minute < through {
                self.write_minute(&self.minute_row(minute, &values, clicks)).await;
                self.windows.remove(&(minute, values));
            }
        }
    }

    /// A heartbeat, and all rows that an engine writes up to then.
    pub async fn pass(&mut self, appended_at: Millis) {
        self.heartbeat(appended_at).await;
        self.write_rows(|_| true).await;
        self.write_minutes(appended_at).await;
    }

    /// Lets the loader do all that it can, and says through when all is final.
    pub async fn load(&mut self) -> Millis {
        self.try_load().await.unwrap()
    }

    pub async fn try_load(&mut self) -> warehouse::Result<Millis> {
        if self.loader.is_none() {
            let log: Arc<dyn Log> = self.log.clone();
            self.loader = Some(Loader::start(&self.warehouse, log, Topics::default()).await?);
        }
        self.loader.as_mut().unwrap().step().await?;
        Ok(self.warehouse.status().complete_through)
    }

    pub fn waiting(&self) -> String {
        self.warehouse.status().waiting.unwrap_or_default()
    }

    pub async fn report(&self, query: &ReportQuery) -> Report {
        self.warehouse.report(query).await.unwrap()
    }

    /// Clicks by minute and ad: time, ad, clicks, provisional.
    pub async fn by_minute(&self) -> Vec<(String, String, i64, bool)> {
        let report = self.report(&by_minute_and_ad()).await;
        let time = |at: Option<Millis>| at.unwrap().to_string()[11..16].to_string();
        report.rows.iter().map(|r| (time(r.time), r.values[0].to_string(), r.clicks, r.provisional)).collect()
    }
}

pub fn campaign(ad: &str) -> String {
    format!("cmp_{}", ad.len() % 3)
}

/// The whole day, and one before and after it.
pub fn total() -> ReportQuery {
    ReportQuery {
        from: at("00:00:00").plus(-24 * 60 * Minute::MS),
        to: at("00:00:00").plus(48 * 60 * Minute::MS),
        filters: BTreeMap::new(),
        time: None,
        dimensions: Vec::new(),
        limit: 100_000,
        order: Order::Columns,
    }
}

pub fn by_minute_and_ad() -> ReportQuery {
    ReportQuery { time: Some(TimeUnit::Minute), dimensions: vec![Dimension::AdId], ..total() }
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}
