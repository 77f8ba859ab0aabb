//! `tally repair`: closes minutes that cannot agree, or that an engine cannot pass, by a recount from the log.
//!
//! The recount is the runner's, with the pipelines that are deployed, claims that it makes anew, and result topics of its
//! own. What becomes final of it, and how, is the warehouse's: [`warehouse::Warehouse::repair`].
//!
//! If the engine was an Arroyo that had skipped a click, it judged the records behind it without what the repair bills. So
//! Redis gets the claims of what is final now, and then a new version begins: clicks behind the repair are judged anew, on
//! impressions that it bills too. Dies the command before that, it goes on there when it is run again.

use crate::cluster::{self, reading};
use crate::machine::TakenOver;
use crate::site::{Site, SiteArgs};
use crate::status::say;
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use click::{Lateness, Millis, Minute, Offset, Offsets, Partition, SystemClock};
use pipeline_files::PipelineFiles;
use runner::{ClaimsSettings, Runner, RunnerSettings, VersionStart};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tally_log::local::{LocalLog, Settings as LogSettings};
use tally_log::{Acknowledgement, Consumer, Log, LogError, Record, Topic};
use warehouse::sequence::{Entry, Kind};
use warehouse::{Deploying, Recount, Repaired, Topics, Warehouse};

/// Minutes that are told one by one.
const TOLD_MAX: usize = 60;

/// What `tally repair` takes.
#[derive(Args)]
pub struct RepairArgs {
    /// The last minute to close, as it starts: 2026-04-20T12:34:00Z. Those before it that are not final are closed with it
    #[arg(long, value_parser = minute)]
    minute: Minute,
    /// Folder of the pipeline files, which have to be the deployed ones [default: the configuration's]
    #[arg(long, env = "TALLY_PIPELINES")]
    pipelines: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArgs,
}

fn minute(text: &str) -> Result<Minute, String> {
    let at: Millis = text.parse().map_err(|error| format!("{error}"))?;
    let minute = at.minute();
    if minute.start() == at { Ok(minute) } else { Err(format!("{text} is within a minute, which starts at {minute}")) }
}

/// Recounts and closes.
///
/// # Errors
/// If the minute is final or goes on, other pipelines are deployed than those in the folder, a record that can be decoded
/// gets no row, or something cannot be read or written. Nothing is final then that was not before.
pub async fn repair(args: RepairArgs) -> Result<()> {
    let RepairArgs { minute, pipelines, site } = args;
    let site = site.site()?;
    let (folder, lateness, horizon) = match &site {
        Site::Machine(config) => (config.pipelines.clone(), config.lateness(), config.dedup_horizon),
        Site::Cluster(config) => (config.pipelines.clone(), config.lateness(), config.dedup_horizon),
    };
    let folder = pipelines.unwrap_or(folder);
    let files = PipelineFiles::read(&folder)?;
    let (log, warehouse) = site.open().await?;
    let horizon_ms = i64::try_from(horizon.as_millis()).context("the dedup horizon")?;
    let with = Pipelines { files, lateness, horizon_ms };
    let on_arroyo = match &site {
        Site::Cluster(config) if with.is_arroyos(&warehouse).await? => {
            let config = cluster::config::Config { pipelines: folder, ..(**config).clone() };
            let last = warehouse.last().await.context("no pipeline is deployed")?;
            if last.kind == Kind::Repair && minute < last.through {
                say(&format!("repair {} of the warehouse ended, and no version began behind it", last.number));
                return begin_behind(&config, &*log, &last).await;
            }
            Some(config)
        }
        _ => None,
    };
    let Repaired { entry, clicks } = with.repair(log.clone(), &warehouse, minute).await?;
    let total: i64 = clicks.values().sum();
    for (minute, clicks) in clicks.iter().take(TOLD_MAX) {
        say(&format!("{minute}  {clicks} clicks"));
    }
    if clicks.len() > TOLD_MAX {
        say(&format!("and {} minutes more", clicks.len() - TOLD_MAX));
    }
    let next = match site {
        Site::Machine(_) => "`tally up` goes on from there",
        Site::Cluster(_) => "reports tell it when `tally load` runs again",
    };
    say(&format!(
        "{} minutes before {} are final now, with {total} clicks, as repair {} of the warehouse; {next}",
        clicks.len(),
        entry.through,
        entry.number
    ));
    match on_arroyo {
        Some(config) => begin_behind(&config, &*log, &entry).await,
        None => Ok(()),
    }
}

