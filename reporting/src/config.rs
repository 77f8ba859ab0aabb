//! The configuration of `tally-reporting`.

use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use warehouse::clickhouse::ClickHouseSettings;

/// The configuration file, TOML. What it does not name keeps its default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// API and dashboard. Neither asks who reads, so the default is this machine alone.
    pub listen: SocketAddr,
    /// Where operators look: `/healthz`, `/readyz`, `/metrics`. Not for the public.
    pub admin_listen: SocketAddr,
    pub clickhouse: ClickHouseSettings,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Config { listen: loopback(8081), admin_listen: loopback(9081), clickhouse: ClickHouseSettings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_says_the_defaults() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/reporting.toml");
        let config: Config = serving::config::read(Some(&file), "NONE_", Vec::new()).unwrap();
        assert_eq!(config, Config::default());
    }
}
