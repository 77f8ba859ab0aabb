//! Log and warehouse of a machine or of a cluster, for what an operator does beside the processes that run.

use crate::cluster;
use crate::config::Config;
use crate::machine::open_log;
use anyhow::{Result, ensure};
use clap::Args;
use click::{Clock, SystemClock};
use std::path::PathBuf;
use std::sync::Arc;
use tally_log::Log;
use warehouse::Warehouse;

/// Which one, on the command line.
#[derive(Args, Clone)]
pub struct SiteArgs {
    /// Configuration file of `tally up`, which must not be running [default: its defaults]
    #[arg(long, env = "TALLY_CONFIG", conflicts_with = "cluster")]
    config: Option<PathBuf>,
    /// Data folder of `tally up` [default: data]
    #[arg(long, env = "TALLY_DATA", conflicts_with = "cluster")]
    data: Option<PathBuf>,
    /// Configuration file of a cluster: its Kafka and its ClickHouse
    #[arg(long)]
    cluster: Option<PathBuf>,
}

impl SiteArgs {
    /// # Errors
    /// If a file cannot be read, or says what cannot be.
    pub fn site(self) -> Result<Site> {
        if let Some(file) = self.cluster {
            let config: cluster::config::Config =
                serving::config::read(Some(&file), cluster::config::PREFIX, std::env::vars())?;
            config.check()?;
            return Ok(Site::Cluster(Box::new(config)));
        }
        let mut config = self.config.as_deref().map_or(Ok(Config::default()), Config::read)?;
        config.data = self.data.unwrap_or(config.data);
        config.check()?;
        Ok(Site::Machine(Box::new(config)))
    }
}

/// Where clicks are counted.
pub enum Site {
    /// The data folder of `tally up`.
    Machine(Box<Config>),
    Cluster(Box<cluster::config::Config>),
}

impl Site {
    /// Opens its log and warehouse.
    ///
    /// # Errors
    /// If there is none, it is damaged, or on one machine `tally up` runs.
    pub async fn open(&self) -> Result<(Arc<dyn Log>, Warehouse)> {
        match self {
            Site::Machine(config) => {
                let tables = config.data.join("warehouse");
                ensure!(tables.is_dir(), "{} is no data folder of `tally up`", config.data.display());
                let clock: Arc<dyn Clock> = Arc::new(SystemClock);
                let settings = warehouse::Settings { lateness: config.lateness(), ..warehouse::Settings::default() };
                let warehouse = Warehouse::open(&tables, settings, clock.clone()).await?;
                Ok((open_log(config, clock)?.0, warehouse))
            }
            Site::Cluster(config) => Ok((cluster::kafka(config)?, cluster::run::warehouse(config).await?)),
        }
    }
}
