//! The configuration of `tally-redirect`.

use crate::networks::networks;
use crate::seen::redis::RedisSettings;
use crate::settings::Settings;
use crate::signature::Keys;
use crate::spool::SpoolSettings;
use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serving::config::duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tally_log::kafka;

/// The configuration file, TOML. What it does not name keeps its default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where browsers come in.
    pub listen: SocketAddr,
    /// Where operators look: `/healthz`, `/readyz`, `/metrics`. Not for the public.
    pub admin_listen: SocketAddr,
    /// The ads, CSV.
    pub catalog: PathBuf,
    /// What hashes of client addresses are made with; every redirect has the same. A secret: set it by its variable.
    pub ip_hash_key: String,
    pub log: Store,
    pub topic: String,
    /// How long an answer waits for the log.
    #[serde(deserialize_with = "duration")]
    pub append_wait: Duration,
    /// Peers that may speak for a client in `X-Forwarded-For` and in the country header.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which they name whom they speak for: `X-Forwarded-For` or `Forwarded`. They must write or overwrite it.
    pub forwarded_header: String,
    /// Header in which a trusted proxy names the client's country.
    pub country_header: String,
    /// Block rules; without a file nothing is blocked.
    pub block_rules: Option<PathBuf>,
    /// A file in the MaxMind DB format that knows the countries of addresses.
    pub countries: Option<PathBuf>,
    /// Connections that may be open at once.
    pub connections_max: usize,
    /// Two clicks on one impression that are less than this apart are a click and its duplicate: the pipelines' setting, to
    /// which signatures are held. Never the hint's [`Seen::horizon`], which decides nothing.
    #[serde(deserialize_with = "duration")]
    pub dedup_horizon: Duration,
    pub spool: SpoolSettings,
    pub signatures: Signatures,
    pub seen: Seen,
    pub kafka: kafka::Settings,
}

/// Which log clicks go to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    Kafka,
    /// Files in a folder of this machine, of `kafka.partitions` partitions when they are made.
    Local {
        dir: PathBuf,
    },
}

/// Signed URLs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Signatures {
    /// `id:key` of each key by which signatures are checked, parted by spaces. Secrets: set them by their variable. Without one
    /// every well-formed click counts.
    pub keys: String,
    /// How long a signature may last.
    #[serde(deserialize_with = "duration")]
    pub longest: Duration,
}

impl Default for Signatures {
    fn default() -> Self {
        Signatures { keys: String::new(), longest: Duration::from_secs(12 * 3_600) }
    }
}

impl Signatures {
    /// The keys, checked against what else decides that a signed impression is billed once: how long a click may wait in the
    /// spool, and how long an append may take before and after that.
    ///
    /// # Errors
    /// Names the key that cannot be one, never what it is.
    pub fn keys(&self, spool_age_max: Duration, append: Duration, horizon: Duration) -> Result<Keys> {
        let pairs = self.keys.split_whitespace().enumerate().map(|(at, pair)| {
            let pair =
                pair.split_once(':').with_context(|| format!("signatures.keys: entry {} is not id:key", at + 1))?;
            Ok((pair.0, pair.1.as_bytes()))
        });
        let keys = Keys::new(pairs.collect::<Result<Vec<_>>>()?, self.longest).context("signatures.keys")?;
        keys.check_horizon(spool_age_max, append, horizon).context("signatures.longest")?;
        Ok(keys)
    }
}

/// The seen-before hint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seen {
    /// The Redis that all redirects share; without one each remembers for itself.
    pub url: Option<String>,
    /// How long an impression counts as seen, for the hint alone.
    #[serde(deserialize_with = "duration")]
    pub horizon: Duration,
    /// How long a click waits for Redis.
    #[serde(deserialize_with = "duration")]
    pub wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Config {
            listen: loopback(8080),
            admin_listen: loopback(9080),
            catalog: "catalog/sample.csv".into(),
            ip_hash_key: String::new(),
            log: Store::Kafka,
            topic: "clicks".into(),
            append_wait: Duration::from_millis(50),
            trusted_proxies: Vec::new(),
            forwarded_header: "X-Forwarded-For".into(),
            country_header: "X-Country".into(),
            block_rules: None,
            countries: None,
            connections_max: Settings::default().connections_max,
            dedup_horizon: Duration::from_secs(86_400),
            spool: SpoolSettings::default(),
            signatures: Signatures::default(),
            seen: Seen::default(),
            kafka: kafka::Settings::default(),
        }
    }
}

impl Default for Seen {
    fn default() -> Self {
        Seen { url: None, horizon: Duration::from_secs(86_400), wait: Duration::from_millis(3) }
    }
}

