//! The processes of a cluster, over Kafka and ClickHouse.
//!
//! * [`config`]: their settings, one file for all
//! * [`run`]: `tally run`, the pipelines on one machine
//! * [`load`]: `tally load`, which closes minutes
//! * [`topics`]: `tally topics`, which makes topics or says what is wrong with them
//! * [`deploy`]: `tally deploy`, the pipelines on Arroyo
//! * [`claims`]: `tally claims`, what Redis lost is made again
//! * `reading`: a topic to its end; `rows`: how far a version's rows have come; `record`: a version, recorded beside the loader

pub mod claims;
pub mod config;
pub mod deploy;
pub mod load;
pub(crate) mod reading;
pub(crate) mod record;
mod rows;
pub mod run;
pub mod topics;

use crate::supervise::Troubles;
use anyhow::{Result, anyhow};
use config::Config;
use serving::admin;
use serving::metrics::Metrics;
use serving::{Limits, process};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use tally_log::kafka::KafkaLog;
use tokio::sync::watch;

/// Kafka, as all of them use it.
pub fn kafka(config: &Config) -> Result<Arc<KafkaLog>> {
    if config.kafka.single_node {
        tracing::warn!("single_node: one broker that is lost takes answered clicks with it");
    }
    Ok(Arc::new(KafkaLog::new(config.kafka.clone())?))
}

/// Runs a part with its port for operators until the process is told to stop, or the part fails for good.
pub async fn until_told<W: Future<Output = Result<()>> + Send + 'static>(
    listen: SocketAddr,
    metrics: Metrics,
    troubles: Troubles,
    part: impl FnOnce(Stop) -> W,
) -> Result<()> {
    let listener = serving::bind("admin", listen).await?;
    let (stop, stopped) = watch::channel(false);
    let ready = admin::known(move || troubles.first().map_or(Ok(()), Err));
    let admin = admin::router(metrics, ready);
    let until = Stop(stopped.clone());
    let admin = tokio::spawn(async move { serving::serve(listener, admin, Limits::default(), until.told()).await });
    tracing::info!(admin = %listen, "started");
    let mut working = tokio::spawn(part(Stop(stopped)));
    let ended = tokio::select! {
        ended = &mut working => Some(ended),
        told = process::told_to_stop() => { told?; None }
    };
    tracing::info!("stopping");
    stop.send_replace(true);
    let ended = match ended {
        Some(ended) => ended,
        None => working.await,
    };
    // It ends with the same stop, and has nothing to lose.
    let _ = admin.await;
    ended.map_err(|died| anyhow!("a task died: {died}"))??;
    tracing::info!("stopped");
    Ok(())
}

/// Tells when to stop, as often as it is asked.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub async fn told(mut self) {
        // The sender is there as long as the process is to run.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
