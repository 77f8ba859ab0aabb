//! Settings of the processes of a cluster: `tally run`, `tally load`, `tally topics`, `tally deploy`, `tally claims`. They
//! share one file, so that what has to be the same is said once.

use anyhow::{Result, ensure};
use click::Lateness;
use serde::Deserialize;
use serving::config::duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tally_log::kafka;
use warehouse::clickhouse::ClickHouseSettings;

/// Names of environment variables begin with this.
pub const PREFIX: &str = "TALLY_CLUSTER_";

/// The configuration file, TOML. What it does not name keeps its default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the pipeline files.
    pub pipelines: PathBuf,
    /// How long after its minute a click may reach the log and still be on time.
    #[serde(deserialize_with = "duration")]
    pub lateness: Duration,
    /// How much the brokers' clocks may differ.
    #[serde(deserialize_with = "duration")]
    pub slack: Duration,
    /// Two clicks on one impression that are less than this apart are a click and its duplicate.
    #[serde(deserialize_with = "duration")]
    pub dedup_horizon: Duration,
    pub run: Run,
    pub load: Load,
    pub arroyo: Arroyo,
    pub claims: Claims,
    pub clickhouse: ClickHouseSettings,
    pub kafka: kafka::Settings,
}

/// `tally run`: the pipelines on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Where operators look: `/healthz`, `/readyz`, `/metrics`.
    pub admin_listen: SocketAddr,
    /// Folder of checkpoints and claims.
    pub data: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub checkpoint_every: Duration,
}

/// `tally load`: closes minutes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    pub admin_listen: SocketAddr,
}

/// Where `tally deploy` deploys to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Arroyo {
    /// Of its API, without a path.
    pub url: String,
    /// Beginning of the names of pipelines and consumer groups.
    pub name: String,
    /// The brokers as Arroyo reaches them; by default as this process does.
    pub kafka: Option<String>,
    #[serde(deserialize_with = "duration")]
    pub checkpoint_interval: Duration,
}

/// The Redis of `claim_click`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Claims {
    pub url: String,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Default for Config {
    fn default() -> Self {
        Config {
            pipelines: "pipelines".into(),
            lateness: Duration::from_secs(300),
            slack: Duration::from_secs(30),
            dedup_horizon: Duration::from_secs(86_400),
            run: Run::default(),
            load: Load::default(),
            arroyo: Arroyo::default(),
            claims: Claims::default(),
            clickhouse: ClickHouseSettings::default(),
            kafka: kafka::Settings::default(),
        }
    }
}

impl Default for Run {
    fn default() -> Self {
        Run { admin_listen: loopback(9082), data: "data/run".into(), checkpoint_every: Duration::from_secs(10) }
    }
}

impl Default for Load {
    fn default() -> Self {
        Load { admin_listen: loopback(9083) }
    }
}

impl Default for Arroyo {
    fn default() -> Self {
        Arroyo {
            url: "http://127.0.0.1:5115".into(),
            name: "tally".into(),
            kafka: None,
            checkpoint_interval: Duration::from_secs(10),
        }
    }
}

impl Default for Claims {
    fn default() -> Self {
        Claims { url: "redis://127.0.0.1:6380".into() }
    }
}

impl Config {
    /// Refuses what cannot work, naming the key.
    pub fn check(&self) -> Result<()> {
        let most = Duration::from_secs(7 * 86_400);
        for (name, value, least) in [
            ("lateness", self.lateness, Duration::from_millis(1)),
            ("slack", self.slack, Duration::ZERO),
            ("dedup_horizon", self.dedup_horizon, Duration::from_secs(60)),
            ("run.checkpoint_every", self.run.checkpoint_every, Duration::from_millis(100)),
            ("clickhouse.statement_timeout", self.clickhouse.statement_timeout, Duration::from_secs(1)),
        ] {
            let whole = value.subsec_nanos().is_multiple_of(1_000_000);
            ensure!(
                whole && value >= least && value <= most,
                "{name} is {value:?}: whole milliseconds, {least:?} to 7 days"
            );
        }
        Ok(())
    }

    pub fn lateness(&self) -> Lateness {
        Lateness { lateness_ms: self.lateness.as_millis() as i64, slack_ms: self.slack.as_millis() as i64 }
    }

    pub fn horizon_ms(&self) -> i64 {
        self.dedup_horizon.as_millis() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_says_the_defaults() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/cluster.toml");
        let config: Config = serving::config::read(Some(&file), "NONE_", Vec::new()).unwrap();
        assert_eq!(config, Config::default());
        config.check().unwrap();
    }
}