/// Restores claims, and records the same pipelines as a new version, which begins where the repair ended: no row of the engine
/// that was repaired counts behind it.
async fn begin_behind(config: &cluster::config::Config, log: &dyn Log, repair: &Entry) -> Result<()> {
    cluster::claims::restore(config, repair).await?;
    let how = Deploying { though_unchanged: true, ..Deploying::default() };
    let (_, deployed) = cluster::record::record(config, log, &Topics::default(), &repair.digest, how).await?;
    say(&format!("version {} counts from there on: `tally deploy` starts it", deployed.version));
    Ok(())
}

/// The deployed pipelines, as a recount runs them.
pub struct Pipelines {
    pub files: PipelineFiles,
    pub lateness: Lateness,
    pub horizon_ms: i64,
}

impl Pipelines {
    /// Recounts what is not final up to a minute, and makes it final.
    ///
    /// # Errors
    /// As [`repair`].
    pub async fn repair(&self, log: Arc<dyn Log>, warehouse: &Warehouse, minute: Minute) -> Result<Repaired> {
        let topics = Topics::default();
        let recount = warehouse.to_recount(&*log, &topics, minute).await?;
        self.check(&recount)?;
        let records: i64 = recount.to.iter().map(|(partition, to)| to - recount.from.get(partition)).sum();
        say(&format!(
            "recounting {records} records of the log by version {}, for minutes before {}",
            recount.version, recount.through
        ));
        let scratch = tempfile::tempdir().context("a folder for the recount")?;
        let results = self.recount(log.clone(), warehouse, &recount, scratch.path().to_path_buf()).await?;
        Ok(warehouse.repair(&*log, &topics, &recount, &*results).await?)
    }

    /// Whether what is deployed are these pipelines for an Arroyo.
    async fn is_arroyos(&self, warehouse: &Warehouse) -> Result<bool> {
        let deployed = warehouse.deployments().await?;
        let of_arroyo = self.digest_of_arroyo()?;
        Ok(deployed.last().is_some_and(|deployed| deployed.digest == of_arroyo))
    }

    fn digest_of_arroyo(&self) -> Result<String> {
        Ok(deploy::digest(&self.files, &deploy::sources(), self.lateness, self.horizon_ms)?)
    }

    /// Only with its own pipelines it is known what a version says of a record.
    fn check(&self, recount: &Recount) -> Result<()> {
        let Pipelines { files, lateness, horizon_ms } = self;
        let of_runner = runner::digest(files, *lateness, *horizon_ms)?;
        let of_arroyo = self.digest_of_arroyo()?;
        ensure!(
            [of_runner, of_arroyo].contains(&recount.digest),
            "version {} was deployed with other SQL, functions or settings than the folder, this program and the \
             configuration have, and only with its own it is known what it says of each record: use them, or deploy these first",
            recount.version
        );
        Ok(())
    }

    async fn recount(
        &self,
        log: Arc<dyn Log>,
        warehouse: &Warehouse,
        recount: &Recount,
        dir: PathBuf,
    ) -> Result<Arc<dyn Log>> {
        let clicks = log.topic(&Topics::default().clicks).await?;
        let results = LocalLog::open(&dir.join("log"), LogSettings::default(), Arc::new(SystemClock))?.0;
        let results: Arc<dyn Log> = Arc::new(results);
        let since = self.claims_since(&*log, &clicks, warehouse, recount).await?;
        let start = |positions| VersionStart { version: recount.version, log_id: recount.log_id, positions };
        // The first says since when there is something to claim, the last where it goes on.
        let starts = vec![start(since), start(recount.from.clone())];
        let claims = ClaimsSettings { horizon_ms: self.horizon_ms, ..ClaimsSettings::default() };
        let settings = RunnerSettings { lateness: self.lateness, claims, ..RunnerSettings::default() };
        let to = recount.to.clone();
        let counted = Arc::new(Recounted { clicks: log, topic: clicks.name, to, results: results.clone() });
        let rows = TakenOver(warehouse.clone());
        let mut runner = Runner::open(&self.files, starts, counted, &dir.join("runner"), settings, Some(&rows)).await?;
        runner.catch_up().await?;
        Ok(results)
    }

