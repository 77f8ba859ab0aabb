//! Hands events to the log and waits until they are durable, but not for ever.

use bytes::Bytes;
use click::{ImpressionId, Millis, Partition};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tally_log::{Appended, Log, LogError, Topic};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One topic of the log, as this redirect writes it.
pub(crate) struct Appender {
    log: Arc<dyn Log>,
    pub topic: Topic,
    wait: Duration,
    in_flight_max: u32,
    /// A permit for every click that was handed over and has no answer yet, whoever still waits for it.
    in_flight: Arc<Semaphore>,
    /// Whether the last append that ended, or was given up, failed.
    failing: AtomicBool,
    /// By partition: the time of the last record that is known to be durable. A heartbeat is due some time after it.
    written_at: Vec<AtomicI64>,
}

/// The record may not be durable.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AppendError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0} clicks wait for an answer already")]
    TooManyInFlight(u32),
}

/// Where the record went, or why that is not known.
pub(crate) type Answer = Result<Appended, AppendError>;

impl Appender {
    pub fn new(log: Arc<dyn Log>, topic: Topic, wait: Duration, in_flight_max: u32) -> Self {
        let written_at = (0..topic.partitions).map(|_| AtomicI64::new(i64::MIN)).collect();
        let in_flight = Arc::new(Semaphore::new(in_flight_max as usize));
        Appender { log, topic, wait, in_flight_max, in_flight, failing: AtomicBool::new(false), written_at }
    }

    /// Appends a click that came in at `at`. With `Ok` it is durable. With an error, or when the caller stops waiting
    /// because its client has gone, the append goes on: the click was made, and if the log takes it, it counts.
    ///
    /// A crash before the log's answer leaves the record whole in the log or not at all, and the click unanswered.
    pub async fn click(self: &Arc<Self>, partition: Partition, key: ImpressionId, at: Millis, value: Bytes) -> Answer {
        let Ok(permit) = self.in_flight.clone().try_acquire_owned() else {
            return self.noted(partition, at, Err(AppendError::TooManyInFlight(self.in_flight_max)));
        };
        let sending = Sending(Some(Box::pin(self.clone().send(partition, key, at, value, permit))));
        match tokio::time::timeout(self.wait, sending).await {
            Ok(answer) => answer,
            Err(_) => self.noted(partition, at, Err(AppendError::TimedOut(self.wait))),
        }
    }

    async fn send(
        self: Arc<Self>,
        partition: Partition,
        key: ImpressionId,
        at: Millis,
        value: Bytes,
        _permit: OwnedSemaphorePermit,
    ) -> Answer {
        let answer = self.hand_over(partition, Some(&key), value).await;
        self.noted(partition, at, answer)
    }

    /// Appends a heartbeat. One that is not answered in time is dropped: the next one says more.
    pub async fn heartbeat(&self, partition: Partition, at: Millis, value: Bytes) -> Answer {
        let answer = tokio::time::timeout(self.wait, self.hand_over(partition, None, value)).await;
        self.noted(partition, at, answer.unwrap_or(Err(AppendError::TimedOut(self.wait))))
    }

    async fn hand_over(&self, partition: Partition, key: Option<&ImpressionId>, value: Bytes) -> Answer {
        let key = key.map(|key| key.as_str().as_bytes());
        Ok(self.log.append(&self.topic, partition, key, value).await?.await?)
    }

    /// Remembers how an append ended, for heartbeats and for readiness. Only a change is worth a line of the
    /// operator's attention: a log that stands still fails thousands of times a second.
    fn noted(&self, partition: Partition, at: Millis, answer: Answer) -> Answer {
        let topic = &self.topic.name;
        match &answer {
            Ok(_) => {
                if let Some(written_at) = usize::try_from(partition).ok().and_then(|i| self.written_at.get(i)) {
                    written_at.store(at.get(), Ordering::Relaxed);
                }
                // Read before written: the usual append leaves the cache line shared between cores.
                if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(topic, partition, "the log takes clicks again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(topic, partition, %error, "the log does not take clicks, which are answered 503");
                }
            }
        }
        answer
    }

    /// Whether the last append failed.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The partitions that this redirect has not written to for `interval_ms` before `now`.
    pub fn silent(&self, now: Millis, interval_ms: i64) -> impl Iterator<Item = Partition> + '_ {
        (0..).zip(&self.written_at).filter_map(move |(partition, written_at)| {
            // A clock that was set back makes the last record lie in the future: that partition is silent, too.
            let age_ms = now.get().saturating_sub(written_at.load(Ordering::Relaxed));
            (age_ms < 0 || age_ms >= interval_ms).then_some(partition)
        })
    }

    /// Clicks that were handed over and have no answer yet.
    pub fn in_flight(&self) -> u32 {
        let free = u32::try_from(self.in_flight.available_permits()).unwrap_or(u32::MAX);
        self.in_flight_max.saturating_sub(free)
    }

    /// Waits until every click that was handed over has its answer.
    pub async fn drained(&self) {
        // Fails only when the semaphore is closed, which nobody does.
        let _ = self.in_flight.acquire_many(self.in_flight_max).await;
    }
}

/// An append that goes on when nobody waits for it any more.
struct Sending(Option<Pin<Box<dyn Future<Output = Answer> + Send>>>);

impl Future for Sending {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Nobody polls after the answer; if somebody did, there is none to give.
        let Some(sending) = self.0.as_mut() else { return Poll::Pending };
        let answer = std::task::ready!(sending.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(answer)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // The usual append is answered by now and costs no task of its own. Without a runtime the process ends, and
        // that is the crash between hand-over and answer.
        if let (Some(sending), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(sending);
        }
    }
}
