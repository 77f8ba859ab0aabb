//! `tally load`: reads the result topics and closes minutes.

use super::config::Config;
use super::{kafka, until_told};
use crate::supervise::{PAUSES, Troubles, supervise};
use anyhow::Result;
use click::{Clock, SystemClock};
use serving::metrics::Metrics;
use std::sync::{Arc, Mutex, PoisonError};
use tally_log::Log;
use warehouse::clickhouse::ClickHouse;
use warehouse::{Loader, Settings, Topics, Warehouse};

/// Brings the schema up to date.
pub async fn migrate(config: &Config) -> Result<u64> {
    Ok(ClickHouse::migrate(&config.clickhouse.server()).await?)
}

/// The loader, with the warehouse that it writes to: both begin anew after a failure, since somebody else may have
/// written an entry.
struct Loading {
    warehouse: Warehouse,
    loader: Loader,
}

pub async fn load(config: Config) -> Result<()> {
    let log = kafka(&config)?;
    let (of, from): (Config, Arc<dyn Log>) = (config.clone(), log.clone());
    let open = move || open(of.clone(), from.clone());
    let loading = open().await?;
    // The newest warehouse is the one whose status is told.
    let newest = Arc::new(Mutex::new(loading.warehouse.clone()));
    let troubles = Troubles::default();
    let mut metrics = Metrics::default();
    redirect::metrics::kafka(&mut metrics, log);
    load_metrics(&mut metrics, newest.clone(), troubles.clone());
    let of = troubles.clone();
    until_told(config.load.admin_listen, metrics, troubles, move |stop| {
        let stopping = stop.clone();
        let run = move |Loading { warehouse, loader }: Loading| {
            *newest.lock().unwrap_or_else(PoisonError::into_inner) = warehouse;
            let stop = stop.clone();
            async move { Ok(loader.run(stop.told()).await?) }
        };
        async move { supervise("loader", of, PAUSES, loading, open, run, stopping.told()).await }
    })
    .await
}

async fn open(config: Config, log: Arc<dyn Log>) -> Result<Loading> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = Settings { lateness: config.lateness(), ..Settings::default() };
    let backend = Arc::new(ClickHouse::open(&config.clickhouse.server()).await?);
    let warehouse = Warehouse::open_on(backend, settings, clock).await?;
    let loader = Loader::start(&warehouse, log, Topics::default()).await?;
    Ok(Loading { warehouse, loader })
}

fn load_metrics(metrics: &mut Metrics, newest: Arc<Mutex<Warehouse>>, troubles: Troubles) {
    metrics.read(move |scrape| {
        let status = newest.lock().unwrap_or_else(PoisonError::into_inner).status();
        let through = status.complete_through.get() as f64 / 1000.0;
        scrape.gauge("tally_load_complete_through_timestamp_seconds", "Minutes before this are final", through)?;
        scrape.counters("tally_load_rows", "Raw rows that were counted, by verdict", "verdict", &status.verdicts)?;
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
