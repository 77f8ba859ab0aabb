//! All parts of the one-machine column, joined from the redirect to the report.

use crate::config::Config;
use anyhow::{Context, Result};
use async_trait::async_trait;
use click::{Clock, LogId, Millis, Offset, Offsets, Partition};
use futures::future::BoxFuture;
use redirect::block::Blocks;
use redirect::country::Countries;
use redirect::reload::Reloaded;
use redirect::signature::Keys;
use redirect::spool::{Spool, SpoolSettings};
use redirect::{Catalog, Secret, SeenInMemory, Service, With};
use runner::{ClaimsSettings, FinalClaim, FinalRows, PipelineFiles, Runner, RunnerSettings, VersionStart};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tally_log::local::{LocalLog, Repair, Settings as LogSettings};
use tally_log::{Log, Topic};
use warehouse::{Deployment, Loader, Needed, Topics, Warehouse};

/// The sample catalog ships with the binary.
pub const SAMPLE_CATALOG: &str = include_str!("../../catalog/sample.csv");

/// Where the pages of [`SAMPLE_CATALOG`] are, as it says.
const SAMPLE_PAGES: &str = "127.0.0.1:8082";

/// The parts, open and at rest. Whoever holds them moves them: tasks in [`crate::up`], a test step by step.
pub struct Machine {
    pub clock: Arc<dyn Clock>,
    pub log: Arc<LocalLog>,
    pub clicks: Topic,
    pub raw_clicks: Topic,
    pub catalog: Arc<Reloaded<Catalog>>,
    judges: Judges,
    pub counting: Counting,
    pub runner: Runner,
    pub warehouse: Warehouse,
    pub loader: Loader,
    /// What was found and mended in the log.
    pub repairs: Vec<Repair>,
    pub deployment: Deployment,
}

/// What it takes to open the counting parts, at a start and again after one of them failed.
#[derive(Clone)]
pub struct Counting {
    files: PipelineFiles,
    log: Arc<LocalLog>,
    warehouse: Warehouse,
    topics: Topics,
    dir: PathBuf,
    settings: RunnerSettings,
}

impl Counting {
    /// Goes on from its checkpoint.
    pub async fn runner(&self) -> Result<Runner> {
        let versions = self.warehouse.deployments().await?.into_iter().map(|entry| VersionStart {
            version: entry.version,
            log_id: entry.log_id,
            positions: entry.positions,
        });
        let Counting { files, log, dir, settings, warehouse, .. } = self;
        let rows = TakenOver(warehouse.clone());
        Ok(Runner::open(files, versions.collect(), log.clone(), dir, settings.clone(), Some(&rows)).await?)
    }

    /// Goes on from the last closing.
    pub async fn loader(&self) -> Result<Loader> {
        Ok(Loader::start(&self.warehouse, self.log.clone(), self.topics.clone()).await?)
    }
}

