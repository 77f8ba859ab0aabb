//! `tally load`: reads the result topics and closes minutes.

use super::config::Config;
use super::run::warehouse;
use super::{kafka, until_told};
use crate::supervise::{PAUSES, Troubles, supervise};
use anyhow::Result;
use click::Partition;
use serving::metrics::Metrics;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tally_log::Log;
use warehouse::clickhouse::ClickHouse;
use warehouse::{Loader, Topics, Warehouse};

/// Brings the schema up to date.
pub async fn migrate(config: &Config) -> Result<u64> {
    Ok(ClickHouse::migrate(&config.clickhouse.server()).await?)
}

/// How often it is looked whether a first pipeline was deployed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The warehouse that was opened last: its status is told.
type Newest = Arc<Mutex<Option<Warehouse>>>;

pub async fn load(config: Config) -> Result<()> {
    let log = kafka(&config)?;
    // What is wrong with the warehouse is said before anything is started.
    let newest: Newest = Arc::new(Mutex::new(Some(warehouse(&config).await?)));
    let troubles = Troubles::default();
    let mut metrics = Metrics::default();
    redirect::metrics::kafka(&mut metrics, log.clone());
    load_metrics(&mut metrics, newest.clone(), troubles.clone());
    let of = troubles.clone();
    until_told(config.load.admin_listen, metrics, troubles, move |stop| {
        let stopping = stop.clone();
        let open = move || open(config.clone(), log.clone(), newest.clone());
        let run = move |loader: Loader| {
            let stop = stop.clone();
            async move { Ok(loader.run(stop.told()).await?) }
        };
        async move { supervise("loader", of, PAUSES, None, open, run, stopping.told()).await }
    })
    .await
}

/// A loader on the warehouse as it is now: after a failure both begin anew, since somebody else may have put an entry.
/// Waits for the first deployment.
async fn open(config: Config, log: Arc<dyn Log>, newest: Newest) -> Result<Loader> {
    let mut said = false;
    loop {
        let warehouse = warehouse(&config).await?;
        *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(warehouse.clone());
        match Loader::start(&warehouse, log.clone(), Topics::default()).await {
            Err(warehouse::Error::NotDeployed) if !said => {
                tracing::info!("waiting for the first deployment, by `tally run` or `tally deploy`");
                said = true;
            }
            Err(warehouse::Error::NotDeployed) => {}
            Err(error) => return Err(error.into()),
            Ok(loader) => return Ok(loader),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn load_metrics(metrics: &mut Metrics, newest: Newest, troubles: Troubles) {
    metrics.read(move |scrape| {
        let newest = newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = newest.map(|warehouse| warehouse.status()).unwrap_or_default();
        let through = status.complete_through.get() as f64 / 1000.0;
        scrape.gauge("tally_load_complete_through_timestamp_seconds", "Minutes before this are final", through)?;
        let verdicts = status.verdicts.iter().map(|(verdict, rows)| (verdict, *rows));
        scrape.counters("tally_load_rows", "Raw rows that were counted, by verdict", "verdict", verdicts)?;
        let of = |partition: &Partition| partition.to_string();
        let reached = status
            .partitions
            .iter()
            .filter_map(|(partition, progress)| Some((of(partition), progress.reached?.get() as f64 / 1000.0)));
        scrape.gauges(
            "tally_load_reached_timestamp_seconds",
            "Append time up to which every record has a decided row",
            "partition",
            reached,
        )?;
        let lag = status.partitions.iter().map(|(partition, progress)| (of(partition), progress.lag as f64));
        scrape.gauges("tally_load_lag_records", "Records of the log without a decided row", "partition", lag)?;
        let open = status.open_minutes as f64;
        scrape.gauge("tally_load_open_minutes", "Minutes with clicks that are not final", open)?;
        let refused = status.refused_minutes as f64;
        scrape.gauge("tally_load_refused_minutes", "Complete minutes that do not agree, and do not close", refused)?;
        scrape.gauge("tally_load_open_rows", "Rows that are not in the warehouse yet", status.open_rows as f64)?;
        scrape.counter("tally_load_replayed_rows", "Rows that came again", status.replayed)?;
        scrape.counter(
            "tally_load_refused_rows",
            "Rows that contradict what is final or impossible",
            status.refused,
        )?;
        scrape.counter(
            "tally_load_unreadable_records",
            "Records of result topics that are no rows",
            status.unreadable,
        )?;
        scrape.counter(
            "tally_load_quarantined_records",
            "Records of the log that are no clicks",
            status.quarantined,
        )?;
        let waiting = f64::from(u8::from(status.waiting.is_some()));
        scrape.gauge("tally_load_waiting", "1 while minutes are due and do not close", waiting)?;
        let failed = f64::from(u8::from(troubles.first().is_some()));
        scrape.gauge("tally_load_failed", "1 while the loader has failed and is tried again", failed)
    });
}
