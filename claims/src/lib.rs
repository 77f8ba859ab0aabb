//! The claims of a cluster, as an operator handles them. They lie in a Redis of their own, where the UDF `claim_click`
//! makes them for Arroyo; on one machine the runner has its own store of claims instead.
//!
//! # Layout
//!
//! * `claim_click`: the UDF's file, `udfs/src/claim_click.rs`. How claims lie in Redis is written there, once, since
//!   Arroyo compiles that file alone
//! * `deployments`: [`Claims::record`], told of every version before it starts
//! * `restore`: [`Claims::rebuild`], after Redis lost claims
//!
//! Every call may be made again after it failed half-way. None of them waits for long: a Redis that does not answer is an
//! error.

#![forbid(unsafe_code)]

// The file says `use arroyo_udf_plugin::udf`.
extern crate udf_linked as arroyo_udf_plugin;

#[path = "../../udfs/src/claim_click.rs"]
mod claim_click;
mod deployments;
mod restore;

pub use claim_click::claim_click;
pub use deployments::Deployment;
pub use restore::{Billed, LogRecord, Rebuilt, Source};

use click::{LogId, Offset, Partition};
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use std::collections::BTreeMap;

/// The claims in one Redis.
pub struct Claims {
    connection: MultiplexedConnection,
}

/// What can go wrong with claims.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// Redis cannot be reached, does not answer, can lose claims, or refuses.
    #[error("claims in Redis: {0}")]
    Redis(#[from] RedisError),
    /// There is no deployment to go by.
    #[error("claims need at least one deployment, and none was given")]
    NoDeployment,
    /// Redis knows something else, or more, of the versions than the caller does.
    #[error("claims in Redis: {0}")]
    Deployment(String),
    /// The rows to restore claims from cannot be read.
    #[error("claims cannot be restored: {from}: {error}")]
    Source { from: Source, error: Box<dyn std::error::Error + Send + Sync> },
    /// The rows to restore claims from are not those of the deployments.
    #[error("claims cannot be restored: {0}")]
    Unfit(String),
}

impl Claims {
    /// Connects to `url`, `redis://[user:password@]host:port[/database]`, in at most a few seconds.
    ///
    /// # Errors
    /// If there is no such Redis, or it can lose claims that it has acknowledged: it must have `appendonly yes`,
    /// `appendfsync always`, `no-appendfsync-on-rewrite no` and `maxmemory-policy noeviction`.
    pub async fn connect(url: &str) -> Result<Self, ClaimsError> {
        Ok(Claims { connection: claim_click::connect(url).await? })
    }

    /// Up to which offset claims are made, that offset included, for every partition of the log that is known.
    ///
    /// # Errors
    /// If Redis does not answer, or answers nonsense.
    pub async fn through(&mut self, log_id: LogId) -> Result<BTreeMap<Partition, Offset>, ClaimsError> {
        let all: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg("claims:through").query_async(&mut self.connection).await?;
        let prefix = format!("{log_id}:");
        let own = all.iter().filter_map(|(place, through)| Some((place.strip_prefix(&prefix)?, through)));
        own.map(|(partition, through)| {
            let offset = through.split(':').next().unwrap_or_default();
            let both = partition.parse().ok().zip(offset.parse().ok());
            both.ok_or_else(|| {
                ClaimsError::Deployment(format!("claims:through has {through:?} for partition {partition:?}"))
            })
        })
        .collect()
    }
}
