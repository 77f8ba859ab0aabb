//! `tally run`: the pipelines over Kafka, on one machine.

use super::config::Config;
use super::record::record;
use super::{kafka, until_told};
use crate::machine::TakenOver;
use crate::supervise::{PAUSES, Troubles, supervise};
use crate::up::on_a_thread;
use anyhow::Result;
use click::{Clock, SystemClock};
use pipeline_files::PipelineFiles;
use runner::{ClaimsSettings, Runner, RunnerCounters, RunnerSettings, VersionStart};
use serving::metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tally_log::{Log, Topic};
use warehouse::clickhouse::ClickHouse;
use warehouse::{Deploying, Settings, Topics, Warehouse};

/// How often the loader's progress and the end of the log are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// With `again` the pipelines are deployed also if nothing has changed, at this start alone.
pub async fn run(config: Config, again: bool) -> Result<()> {
    let log = kafka(&config)?;
    let (of, from): (Config, Arc<dyn Log>) = (config.clone(), log.clone());
    let open = move |again| open(of.clone(), from.clone(), again);
    let runner = open(again).await?;
    let counters = runner.counters();
    let troubles = Troubles::default();
    let lag = Arc::new(AtomicU64::new(0));
    let mut metrics = Metrics::default();
    redirect::metrics::kafka(&mut metrics, log.clone());
    run_metrics(&mut metrics, counters.clone(), lag.clone(), troubles.clone());
    let clicks = log.topic(&Topics::default().clicks).await?;
    let (of, admin) = (troubles.clone(), config.run.admin_listen);
    until_told(admin, metrics, troubles, move |stop| {
        let same = counters.clone();
        let open = move || {
            let (opened, same) = (open(false), same.clone());
            async move { Ok(opened.await?.counting_in(same)) }
        };
        let (stopping, running) = (stop.clone(), stop);
        let run = move |runner| on_a_thread(runner, running.clone().told());
        async move {
            let looking = look(config, log, clicks, counters, lag);
            tokio::select! {
                ended = supervise("runner", of, PAUSES, Some(runner), open, run, stopping.told()) => ended,
                never = looking => never,
            }
        }
    })
    .await
}

/// Deploys what is in the folder if it has changed or `again` says so, and opens the runner at its checkpoint.
async fn open(config: Config, log: Arc<dyn Log>, again: bool) -> Result<Runner> {
    let lateness = config.lateness();
    let files = PipelineFiles::read(&config.pipelines)?;
    runner::check(&files, lateness).await?;
    let digest = runner::digest(&files, lateness, config.horizon_ms())?;
    let deploying = Deploying { though_unchanged: again, give_up_begun: again, as_version: None };
    let (warehouse, deployment) = record(&config, &*log, &Topics::default(), &digest, deploying).await?;
    if deployment.new {
        tracing::info!(version = deployment.version, "deployed: what is not final yet is judged by these pipelines");
    }
    let versions = warehouse.deployments().await?.into_iter().map(|entry| VersionStart {
        version: entry.version,
        log_id: entry.log_id,
        positions: entry.positions,
    });
    let settings = RunnerSettings {
        lateness,
        claims: ClaimsSettings { horizon_ms: config.horizon_ms(), ..ClaimsSettings::default() },
        checkpoint_every: config.run.checkpoint_every,
    };
    let rows = TakenOver(warehouse);
    Ok(Runner::open(&files, versions.collect(), log, &config.run.data, settings, Some(&rows)).await?)
}

/// The warehouse as this moment's entries have it.
pub(crate) async fn warehouse(config: &Config) -> Result<Warehouse> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = Settings { lateness: config.lateness(), ..Settings::default() };
    let backend = Arc::new(ClickHouse::open(&config.clickhouse.server()).await?);
    Ok(Warehouse::open_on(backend, settings, clock).await?)
}

/// Keeps the runner's knowledge of what is final, and its lag, up to date. Ends never.
async fn look(
    config: Config,
    log: Arc<dyn Log>,
    clicks: Topic,
    counters: Arc<RunnerCounters>,
    lag: Arc<AtomicU64>,
) -> Result<()> {
    loop {
        let looked = async {
            let through = warehouse(&config).await?.status().complete_through;
            counters.complete_through.store(through.get(), Ordering::Relaxed);
            let mut held = 0;
            for partition in 0..clicks.partitions {
                held += log.held(&clicks, partition).await?.end as u64;
            }
            lag.store(held.saturating_sub(counters.taken.load(Ordering::Relaxed)), Ordering::Relaxed);
            Ok::<(), anyhow::Error>(())
        };
        if let Err(error) = looked.await {
            // Claims are kept for longer then, which is safe.
            tracing::warn!(error = %format!("{error:#}"), "the loader's progress is not known");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn run_metrics(metrics: &mut Metrics, counters: Arc<RunnerCounters>, lag: Arc<AtomicU64>, troubles: Troubles) {
    metrics.read(move |scrape| {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        scrape.counter("tally_run_records", "Records that were judged", read(&counters.records))?;
        scrape.counter("tally_run_undecodable_records", "Records that are no clicks", read(&counters.undecodable))?;
        scrape.counter("tally_run_late_rows", "Rows that came behind their window", read(&counters.late_rows))?;
        scrape.counter("tally_run_checkpoints", "Checkpoints that were made", read(&counters.checkpoints))?;
        scrape.gauge("tally_run_lag_records", "Records that are not judged yet", read(&lag) as f64)?;
        let failed = f64::from(u8::from(troubles.first().is_some()));
        scrape.gauge("tally_run_failed", "1 while the runner has failed and is tried again", failed)
    });
}