    /// The first record of every partition whose claim can still matter. A record that is recounted was appended after the
    /// last minute that was final then; what is a horizon older than that matters to none.
    async fn claims_since(
        &self,
        log: &dyn Log,
        clicks: &Topic,
        warehouse: &Warehouse,
        recount: &Recount,
    ) -> Result<Offsets> {
        let at = warehouse.status().complete_through.plus(-self.horizon_ms);
        let mut since = Offsets::default();
        for (partition, from) in recount.from.iter() {
            let offset = log.offset_at(clicks, partition, at).await?;
            // At the first that is held it is not known what was before it; final rows know.
            let known = offset > log.held(clicks, partition).await?.start;
            since.set(partition, if known { offset.min(from) } else { 0 });
        }
        Ok(since)
    }
}

/// A log whose clicks end where a recount does, with result topics of its own.
struct Recounted {
    clicks: Arc<dyn Log>,
    /// The topic of the clicks.
    topic: String,
    to: Offsets,
    results: Arc<dyn Log>,
}

impl Recounted {
    fn of(&self, topic: &str) -> &dyn Log {
        if topic == self.topic { &*self.clicks } else { &*self.results }
    }
}

#[async_trait]
impl Log for Recounted {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.of(name).topic(name).await
    }

    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        key: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        self.results.append(topic, partition, key, value).await
    }

    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        let consumer = self.of(&topic.name).consumer(topic, start).await?;
        if topic.name != self.topic {
            return Ok(consumer);
        }
        Ok(Box::new(UpTo { consumer, topic: self.topic.clone(), to: self.to.clone() }))
    }

    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        let held = self.of(&topic.name).held(topic, partition).await?;
        Ok(if topic.name == self.topic { held.start..held.end.min(self.to.get(partition)) } else { held })
    }

    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        self.of(&topic.name).offset_at(topic, partition, at).await
    }
}

/// Reads a topic to its ends and no further. A poll that is empty says that it came to them.
struct UpTo {
    consumer: Box<dyn Consumer>,
    topic: String,
    to: Offsets,
}

