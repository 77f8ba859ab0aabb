//! What can be set. Every key has a default; a flag of `tally up` wins over the file.

use anyhow::{Context, Result, bail};
use click::Lateness;
use ipnet::IpNet;
use redirect::config::Signatures;
use redirect::networks::networks;
use redirect::spool::SpoolSettings;
use serde::Deserialize;
use serving::config::duration;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration file, TOML.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Deploy the pipelines also if nothing has changed. No key of the file: it is asked for once.
    #[serde(skip)]
    pub again: bool,
    /// Where everything is kept.
    pub data: PathBuf,
    /// Folder of the pipeline files.
    pub pipelines: PathBuf,
    /// The ads, CSV. Without it the sample catalog.
    pub catalog: Option<PathBuf>,
    /// How long after its minute a click may reach the log and still be on time.
    #[serde(deserialize_with = "duration")]
    pub lateness: Duration,
    /// How much the clocks of the log's machines may differ.
    #[serde(deserialize_with = "duration")]
    pub slack: Duration,
    /// Two clicks on one impression that are less than this apart are a click and its duplicate.
    #[serde(deserialize_with = "duration")]
    pub dedup_horizon: Duration,
    /// How long the log keeps what the warehouse has taken over.
    #[serde(deserialize_with = "duration")]
    pub log_retention: Duration,
    /// Bytes of a segment of the log, which retention removes as a whole.
    pub log_segment_bytes: u64,
    /// How often the runner makes a checkpoint.
    #[serde(deserialize_with = "duration")]
    pub checkpoint_every: Duration,
    /// Partitions of the log's topics, when they are made.
    pub partitions: i32,
    pub redirect: Redirect,
    pub reporting: Reporting,
    pub sample: Sample,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    pub listen: SocketAddr,
    /// Peers that may speak for a client in `X-Forwarded-For` and in the country header.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which a trusted proxy names the client's country.
    pub country_header: String,
    /// How long an answer waits for the log before the click goes to the spool.
    #[serde(deserialize_with = "duration")]
    pub append_wait: Duration,
    /// Bytes of clicks that may wait in the spool.
    pub spool_bytes_max: u64,
    /// Clicks that wait there for longer are kept aside.
    #[serde(deserialize_with = "duration")]
    pub spool_age_max: Duration,
    /// Block rules; without a file nothing is blocked.
    pub block_rules: Option<PathBuf>,
    /// A file in the MaxMind DB format that knows the countries of addresses.
    pub countries: Option<PathBuf>,
    /// Signed URLs.
    pub signatures: Signatures,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reporting {
    pub listen: SocketAddr,
}

/// The landing pages of the sample catalog.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    pub listen: SocketAddr,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Default for Config {
    fn default() -> Self {
        Config {
            again: false,
            data: "data".into(),
            pipelines: "pipelines".into(),
            catalog: None,
            lateness: Duration::from_secs(300),
            slack: Duration::from_secs(30),
            dedup_horizon: Duration::from_secs(86_400),
            log_retention: Duration::from_secs(7 * 86_400),
            log_segment_bytes: 128 << 20,
            checkpoint_every: Duration::from_secs(10),
            partitions: 4,
            redirect: Redirect::default(),
            reporting: Reporting::default(),
            sample: Sample::default(),
        }
    }
}

impl Default for Redirect {
    fn default() -> Self {
        let spool = SpoolSettings::default();
        Redirect {
            listen: loopback(8080),
            trusted_proxies: vec![IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST))],
            country_header: "X-Country".into(),
            append_wait: Duration::from_millis(50),
            spool_bytes_max: spool.bytes_max,
            spool_age_max: spool.age_max,
            block_rules: None,
            countries: None,
            signatures: Signatures::default(),
        }
    }
}

impl Default for Reporting {
    fn default() -> Self {
        Reporting { listen: loopback(8081) }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Sample { listen: loopback(8082) }
    }
}

impl Config {
    /// Reads a file; what it does not name keeps its default.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Config = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        Ok(config)
    }

    /// Refuses what cannot work, naming the key.
    pub fn check(&self) -> Result<()> {
        let most = Duration::from_secs(7 * 86_400);
        let whole = |name: &str, value: Duration, least: Duration| {
            if value < least || value > most || !value.subsec_nanos().is_multiple_of(1_000_000) {
                bail!("{name} is {value:?}: it must be whole milliseconds from {least:?} to 7 days");
            }
            Ok(())
        };
        whole("lateness", self.lateness, Duration::from_millis(1))?;
        whole("slack", self.slack, Duration::ZERO)?;
        whole("dedup_horizon", self.dedup_horizon, Duration::from_secs(60))?;
        whole("checkpoint_every", self.checkpoint_every, Duration::from_millis(100))?;
        if self.log_retention > Duration::from_secs(100 * 366 * 86_400) {
            bail!("log_retention is {:?}: it must be at most a hundred years", self.log_retention);
        }
        if self.log_retention < self.lateness + self.slack + Duration::from_secs(3600) {
            bail!(
                "log_retention is {:?}: it must be at least an hour more than lateness and slack",
                self.log_retention
            );
        }
        if !(1..=256).contains(&self.partitions) {
            bail!("partitions is {}: it must be 1 to 256", self.partitions);
        }
        Ok(())
    }

    pub fn lateness(&self) -> Lateness {
        Lateness { lateness_ms: self.lateness.as_millis() as i64, slack_ms: self.slack.as_millis() as i64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_says_the_defaults() {
        let config: Config = toml::from_str(include_str!("../../tally.toml")).unwrap();
        assert_eq!(config, Config::default());
        config.check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let check = |text: &str, expected: &str| {
            let refused = toml::from_str::<Config>(text).map_err(anyhow::Error::from).and_then(|c| c.check());
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("latness = '5m'", "unknown field `latness`");
        check("lateness = 'soon'", "duration \"soon\"");
        check("lateness = '0s'", "lateness is 0ns");
        check("slack = '8days'", "slack is");
        check("partitions = 0", "partitions is 0");
        check("log_retention = '1h'", "log_retention is");
    }
}
