//! Event time moves on when traffic does not: partitions that were silent for a while get a heartbeat.

use crate::service::Service;
use bytes::Bytes;
use click::Event;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// The shortest time between two looks at the partitions.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);

impl Service {
    /// Sends heartbeats for ever. [`crate::serve`] does it until it has drained; whoever serves the router in another
    /// way runs this beside it, and drops it to stop.
    pub async fn heartbeats(&self) {
        // Looking more often than the interval keeps the silence of a partition close to it.
        let mut ticks = tokio::time::interval((self.settings().heartbeat_interval / 4).max(LOOK_INTERVAL_MIN));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.heartbeat_once().await;
        }
    }

    /// Sends one heartbeat, with the clock's time, to every partition that this service has not written to for the
    /// heartbeat interval, and waits for the log, each at most for the append wait. Returns how many are durable.
    ///
    /// A crash at any point costs nothing: a heartbeat says only that time went by.
    pub async fn heartbeat_once(&self) -> usize {
        let now = self.now();
        let interval_ms = self.settings().heartbeat_interval.as_millis().min(i64::MAX as u128) as i64;
        let json = serde_json::to_vec(&Event::Heartbeat { timestamp: now })
            .expect("an event has string keys and no value that JSON cannot hold");
        let value = Bytes::from(json);
        // All at once, so that a partition that is stuck holds back no other.
        let mut beats = JoinSet::new();
        for partition in self.appender().silent(now, interval_ms) {
            let (appender, value) = (self.appender().clone(), value.clone());
            beats.spawn(async move { appender.heartbeat(partition, now, value).await.is_ok() });
        }
        beats.join_all().await.into_iter().filter(|durable| *durable).count()
    }
}
