//! Hands events to the log and waits until they are durable, but not for ever.

use crate::spool::{Spool, SpoolError};
use bytes::Bytes;
use click::{ImpressionId, Millis, Partition};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tally_log::{Acknowledgement, Appended, Log, LogError, Topic};
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
    partitions: Vec<Partitions>,
    spool: Option<Spool>,
}

/// What is known of one partition.
struct Partitions {
    /// The time of the last record that is known to be durable. A heartbeat is due some time after it.
    written_at: AtomicI64,
    /// Whether the last append to it failed or was not answered in time: clicks go straight to the spool until one is.
    stuck: AtomicBool,
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
    /// The log did not take it in time, nor did the spool.
    #[error("{0}")]
    Spool(Arc<SpoolError>),
}

/// Where the record went, or why that is not known.
pub(crate) type Answer = Result<Appended, AppendError>;

/// The least that a heartbeat waits for the log: it keeps nobody waiting.
const HEARTBEAT_WAIT_MIN: Duration = Duration::from_secs(1);

impl Appender {
    pub fn new(log: Arc<dyn Log>, topic: Topic, wait: Duration, in_flight_max: u32, spool: Option<Spool>) -> Self {
        let new = |_| Partitions { written_at: AtomicI64::new(i64::MIN), stuck: AtomicBool::new(false) };
        let partitions = (0..topic.partitions).map(new).collect();
        let in_flight = Arc::new(Semaphore::new(in_flight_max as usize));
        Appender { log, topic, wait, in_flight_max, in_flight, failing: AtomicBool::new(false), partitions, spool }
    }

    /// Appends a click that came in at `at`, to the log, or if that does not answer in time to the spool. With `Ok` it is
    /// durable. With an error, or when the caller stops waiting because its client has gone, the append goes on: the click
    /// was made, and if the log takes it, it counts.
    ///
    /// A crash before an answer of log or spool leaves the record whole or not at all, and the click unanswered.
    pub async fn click(
        self: &Arc<Self>,
        partition: Partition,
        key: ImpressionId,
        at: Millis,
        value: Bytes,
    ) -> Result<(), AppendError> {
        let Some(spool) = &self.spool else {
            let sending = self.begin(partition, key, at, value)?;
            return self.wait_for(partition, at, sending).await.map(drop).map_err(|(error, _)| error);
        };
        let under_way = if self.is_stuck(partition) {
            None
        } else {
            // Too many are under way: that is for the log to mend, and not for this click to wait for.
            match self.begin(partition, key, at, value.clone()) {
                Ok(sending) => match self.wait_for(partition, at, sending).await {
                    Ok(_) => return Ok(()),
                    Err((_, under_way)) => under_way,
                },
                Err(_) => None,
            }
        };
        // Dies the process from here on, the click may be in the log, and nobody was answered. Once the spool has it, it is
        // sent again at the next start, unless the first send is known to have arrived by then.
        let place = spool.append(partition, value).await.map_err(|error| AppendError::Spool(Arc::new(error)))?;
        match under_way {
            None => spool.first_send_ended(place, false),
            Some(sending) => {
                let spool = spool.clone();
                tokio::spawn(async move { spool.first_send_ended(place, sending.await.is_ok()) });
            }
        }
        Ok(())
    }

    /// Hands a click over.
    fn begin(
        self: &Arc<Self>,
        partition: Partition,
        key: ImpressionId,
        at: Millis,
        value: Bytes,
    ) -> Result<Sending, AppendError> {
        match self.in_flight.clone().try_acquire_owned() {
            Ok(permit) => Ok(Sending(Some(Box::pin(self.clone().send(partition, key, at, value, permit))))),
            Err(_) => {
                let error = AppendError::TooManyInFlight(self.in_flight_max);
                self.noted(partition, at, Err(error.clone())).and(Err(error))
            }
        }
    }

    /// Waits as long as a click may. With an error, what is still under way.
    async fn wait_for(
        &self,
        partition: Partition,
        at: Millis,
        mut sending: Sending,
    ) -> Result<Appended, (AppendError, Option<Sending>)> {
        match tokio::time::timeout(self.wait, &mut sending).await {
            Ok(answer) => answer.map_err(|error| (error, None)),
            Err(_) => {
                let error = AppendError::TimedOut(self.wait);
                // It is known by its error; there is nothing to take from it.
                let _ = self.noted(partition, at, Err(error.clone()));
                Err((error, Some(sending)))
            }
        }
    }

    fn is_stuck(&self, partition: Partition) -> bool {
        self.partition(partition).is_some_and(|partition| partition.stuck.load(Ordering::Relaxed))
    }

    fn partition(&self, partition: Partition) -> Option<&Partitions> {
        usize::try_from(partition).ok().and_then(|at| self.partitions.get(at))
    }

    /// Hands over a click that waited in the spool.
    pub async fn send_again(
        &self,
        partition: Partition,
        key: Option<&ImpressionId>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        self.log.append(&self.topic, partition, key.map(|key| key.as_str().as_bytes()), value).await
    }

    /// A click that waited in the spool was acknowledged: the partition takes clicks.
    pub fn again(&self, partition: Partition) {
        if let Some(partition) = self.partition(partition) {
            partition.stuck.store(false, Ordering::Relaxed);
        }
    }

    pub fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref()
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
        let wait = self.wait.max(HEARTBEAT_WAIT_MIN);
        let answer = tokio::time::timeout(wait, self.hand_over(partition, None, value)).await;
        self.noted(partition, at, answer.unwrap_or(Err(AppendError::TimedOut(wait))))
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
                if let Some(known) = self.partition(partition) {
                    known.written_at.store(at.get(), Ordering::Relaxed);
                    // Read before written: the usual append leaves the cache line shared between cores.
                    if known.stuck.load(Ordering::Relaxed) {
                        known.stuck.store(false, Ordering::Relaxed);
                    }
                }
                if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(topic, partition, "the log takes clicks again");
                }
            }
            Err(error) => {
                if let Some(known) = self.partition(partition) {
                    known.stuck.store(true, Ordering::Relaxed);
                }
                if !self.failing.swap(true, Ordering::Relaxed) {
                    let instead = if self.spool.is_some() { "they go to the spool" } else { "they are answered 503" };
                    tracing::error!(topic, partition, %error, "the log does not take clicks; {instead}");
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
        (0..).zip(&self.partitions).filter_map(move |(partition, Partitions { written_at, .. })| {
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
