//! A log whose appends wait until virtual time has come: a redirect that stalls between clock and log.

use crate::generator::HELD;
use async_trait::async_trait;
use bytes::Bytes;
use click::{Clock, Millis, Offset, Offsets, Partition};
use std::ops::Range;
use std::sync::Arc;
use tally_log::{Acknowledgement, Consumer, Log, LogError, Topic};
use tokio::sync::watch;

/// The time at which whoever still holds a record dies with it.
pub const DEAD: i64 = i64::MAX;

pub struct SlowLog {
    pub inner: Arc<dyn Log>,
    pub clock: Arc<dyn Clock>,
    /// Virtual time in milliseconds, for those who wait for it.
    pub time: watch::Sender<i64>,
}

/// How long a record is held: its user agent says so.
fn held_for(value: &[u8]) -> i64 {
    let event: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
    let held = event["userAgent"].as_str().and_then(|agent| agent.rsplit_once(HELD));
    held.and_then(|(_, ms)| ms.parse().ok()).unwrap_or(0)
}

#[async_trait]
impl Log for SlowLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.inner.topic(name).await
    }

    async fn append(
        &self,
        topic: &Topic,
        partition: Partition,
        _: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        let until = self.clock.now().get() + held_for(&value);
        let (inner, topic, mut time) = (self.inner.clone(), topic.clone(), self.time.subscribe());
        Ok(Box::pin(async move {
            // Without a sender the test is over, and nobody waits for the answer.
            let _ = time.wait_for(|now| *now >= until).await;
            if *time.borrow() == DEAD {
                return Err(LogError::Stopped("the redirect was killed".into()));
            }
            inner.append(&topic, partition, None, value).await?.await
        }))
    }

    async fn consumer(&self, topic: &Topic, start: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        self.inner.consumer(topic, start).await
    }

    async fn held(&self, topic: &Topic, partition: Partition) -> Result<Range<Offset>, LogError> {
        self.inner.held(topic, partition).await
    }

    async fn offset_at(&self, topic: &Topic, partition: Partition, at: Millis) -> Result<Offset, LogError> {
        self.inner.offset_at(topic, partition, at).await
    }
}
