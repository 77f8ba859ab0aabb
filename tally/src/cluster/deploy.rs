//! `tally deploy`: the pipelines on Arroyo, and how they are doing there.

use super::config::Config;
use super::run::warehouse;
use crate::status::say;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use claims::Claims;
use click::{Clock, Offset, Offsets, SystemClock};
use deploy::{Arroyo, Cluster, ClusterError, Deadlines, Deployer, Deployment, Progress, Topic};
use pipeline_files::PipelineFiles;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tally_log::kafka::{KafkaLog, groups};
use tally_log::{Log, LogError};
use tokio::sync::Mutex;
use warehouse::sequence::Entry;
use warehouse::{Topics, Warehouse};

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
    runner::check(&files, config.lateness()).await?;
    let functions = deploy::sources();
    deploy::check(&files, &functions, config.lateness())?;
    let arroyo = Arroyo::new(&config.arroyo.url, Deadlines::default()).context("arroyo.url")?;
    let settings = deploy::Settings {
        name: config.arroyo.name.clone(),
        kafka: config.arroyo.kafka.clone().unwrap_or_else(|| config.kafka.brokers.join(",")),
        lateness: config.lateness(),
        horizon_ms: config.horizon_ms(),
        checkpoint_interval: config.arroyo.checkpoint_interval,
        ..deploy::Settings::default()
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

/// How far the rows of a version were read, so that each look reads on.
struct Seen {
    version: i64,
    rows: Offsets,
    consumer: Box<dyn tally_log::Consumer>,
}

/// As much of a raw row as says whose it is.
#[derive(Deserialize)]
struct Row {
    log_partition: i32,
    log_offset: Offset,
    version: i64,
}

/// Records of one poll, and how long a poll waits.
const RECORDS_MAX: usize = 10_000;
const POLL: Duration = Duration::from_millis(500);

impl Parts<'_> {
    async fn warehouse(&self) -> Result<Warehouse> {
        warehouse(self.config).await
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        Ok(self.warehouse().await?.deployments().await?)
    }

    async fn ends(&self, topic: &tally_log::Topic) -> Result<Offsets, LogError> {
        let mut ends = Offsets::default();
        for partition in 0..topic.partitions {
            ends.set(partition, self.log.held(topic, partition).await?.end);
        }
        Ok(ends)
    }

    /// Reads on in `raw_clicks`, to its end of this moment.
    async fn read_on(&self, version: i64) -> Result<Offsets> {
        let topic = self.log.topic(&self.topics.raw_clicks).await?;
        let ends = self.ends(&topic).await?;
        let mut seen = self.seen.lock().await;
        let mut at = match seen.take().filter(|seen| seen.version == version) {
            Some(seen) => seen,
            None => {
                let entries = self.entries().await?;
                let entry = entries.iter().find(|entry| entry.version == version);
                let entry = entry.with_context(|| format!("version {version} is not recorded"))?;
                // Rows that stood in the topic before the deployment are of others.
                let mut start = Offsets::default();
                for partition in 0..topic.partitions {
                    let held = self.log.held(&topic, partition).await?;
                    start.set(partition, entry.result_positions.raw_clicks.get(partition).max(held.start));
                }
                Seen { version, rows: Offsets::default(), consumer: self.log.consumer(&topic, &start).await? }
            }
        };
        while ends.iter().any(|(partition, end)| at.consumer.next().get(partition) < end) {
            for record in at.consumer.poll(RECORDS_MAX, POLL).await? {
                // A record that is no row is the loader's to complain about.
                let Ok(row) = serde_json::from_slice::<Row>(&record.value) else { continue };
                let next = row.log_offset + 1;
                let known = at.rows.iter().any(|(partition, offset)| partition == row.log_partition && offset >= next);
                if row.version == version && !known {
                    at.rows.set(row.log_partition, next);
                }
            }
        }
        let rows = at.rows.clone();
        *seen = Some(at);
        Ok(rows)
    }
}

fn deployment(entry: Entry) -> Deployment {
    Deployment { version: entry.version, digest: entry.digest, log_id: entry.log_id, start: entry.positions }
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

    async fn record(&self, digest: &str) -> Result<Deployment, ClusterError> {
        let warehouse = self.warehouse().await?;
        warehouse.deploy_again(&*self.log, &self.topics, digest).await?;
        let entry = warehouse.deployments().await?.pop();
        Ok(entry.map(deployment).ok_or("the deployment was recorded, and is not there")?)
    }

    async fn announce(&self, _: &Deployment) -> Result<(), ClusterError> {
        let partitions = self.log.topic(&self.topics.clicks).await?.partitions;
        let known = self.entries().await?.into_iter().map(|entry| claims::Deployment {
            version: entry.version,
            log_id: entry.log_id,
            // The claims want every partition; one that is not named starts at its beginning.
            positions: (0..partitions).map(|partition| (partition, entry.positions.get(partition))).collect(),
        });
        let mut claims = Claims::connect(&self.config.claims.url).await?;
        claims.record(&known.collect::<Vec<_>>(), self.config.horizon_ms()).await?;
        Ok(())
    }

    async fn commit(&self, group: &str, start: &Offsets) -> Result<(), ClusterError> {
        let topic = self.log.topic(&self.topics.clicks).await?;
        Ok(groups::commit(&self.config.kafka, group, &topic, start).await?)
    }

    async fn progress(&self, deployment: &Deployment) -> Result<Progress, ClusterError> {
        let clicks = self.log.topic(&self.topics.clicks).await?;
        let rows = self.read_on(deployment.version).await?;
        Ok(Progress { rows, ends: self.ends(&clicks).await? })
    }
}
