//! What can be set of a deployment.

use click::Lateness;
use std::time::Duration;

/// Heartbeats come once a second. A partition without a record between a restart and the next checkpoint loses its
/// position in Arroyo, so there must be several of them between two checkpoints.
const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_secs(2);

/// Arroyo takes no longer one.
const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Pipelines and consumer groups are called `<name>-<file>-<version>`; so two systems can share an Arroyo.
    pub name: String,
    /// Kafka's `bootstrap.servers`, as Arroyo reaches it.
    pub kafka: String,
    /// The same that the loader is given.
    pub lateness: Lateness,
    /// How long an impression stays claimed, in milliseconds of append time.
    pub horizon_ms: i64,
    /// Between two checkpoints: 2 seconds to a day.
    pub checkpoint_interval: Duration,
    /// How long an old pipeline may take to stop with a last checkpoint, and after that to stop at once.
    pub stop_wait: Duration,
    /// How long a pipeline may take until it runs, makes a checkpoint and writes a row of every partition; longer than the
    /// checkpoint interval.
    pub start_wait: Duration,
    /// Between two looks at a pipeline.
    pub poll: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: "tally".into(),
            kafka: "127.0.0.1:9092".into(),
            lateness: Lateness::DEFAULT,
            horizon_ms: 24 * 3_600_000,
            checkpoint_interval: Duration::from_secs(10),
            stop_wait: Duration::from_secs(60),
            start_wait: Duration::from_secs(300),
            poll: Duration::from_millis(250),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {given:?}: {allowed}")]
pub struct SettingsError {
    pub name: &'static str,
    pub given: String,
    pub allowed: &'static str,
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let error = |name, given: String, allowed| Err(SettingsError { name, given, allowed });
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return error("name", self.name.clone(), "it is made of letters, digits and _");
        }
        // It stands in the SQL between single quotes.
        if self.kafka.is_empty() || self.kafka.chars().any(|c| c == '\'' || c.is_control() || c.is_whitespace()) {
            return error("kafka", self.kafka.clone(), "it is a list of host:port with commas between them");
        }
        if !(CHECKPOINT_INTERVAL_MIN..=CHECKPOINT_INTERVAL_MAX).contains(&self.checkpoint_interval) {
            let allowed = "it must be 2s to a day: several heartbeats of every partition between two checkpoints";
            return error("checkpoint interval", format!("{:?}", self.checkpoint_interval), allowed);
        }
        if self.start_wait <= self.checkpoint_interval {
            let allowed =
                "it must be longer than the checkpoint interval: a pipeline works when it has made a checkpoint";
            return error("start wait", format!("{:?}", self.start_wait), allowed);
        }
        Ok(())
    }
}
