//! The hint that several redirects share, in a Redis: `SET click:{impressionId} {milliseconds} NX EX {horizon}`.
//!
//! All clicks share one pipelined connection. A click waits for it a few milliseconds, and one that waited in vain is
//! the last: from then on the hint is unknown at once, until a task behind the clicks has connected anew and had an
//! answer. So a Redis that is down, or hangs, costs a click now and then those milliseconds, and nothing else.

use super::SeenBefore;
use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisError};
use async_trait::async_trait;
use click::{ImpressionId, Millis};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long a new connection, and its first answer, may take.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Before each try to connect again. It doubles from the first to the last, and starts anew after a connection that
/// lasted as long as the last.
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How the hint is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// `redis://[user:password@]host:port[/database]`.
    pub url: String,
    /// How long an impression counts as seen after its first click. At least a second, in whole seconds.
    pub horizon: Duration,
    /// How long a click waits for an answer. Less than [`crate::Settings::seen_wait`], which cuts every hint off: only an
    /// answer that is missed here tells that Redis is slow.
    pub wait: Duration,
    /// Clicks that may wait for an answer at once. For one more the hint is unknown.
    pub in_flight_max: usize,
}

impl RedisSettings {
    /// The default for the Redis at `url`: a day, 3 milliseconds, 1,024 clicks.
    pub fn new(url: impl Into<String>) -> Self {
        RedisSettings {
            url: url.into(),
            horizon: Duration::from_secs(86_400),
            wait: Duration::from_millis(3),
            in_flight_max: 1_024,
        }
    }
}

/// What a [`SeenInRedis`] has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedisCounters {
    /// Clicks that Redis was asked about.
    pub asked: u64,
    /// Clicks whose hint is unknown, asked about or not.
    pub unknown: u64,
    /// Connections that were made.
    pub connections: u64,
}

/// The hint in a Redis.
pub struct SeenInRedis {
    link: Arc<Link>,
    wait: Duration,
    horizon_s: u64,
    in_flight: Semaphore,
    asked: AtomicU64,
    unknown: AtomicU64,
    connecting: JoinHandle<()>,
}

impl SeenInRedis {
    /// Connects in the background, on the runtime that this is called on, and stays connected until it is dropped. Until
    /// the first connection the hint is unknown: a redirect starts without Redis, too.
    ///
    /// # Errors
    /// If the URL is none, or one that needs TLS.
    pub fn start(settings: RedisSettings) -> Result<Self, RedisError> {
        let client = Client::open(settings.url)?;
        let link = Arc::new(Link::default());
        Ok(SeenInRedis {
            connecting: tokio::spawn(stay_connected(client, link.clone(), settings.in_flight_max.max(1))),
            link,
            wait: settings.wait,
            horizon_s: settings.horizon.as_secs().max(1),
            in_flight: Semaphore::new(settings.in_flight_max.min(Semaphore::MAX_PERMITS)),
            asked: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        })
    }

    /// What it has done so far.
    pub fn counters(&self) -> RedisCounters {
        RedisCounters {
            asked: self.asked.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
            connections: self.link.connections.load(Ordering::Relaxed),
        }
    }

    /// Whether clicks are asked about now.
    pub fn is_connected(&self) -> bool {
        self.link.connection().is_some()
    }

    async fn ask(&self, impression_id: &ImpressionId, now: Millis) -> Option<bool> {
        let (number, mut connection) = self.link.connection()?;
        let _permit = self.in_flight.try_acquire().ok()?;
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut set = ::redis::cmd("SET");
        set.arg(format!("click:{impression_id}")).arg(now.get()).arg("NX").arg("EX").arg(self.horizon_s);
        match timeout(self.wait, set.query_async::<Option<String>>(&mut connection)).await {
            // OK where it was set now, nil where it was there.
            Ok(Ok(set)) => Some(set.is_none()),
            Ok(Err(error)) => {
                self.link.lose(number, &error);
                None
            }
            Err(_) => {
                self.link.lose(number, &format_args!("no answer within {:?}", self.wait));
                None
            }
        }
    }
}

#[async_trait]
impl SeenBefore for SeenInRedis {
    /// `now` is stored for operators only: the horizon is measured by Redis' clock.
    async fn seen_before(&self, impression_id: &ImpressionId, now: Millis) -> Option<bool> {
        let seen = self.ask(impression_id, now).await;
        if seen.is_none() {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        }
        seen
    }
}

impl Drop for SeenInRedis {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

/// What clicks and the connecting task share.
#[derive(Default)]
struct Link {
    /// None from a failure on until there is a new one. The number tells connections apart: a click that waited for an
    /// old one must not throw away the new.
    connection: RwLock<Option<(u64, MultiplexedConnection)>>,
    connections: AtomicU64,
    lost: Notify,
}

impl Link {
    fn connection(&self) -> Option<(u64, MultiplexedConnection)> {
        // Nothing that can panic runs under the lock.
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connected(&self, connection: MultiplexedConnection) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = Some((number, connection));
        tracing::info!("redis says which clicks were seen before");
    }

    fn lose(&self, number: u64, error: &dyn std::fmt::Display) {
        let mut connection = self.connection.write().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_some_and(|(current, _)| *current == number) {
            *connection = None;
            self.lost.notify_one();
            tracing::warn!(%error, "redis does not say which clicks were seen before; clicks go on without");
        }
    }
}

/// Connects whenever there is no connection, for ever.
async fn stay_connected(client: Client, link: Arc<Link>, in_flight_max: usize) {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_WAIT))
        .set_response_timeout(Some(CONNECT_WAIT))
        .set_pipeline_buffer_size(in_flight_max);
    let mut wait = RECONNECT_WAIT_MIN;
    let mut is_told = false;
    loop {
        match connect(&client, &config).await {
            Ok(connection) => {
                link.connected(connection);
                is_told = false;
                let since = Instant::now();
                link.lost.notified().await;
                if since.elapsed() >= RECONNECT_WAIT_MAX {
                    wait = RECONNECT_WAIT_MIN;
                }
            }
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(%error, "cannot connect to redis");
            }
            Err(_) => {}
        }
        sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
}

/// A connection that answers: one to a Redis that hangs can be made, too.
async fn connect(client: &Client, config: &AsyncConnectionConfig) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    ::redis::cmd("PING").query_async::<String>(&mut connection).await?;
    Ok(connection)
}