#[async_trait]
impl Consumer for UpTo {
    async fn poll(&mut self, records_max: usize, _: Duration) -> Result<Vec<Record>, LogError> {
        while let Some(mut records) = reading::next(&mut *self.consumer, &self.topic, &self.to, records_max).await? {
            records.retain(|record| record.offset < self.to.get(record.partition));
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }

    fn next(&self) -> Offsets {
        let next = self.consumer.next();
        next.iter().map(|(partition, next)| (partition, next.min(self.to.get(partition)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::in_virtual_time::{self, config};
    use crate::machine::Machine;
    use click::ManualClock;

    /// 2026-04-20T12:00:00Z.
    const T0: i64 = 1_776_686_400_000;

    async fn click(machine: &Machine, clock: &ManualClock, impression: &str, at: i64) {
        in_virtual_time::click(machine, clock, impression, Millis::new(T0 + at)).await;
    }

    async fn pass(machine: &mut Machine, clock: &ManualClock, at: i64) -> Millis {
        in_virtual_time::pass(machine, clock, Millis::new(T0 + at)).await
    }

    async fn by_minute(warehouse: &Warehouse) -> Vec<(i64, i64, bool)> {
        in_virtual_time::by_minute(warehouse, Millis::new(T0)).await
    }

    /// A row that no engine wrote stands in the way of the second minute. The recount judges as the runner did: an
    /// impression that was billed before it stays billed once, and so does one that the recount bills, afterwards.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn minutes_are_recounted_by_the_deployed_pipelines() {
        let dir = tempfile::tempdir().unwrap();
        let (config, clock) = (config(dir.path()), Arc::new(ManualClock::new(Millis::new(T0))));
        let mut machine = Machine::open(&config, clock.clone()).await.unwrap();
        click(&machine, &clock, "imp_1", 1_000).await;
        click(&machine, &clock, "imp_2", 2_000).await;
        assert_eq!(pass(&mut machine, &clock, 70_000).await.get(), T0 + 60_000);
        click(&machine, &clock, "imp_1", 71_000).await;
        click(&machine, &clock, "imp_3", 72_000).await;
        let foreign = r#"{"minute":"2026-04-20T12:01:00","ad_id":"ad_9","campaign_id":"cmp_7","publisher_id":"pub_1","country":"DE","device":"desktop","clicks":2,"version":1}"#;
        let minutes = machine.log.topic("clicks_by_minute").await.unwrap();
        machine.log.append(&minutes, 0, None, foreign.into()).await.unwrap().await.unwrap();
        click(&machine, &clock, "imp_4", 121_000).await;
        assert_eq!(pass(&mut machine, &clock, 130_000).await.get(), T0 + 60_000);
        let waiting = machine.warehouse.status().waiting.unwrap_or_default();
        assert!(
            waiting.contains("the engine says 2 and 1") || waiting.contains("the engine says 1 and 2"),
            "{waiting}"
        );
        pass(&mut machine, &clock, 200_000).await;
        machine.runner.checkpoint().await.unwrap();
        drop(machine);

        let settings = warehouse::Settings { lateness: config.lateness(), ..warehouse::Settings::default() };
        let (log, _) = crate::machine::open_log(&config, clock.clone()).unwrap();
        let warehouse = Warehouse::open(&config.data.join("warehouse"), settings, clock.clone()).await.unwrap();
        let files = PipelineFiles::read(&config.pipelines).unwrap();
        let with = Pipelines { files, lateness: config.lateness(), horizon_ms: 86_400_000 };
        let minute = |number: i64| Millis::new(T0 + number * 60_000).minute();
        let other =
            Pipelines { lateness: Lateness { lateness_ms: 4_000, ..with.lateness }, files: with.files.clone(), ..with };
        let error = other.repair(log.clone(), &warehouse, minute(1)).await.unwrap_err();
        assert!(error.to_string().contains("version 1 was deployed with other SQL"), "{error:#}");
        let repaired = with.repair(log.clone(), &warehouse, minute(1)).await.unwrap();
        assert_eq!(repaired.clicks, [(minute(1), 1)].into(), "imp_1 was billed in the minute before");
        drop((log, warehouse));

        let mut machine = Machine::open(&config, clock.clone()).await.unwrap();
        assert!(!machine.deployment.new, "the same version goes on");
        for (impression, at) in [("imp_1", 201_000), ("imp_3", 202_000), ("imp_5", 203_000)] {
            click(&machine, &clock, impression, at).await;
        }
        assert_eq!(pass(&mut machine, &clock, 250_000).await.get(), T0 + 4 * 60_000);
        let expected = [(0, 2, false), (1, 1, false), (2, 1, false), (3, 1, false)];
        assert_eq!(by_minute(&machine.warehouse).await, expected);
        drop(machine);

        // Deployed again, it starts at the new P.
        let again = Config { again: true, ..config };
        let mut machine = Machine::open(&again, clock.clone()).await.unwrap();
        assert_eq!(machine.deployment.version, 2);
        click(&machine, &clock, "imp_3", 251_000).await;
        click(&machine, &clock, "imp_6", 252_000).await;
        assert_eq!(pass(&mut machine, &clock, 310_000).await.get(), T0 + 5 * 60_000);
        assert_eq!(by_minute(&machine.warehouse).await, [&expected[..], &[(4, 1, false)]].concat());
    }

    #[test]
    fn a_minute_is_given_as_it_starts() {
        assert_eq!(minute("2026-04-20T12:00:00Z"), Ok(Millis::new(T0).minute()));
        let told = minute("2026-04-20T12:00:30Z").unwrap_err();
        assert!(told.ends_with("is within a minute, which starts at 2026-04-20T12:00:00Z"), "{told}");
        assert!(minute("yesterday").is_err());
    }
}