impl Machine {
    /// Opens everything in the data folder, made if there is none. A pipeline that changed is deployed as a new
    /// version; what is wrong with one is an error before anything is touched.
    pub fn open(config: &Config, clock: Arc<dyn Clock>) -> BoxFuture<'_, Result<Machine>> {
        // Boxed, so that it is compiled once and not in every test.
        Box::pin(Machine::open_all(config, clock))
    }

    async fn open_all(config: &Config, clock: Arc<dyn Clock>) -> Result<Machine> {
        config.check()?;
        let lateness = config.lateness();
        let horizon_ms = config.dedup_horizon.as_millis() as i64;
        let files = PipelineFiles::read(&config.pipelines)?;
        runner::check(&files, lateness).await?;
        let digest = runner::digest(&files, lateness, horizon_ms)?;
        let catalog = catalog(config)?;

        let data = &config.data;
        tally_log::durable::create_dir_all(data)?;
        let judges = Judges::open(config)?;
        let (log, repairs) = open_log(config, clock.clone())?;
        let topics = Topics::default();
        let clicks = log.topic(&topics.clicks).await?;
        let raw_clicks = log.topic(&topics.raw_clicks).await?;

        let settings = warehouse::Settings { lateness, ..warehouse::Settings::default() };
        let warehouse = Warehouse::open(&data.join("warehouse"), settings, clock.clone()).await?;
        // The warehouse records what is deployed before the runner keeps anything.
        let kept = data.join("runner");
        anyhow::ensure!(
            !kept.exists() || !warehouse.deployments().await?.is_empty(),
            "{} is missing or empty, and the pipeline has run: its state is in {}. Restore the folder from where it was, or \
             start again with an empty data folder",
            data.join("warehouse").display(),
            kept.display()
        );
        let deployment = match config.again {
            true => warehouse.deploy_again(&*log, &topics, &digest).await?,
            false => warehouse.deploy(&*log, &topics, &digest).await?,
        };
        let settings = RunnerSettings {
            lateness,
            claims: ClaimsSettings { horizon_ms, ..ClaimsSettings::default() },
            checkpoint_every: config.checkpoint_every,
        };
        let (of, dir) = (warehouse.clone(), kept);
        let counting = Counting { files, log: log.clone(), warehouse: of, topics, dir, settings };
        let runner = counting.runner().await?;
        let loader = counting.loader().await?;
        Ok(Machine {
            clock,
            log,
            clicks,
            raw_clicks,
            catalog,
            judges,
            counting,
            runner,
            warehouse,
            loader,
            repairs,
            deployment,
        })
    }

    /// What the configuration says of a redirect.
    pub fn redirect_settings(config: &Config) -> Result<redirect::Settings> {
        Ok(redirect::Settings {
            trusted_proxies: config.redirect.trusted_proxies.clone(),
            country_header: Some(config.redirect.country_header.parse().context("redirect.country_header")?),
            append_wait: config.redirect.append_wait,
            connections_max: serving::connections_max(redirect::Settings::default().connections_max),
            ..redirect::Settings::default()
        })
    }

    /// The spool of this machine's redirect.
    ///
    /// # Errors
    /// If it is damaged, or another's.
    pub fn spool(&self, config: &Config) -> impl Future<Output = Result<Spool>> + Send + use<> {
        let settings = SpoolSettings {
            dir: config.data.join("spool"),
            bytes_max: config.redirect.spool_bytes_max,
            age_max: config.redirect.spool_age_max,
            // Not larger than the log's own files.
            segment_bytes_max: SpoolSettings::default().segment_bytes_max.min(config.log_segment_bytes),
        };
        let (partitions, clock) = (self.clicks.partitions, self.clock.clone());
        async move { Ok(Spool::open(settings, partitions, clock).await?) }
    }

    /// A redirect on this machine's log, or on one that a test puts before it, with a clock of its own.
    pub fn redirect(
        &self,
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        settings: redirect::Settings,
        spool: Option<Spool>,
    ) -> Service {
        let Judges { secret, horizon, keys, blocks, countries } = self.judges.clone();
        let seen = Arc::new(SeenInMemory::new(horizon, SeenInMemory::ENTRIES_MAX));
        let with = With { secret, seen, keys, blocks, countries, spool };
        Service::new(log, self.clicks.clone(), self.catalog.clone(), clock, settings, with)
    }

    /// An ad whose clicks are billed, to try the system with.
    pub fn sample_ad(&self) -> Option<redirect::Ad> {
        let billed = |ad: &&redirect::Ad| ad.state == redirect::AdState::Active;
        let catalog = self.catalog.current();
        catalog.get("ad_9").filter(billed).or_else(|| catalog.ads().find(billed)).cloned()
    }

    /// Records that the runner has not taken in yet.
    pub async fn lag(log: &LocalLog, clicks: &Topic, taken: u64) -> Result<u64> {
        let mut held = 0;
        for partition in 0..clicks.partitions {
            held += log.held(clicks, partition).await?.end as u64;
        }
        Ok(held.saturating_sub(taken))
    }
}

/// The log in the data folder, and what was mended in it.
///
/// # Errors
/// If it is damaged, or another process uses it.
pub fn open_log(config: &Config, clock: Arc<dyn Clock>) -> Result<(Arc<LocalLog>, Vec<Repair>)> {
    let settings =
        LogSettings { partitions_on_demand: Some(config.partitions), segment_bytes_max: config.log_segment_bytes };
    let (log, repairs) = LocalLog::open(&config.data.join("log"), settings, clock)?;
    Ok((Arc::new(log), repairs))
}

/// Final rows, for claims that a new version takes over.
pub(crate) struct TakenOver(pub(crate) Warehouse);

