//! Where the tables are, as a configuration file says it.

use super::ServerSettings;
use serde::Deserialize;
use serving::config::duration;
use std::time::Duration;

/// A `[clickhouse]` table of TOML.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClickHouseSettings {
    /// Of the HTTP interface.
    pub url: String,
    pub database: String,
    pub user: Option<String>,
    /// A secret: set it by its variable.
    pub password: String,
    #[serde(deserialize_with = "duration")]
    pub statement_timeout: Duration,
}

/// Without the password.
impl std::fmt::Debug for ClickHouseSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseSettings")
            .field("url", &self.url)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl Default for ClickHouseSettings {
    fn default() -> Self {
        ClickHouseSettings {
            url: "http://127.0.0.1:8123".into(),
            database: "tally".into(),
            user: None,
            password: String::new(),
            statement_timeout: Duration::from_secs(60),
        }
    }
}

impl ClickHouseSettings {
    pub fn server(&self) -> ServerSettings {
        let user = self.user.clone().map(|user| (user, self.password.clone()));
        let statement_timeout = self.statement_timeout;
        ServerSettings { user, statement_timeout, ..ServerSettings::new(&self.url, &self.database) }
    }
}