impl Config {
    /// What the service is told of it.
    ///
    /// # Errors
    ///
    /// Names the key that cannot be so.
    pub fn settings(&self) -> Result<Settings> {
        let wait = self.seen.wait;
        let seen_wait = Settings::default().seen_wait.max(wait + Duration::from_millis(2));
        ensure!(wait <= Duration::from_millis(50), "seen.wait is {wait:?}: at most 50ms, which a browser waits too");
        ensure!(self.connections_max > 0, "connections_max is 0: at least 1");
        ensure!(
            (Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.append_wait),
            "append_wait is {:?}: 1ms to 1m",
            self.append_wait
        );
        Ok(Settings {
            append_wait: self.append_wait,
            seen_wait,
            trusted_proxies: self.trusted_proxies.clone(),
            forwarded_header: self.forwarded_header.parse().context("forwarded_header")?,
            country_header: Some(self.country_header.parse().context("country_header")?),
            connections_max: self.connections_max,
            ..Settings::default()
        })
    }

    /// The keys by which signatures are checked.
    ///
    /// # Errors
    /// As for [`Signatures::keys`].
    pub fn keys(&self) -> Result<Keys> {
        // A click waits for the log before it goes to the spool, and the log may have it long after it was handed over.
        let delivery = match self.log {
            Store::Kafka => self.kafka.delivery_timeout,
            Store::Local { .. } => Duration::ZERO,
        };
        self.signatures.keys(self.spool.age_max, self.append_wait.saturating_add(delivery), self.dedup_horizon)
    }

    /// How the shared hint is asked for, if there is one.
    pub fn redis_settings(&self) -> Option<RedisSettings> {
        let Seen { url, horizon, wait } = &self.seen;
        url.as_ref().map(|url| RedisSettings { horizon: *horizon, wait: *wait, ..RedisSettings::new(url) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_says_the_defaults() {
        let config: Config = serving::config::read(
            Some(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/redirect.toml")),
            "NONE_",
            Vec::new(),
        )
        .unwrap();
        assert_eq!(config, Config::default());
        config.settings().unwrap();
    }

    #[test]
    fn signatures_are_held_to_the_dedup_horizon_and_not_to_the_hints() {
        let check = |text: &str, why: &str| {
            let keys = format!("k1:{}", "x".repeat(32));
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("redirect.toml");
            std::fs::write(&path, text).unwrap();
            let variables = vec![("T_SIGNATURES__KEYS".to_owned(), keys)];
            let checked = serving::config::read::<Config>(Some(&path), "T_", variables).unwrap().keys();
            let error = checked.err().map(|error| format!("{error:#}")).unwrap_or_default();
            let expected = match why {
                "" => String::new(),
                why => format!("signatures.longest: {why}: a signed impression could be billed twice"),
            };
            assert_eq!(error, expected, "{text}");
        };
        let refused = |longest: &str, append: &str, horizon: &str| {
            format!(
                "signatures may last {longest}, the spool keeps clicks for 3600s (its age_max), an append may take {append} \
                 (append_wait, and on Kafka delivery_timeout), and with a minute that is more than the dedup horizon of {horizon}"
            )
        };
        check("", "");
        check("[signatures]\nlongest = '48h'\n[seen]\nhorizon = '7days'", &refused("172800s", "120.05s", "86400s"));
        check("[signatures]\nlongest = '12h'\n[seen]\nhorizon = '1h'", "");
        check("dedup_horizon = '50h'\n[signatures]\nlongest = '48h'", "");
        check("dedup_horizon = '49h'\n[signatures]\nlongest = '48h'", &refused("172800s", "120.05s", "176400s"));
        // Two hours, a minute, what an append waits, and what Kafka may take for it.
        let tight = |horizon: &str, log: &str, append_wait: &str, delivery: &str| {
            format!(
                "dedup_horizon = '{horizon}'\nappend_wait = '{append_wait}'\nlog = {log}\n[signatures]\nlongest = '1h'\n\
                 [kafka]\ndelivery_timeout = '{delivery}'"
            )
        };
        let (kafka, local) = ("'kafka'", "{ local = { dir = 'data/log' } }");
        check(&tight("2h 3m 1s", kafka, "1s", "2m"), "");
        check(&tight("2h 3m", kafka, "1s", "2m"), &refused("3600s", "121s", "7380s"));
        check(&tight("2h 3m 1s", kafka, "1s", "2m 1s"), &refused("3600s", "122s", "7381s"));
        check(&tight("24h", kafka, "1s", "24h"), &refused("3600s", "86401s", "86400s"));
        check(&tight("2h 1m 1s", local, "1s", "24h"), "");
        check(&tight("2h 1m", local, "1s", "24h"), &refused("3600s", "1s", "7260s"));
    }
}
