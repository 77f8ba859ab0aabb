//! `tally deploy`: the pipelines on Arroyo, and how they are doing there.

use super::config::Config;
use super::record::record;
use super::rows::{Rows, Seen};
use super::run::warehouse;
use crate::status::say;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use claims::Claims;
use click::{Clock, Offsets, SystemClock};
use deploy::{Arroyo, Cluster, ClusterError, Deadlines, Deployer, Deployment, Progress, Topic};
use pipeline_files::PipelineFiles;
use std::sync::Arc;
use tally_log::kafka::{KafkaLog, groups};
use tally_log::{Log, ends};
use tokio::sync::Mutex;
use warehouse::sequence::{Entry, Kind};
use warehouse::{Deploying, Topics, Warehouse};

/// What is asked of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Deploy what has changed.
    Deploy,
    /// Deploy also what has not changed.
    Again,
    /// Show the steps, and take none.
    DryRun { again: bool },
    /// Show how the pipelines are doing.
    Status,
}

pub async fn deploy(config: &Config, asked: Asked) -> Result<()> {
    let files = PipelineFiles::read(&config.pipelines)?;
    let functions = deploy::sources();
    // Of what is deployed only the names are looked at, whatever the files have become.
    if asked != Asked::Status {
        runner::check(&files, config.lateness()).await?;
        deploy::check(&files, &functions, config.lateness())?;
    }
    let arroyo = Arroyo::new(&config.arroyo.url, Deadlines::default()).context("arroyo.url")?;
    let interval = config.arroyo.checkpoint_interval;
    let defaults = deploy::Settings::default();
    let settings = deploy::Settings {
        name: config.arroyo.name.clone(),
        kafka: config.arroyo.kafka.clone().unwrap_or_else(|| config.kafka.brokers.join(",")),
        lateness: config.lateness(),
        horizon_ms: config.horizon_ms(),
        checkpoint_interval: interval,
        // One that had just begun may end first, and is none of a new start.
        start_wait: defaults.start_wait.max(interval.saturating_mul(3)),
        ..defaults
    };
    let cluster = Parts { config, log: super::kafka(config)?, topics: Topics::default(), seen: Mutex::default() };
    let (arroyo, settings) = (&arroyo, &settings);
    let deployer = Deployer { arroyo, cluster: &cluster, files: &files, functions: &functions, settings };
    match asked {
        Asked::Deploy | Asked::Again => {
            let told = |step: &deploy::Step| say(&format!("{step} …"));
            let deployment = deployer.deploy(asked == Asked::Again, &told).await?;
            say(&format!("version {} counts", deployment.version));
            Ok(())
        }
        Asked::DryRun { again } => {
            say(&deployer.plan(again).await?.to_string());
            Ok(())
        }
        Asked::Status => match deployer.status(SystemClock.now()).await? {
            None => bail!("no pipeline was deployed yet: run `tally deploy`"),
            Some(status) => {
                say(&status.to_string());
                match status.problems.len() {
                    0 => Ok(()),
                    1 => bail!("there is a problem"),
                    problems => bail!("there are {problems} problems"),
                }
            }
        },
    }
}

/// Kafka, the claims and the warehouse.
struct Parts<'a> {
    config: &'a Config,
    log: Arc<KafkaLog>,
    topics: Topics,
    seen: Mutex<Option<Seen>>,
}

impl Parts<'_> {
    async fn warehouse(&self) -> Result<Warehouse> {
        warehouse(self.config).await
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        Ok(self.warehouse().await?.deployments().await?)
    }
}

fn deployment(entry: Entry) -> Deployment {
    Deployment { version: entry.version, digest: entry.digest, log_id: entry.log_id, start: entry.positions }
}

/// What began, as it is told.
fn named(begun: &Entry) -> String {
    let what = if begun.kind == Kind::RepairBegun { "repair" } else { "closing" };
    format!("{what} {} of the minutes before {}", begun.number, begun.through)
}

#[async_trait]
impl Cluster for Parts<'_> {
    async fn topic(&self) -> Result<Topic, ClusterError> {
        let topic = self.log.topic(&self.topics.clicks).await?;
        Ok(Topic { log_id: topic.log_id, partitions: topic.partitions })
    }

    async fn current(&self) -> Result<Option<Deployment>, ClusterError> {
        Ok(self.entries().await?.pop().map(deployment))
    }

    async fn repair(&self) -> Result<Option<String>, ClusterError> {
        let begun = self.warehouse().await?.begun().await;
        Ok(begun.filter(|begun| begun.kind == Kind::RepairBegun).map(|begun| named(&begun)))
    }

    async fn record(&self, digest: &str, version: i64, give_up: bool) -> Result<Deployment, ClusterError> {
        let how = Deploying { though_unchanged: true, give_up_begun: give_up, as_version: Some(version) };
        let (warehouse, recorded) = record(self.config, &*self.log, &self.topics, digest, how).await?;
        if let Some(begun) = recorded.given_up {
            say(&format!("{} was given up: version {version} counts its minutes", named(&begun)));
        }
        let entry = warehouse.deployments().await?.into_iter().find(|entry| entry.version == version);
        Ok(entry.map(deployment).ok_or("the deployment was recorded, and is not there")?)
    }

    async fn announce(&self, _: &Deployment) -> Result<(), ClusterError> {
        let partitions = self.log.topic(&self.topics.clicks).await?.partitions;
        let known = super::claims::deployments(&self.entries().await?, partitions);
        let mut claims = Claims::connect(&self.config.claims.url).await?;
        claims.record(&known, self.config.horizon_ms()).await?;
        Ok(())
    }

    async fn commit(&self, group: &str, start: &Offsets) -> Result<(), ClusterError> {
        let topic = self.log.topic(&self.topics.clicks).await?;
        Ok(groups::commit(&self.config.kafka, group, &topic, start).await?)
    }

    async fn progress(&self, deployment: &Deployment) -> Result<Progress, ClusterError> {
        let clicks = self.log.topic(&self.topics.clicks).await?;
        let mut seen = self.seen.lock().await;
        let read_on = match seen.take().filter(|seen| seen.version() == deployment.version) {
            Some(seen) => seen,
            None => {
                let entries = self.entries().await?;
                let entry = entries.iter().find(|entry| entry.version == deployment.version);
                let entry = entry.with_context(|| format!("version {} is not recorded", deployment.version))?;
                // Rows that stood in the topic before the deployment are of others.
                Seen::new(deployment.version, entry.result_positions.raw_clicks.clone(), clicks.partitions)
            }
        };
        let seen = seen.insert(read_on);
        let raw_clicks = self.log.topic(&self.topics.raw_clicks).await?;
        let Rows { next, written } = seen.read_on(&*self.log, &raw_clicks, SystemClock.now()).await?.clone();
        Ok(Progress { rows: next, written, ends: ends(&*self.log, &clicks).await? })
    }
}