#[async_trait]
impl FinalRows for TakenOver {
    async fn claims(
        &self,
        log_id: LogId,
        partition: Partition,
        offsets: Range<Offset>,
    ) -> Result<Vec<FinalClaim>, String> {
        let rows = self.0.claimants(log_id, partition, offsets).await.map_err(|error| error.to_string())?;
        let claim = |row: warehouse::Claimant| FinalClaim {
            impression_id: row.impression_id,
            offset: row.position.offset,
            appended_at: row.appended_at,
        };
        Ok(rows.into_iter().map(claim).collect())
    }
}

/// What the redirect judges clicks by.
#[derive(Clone)]
struct Judges {
    secret: Secret,
    horizon: Duration,
    keys: Keys,
    blocks: Arc<Reloaded<Blocks>>,
    countries: Option<Arc<Reloaded<Countries>>>,
}

impl Judges {
    fn open(config: &Config) -> Result<Judges> {
        let (of, horizon) = (&config.redirect, config.dedup_horizon);
        Ok(Judges {
            secret: secret(&config.data.join("ip_hash.key"))?,
            horizon,
            keys: of.signatures.keys(of.spool_age_max, of.append_wait, horizon).context("redirect")?,
            blocks: Blocks::follow(of.block_rules.as_deref())?,
            countries: Countries::follow(of.countries.as_deref())?,
        })
    }
}

fn catalog(config: &Config) -> Result<Arc<Reloaded<Catalog>>> {
    match &config.catalog {
        Some(path) => Ok(Reloaded::open(path, "catalog", |path| Catalog::load(path))?),
        None => {
            // The pages are wherever this process serves them.
            let text = SAMPLE_CATALOG.replace(SAMPLE_PAGES, &config.sample.listen.to_string());
            Ok(Reloaded::fixed("catalog", Catalog::parse("catalog/sample.csv", text)?))
        }
    }
}

/// The secret under the hashes of client addresses, made at the first start.
fn secret(path: &Path) -> Result<Secret> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let bytes: Vec<u8> = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4()]
                .iter()
                .flat_map(|id| id.into_bytes())
                .collect();
            tally_log::durable::create_secret(path, &bytes)?;
            bytes
        }
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    Secret::new(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// Removes segments of the log that are past the retention, but nothing that the warehouse still needs, or a restart of the
/// runner, which goes on from `safe`. How many.
pub async fn retain(
    log: &LocalLog,
    config: &Config,
    now: Millis,
    warehouse: &Warehouse,
    safe: &Offsets,
) -> Result<usize> {
    let Some(Needed { clicks, results }) = warehouse.needed().await else { return Ok(0) };
    let age_ms = i64::try_from(config.log_retention.as_millis()).unwrap_or(i64::MAX);
    let names = Topics::default();
    let clicks: Offsets =
        clicks.iter().map(|(partition, offset)| (partition, offset.min(safe.get(partition)))).collect();
    let mut removed = 0;
    for (name, needed) in [
        (names.clicks, clicks),
        (names.raw_clicks, results.raw_clicks),
        (names.clicks_by_minute, results.clicks_by_minute),
    ] {
        let topic = log.topic(&name).await?;
        let mut before = Millis::new(now.get().saturating_sub(age_ms));
        for partition in 0..topic.partitions {
            if let Some(at) = appended_at(log, &topic, partition, needed.get(partition)).await? {
                before = before.min(at);
            }
        }
        removed += log.retain(&name, before).await?;
    }
    Ok(removed)
}

/// When the first record that is held at or after an offset was appended, if there is one.
async fn appended_at(log: &LocalLog, topic: &Topic, partition: Partition, offset: Offset) -> Result<Option<Millis>> {
    let held = log.held(topic, partition).await?;
    let first = offset.max(held.start);
    if first >= held.end {
        return Ok(None);
    }
    let mut consumer = log.consumer(topic, &Offsets::from_iter([(partition, first)])).await?;
    let records = consumer.poll(1, Duration::from_secs(10)).await?;
    Ok(records.first().map(|record| record.appended_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use click::SystemClock;

    #[tokio::test]
    async fn what_has_not_changed_is_deployed_again_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let pipelines = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../pipelines");
        let config = Config { data: dir.path().join("data"), pipelines, ..Config::default() };
        for (again, version, new) in [(false, 1, true), (false, 1, false), (true, 2, true), (false, 2, false)] {
            let config = Config { again, ..config.clone() };
            let deployment = Machine::open(&config, Arc::new(SystemClock)).await.unwrap().deployment;
            assert_eq!((deployment.version, deployment.new), (version, new));
        }
    }
}
