//! Sends what waits in the spool, each partition by itself, until the log acknowledges it.
//!
//! # In which order
//!
//! A partition's clicks are handed to the log oldest first, in batches; a batch begins when all of the one before it have
//! their answers. A click that the log refuses to take holds back all after it. One that it took and then did not acknowledge
//! is sent again with the next batch, after those that were handed over behind it: at most [`BATCH_MAX`] less one overtake
//! it each time. Clicks that find their partition taking clicks again go past the spool, and so past what waits in it.
//! Nothing that is counted rests on more: of the clicks of an impression one is billed, in whatever order they come.

use super::probe::Probe;
use super::queue::Due;
use super::{Open, Place, Spool, SpoolError, from};
use crate::append::Appender;
use crate::for_ever::for_ever;
use bytes::Bytes;
use click::{Event, ImpressionId, Millis, Partition};
use faults::Point;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tally_log::{Log, LogError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Clicks of one partition that are on their way at once.
const BATCH_MAX: usize = 64;
/// How long the log may take for them.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// Pauses after a failure, the shortest and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How long this disk may take to give back what it holds.
const READ_WAIT: Duration = Duration::from_secs(10);
/// How often the spool is tidied, and looked at without a cause.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked what is kept aside.
const COUNT_EVERY: Duration = Duration::from_secs(5);

impl Spool {
    /// Sends for ever; whoever drops this stops it.
    pub(crate) async fn resend(self, appender: Arc<Appender>) {
        let mut tasks = JoinSet::new();
        for partition in 0..appender.topic.partitions {
            let (spool, appender) = (self.clone(), appender.clone());
            tasks.spawn(for_ever(format!("sending partition {partition}"), move || {
                let (spool, appender) = (spool.clone(), appender.clone());
                async move { spool.resend_partition(partition, &appender).await }
            }));
        }
        let spool = self.clone();
        tasks.spawn(for_ever("counting what is kept aside", move || {
            let spool = spool.clone();
            async move { spool.count_aside().await }
        }));
        tasks.spawn(for_ever("tidying", move || {
            let spool = self.clone();
            async move { spool.tend().await }
        }));
        // None of them ends.
        while tasks.join_next().await.is_some() {}
    }

    /// Looks after what is on the disk.
    async fn tend(&self) {
        let (mut probe, mut full) = (Probe::default(), BTreeSet::new());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.tell_full(&mut full);
            // In this order: what opens again was looked at since it failed.
            self.probe(&mut probe).await;
            self.reopen().await;
            if let Err(error) = self.tidy().await {
                // What is kept too long is sent once more at the next start.
                tracing::error!(%error, "the spool could not be tidied");
            }
        }
    }

    /// Says which partitions have their share of the spool, or have room again, and remembers those that have it.
    fn tell_full(&self, told: &mut BTreeSet<Partition>) {
        let full = self.full_partitions();
        let bytes_max = self.0.settings.share_bytes_max(self.0.topic.partitions);
        for partition in full.difference(told) {
            tracing::error!(
                partition,
                bytes_max,
                "the partition fills its share of the spool: past it, its clicks are answered 503"
            );
        }
        for partition in told.difference(&full) {
            tracing::info!(partition, "the partition has room in the spool again");
        }
        *told = full;
    }

    /// By itself, so that a disk that does not answer holds up nothing else, and is asked once.
    async fn count_aside(&self) {
        loop {
            tokio::time::sleep(COUNT_EVERY).await;
            let shared = self.0.clone();
            match tokio::task::spawn_blocking(move || shared.aside.count()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "it is not known what is kept aside"),
                Err(error) => tracing::warn!(%error, "it is not known what is kept aside"),
            }
        }
    }

    async fn resend_partition(&self, partition: Partition, appender: &Appender) {
        // Each has its own: clicks that can still be sent do not age while there is no room to keep others aside.
        let [mut keeping, mut sending] =
            [Pause::new("old clicks were not kept aside"), Pause::new("spooled clicks were not sent")];
        loop {
            let too_old = self.too_old();
            let [old, young] = self.with(partition, |queue| queue.due(BATCH_MAX, too_old)).unwrap_or_default();
            let (keeps, sends) = (!old.is_empty() && keeping.is_over(), !young.is_empty() && sending.is_over());
            if keeps {
                keeping.ended(partition, self.keep_aside(partition, &old).await);
            }
            if sends {
                sending.ended(partition, self.send(partition, &young, appender).await);
            }
            if old.is_empty() && young.is_empty() {
                // Another partition may have been told: a look now and then finds what that missed.
                let _ = tokio::time::timeout(LOOK_EVERY / 10, self.0.changed.notified()).await;
            } else if !keeps && !sends {
                tokio::time::sleep(LOOK_EVERY / 10).await;
            }
        }
    }

    /// What was put in before this is kept aside.
    fn too_old(&self) -> Millis {
        let age_max = i64::try_from(self.0.settings.age_max.as_millis()).unwrap_or(i64::MAX);
        self.0.clock.now().plus(age_max.saturating_neg())
    }

    async fn send(&self, partition: Partition, due: &[Due], appender: &Appender) -> Result<(), SpoolError> {
        let open = self.current().map_err(SpoolError::Unusable)?;
        let young = read(&open, partition, due).await?;
        let until = Instant::now() + SEND_WAIT;
        let mut sent = Vec::new();
        let mut failed = None;
        for (due, value) in young {
            let (key, value) = raised(&value, due.attempt);
            // Dies the process here, the spool still has it, and the next one sends it.
            faults::at(Point::SpoolReplay);
            match in_time(until, appender.send_again(partition, key.as_ref(), value)).await {
                Ok(acknowledgement) => sent.push((due, acknowledgement)),
                Err(error) => {
                    self.with(partition, |queue| queue.tried(due.offset));
                    failed = Some(error);
                    break;
                }
            }
        }
        // What was handed over behind one that fails may be in the log all the same: its answer is waited for as well, so
        // that it is not sent again.
        for (due, acknowledgement) in sent {
            match in_time(until, acknowledgement).await {
                Ok(_) => {
                    // Dies the process here, it is sent once more.
                    faults::at(Point::SpoolSent);
                    self.0.sent_again.fetch_add(1, Ordering::Relaxed);
                    appender.again(partition);
                    self.first_send_ended(Place { partition, offset: due.offset }, true);
                }
                Err(error) => {
                    self.with(partition, |queue| queue.tried(due.offset));
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// A click leaves the spool only when it is durable there.
    async fn keep_aside(&self, partition: Partition, old: &[Due]) -> Result<(), SpoolError> {
        let open = self.current().map_err(SpoolError::Unusable)?;
        let clicks = read(&open, partition, old).await?;
        let clicks: Vec<(Partition, Millis, Bytes)> =
            clicks.into_iter().map(|(due, value)| (partition, due.at, value)).collect();
        let reason = format!("it waited for longer than {:?}", self.0.settings.age_max);
        let shared = self.0.clone();
        // Dies the process after this and before the next lines, they are kept aside once more.
        let kept = tokio::task::spawn_blocking(move || shared.aside.keep(&clicks, &reason)).await;
        let kept =
            kept.map_err(|panicked| panicked.to_string()).and_then(|kept| kept.map_err(|error| error.to_string()));
        kept.map_err(SpoolError::Unusable)?;
        for due in old {
            self.first_send_ended(Place { partition, offset: due.offset }, true);
        }
        Ok(())
    }
}

/// Something that is tried again after a failure, and not before the pause is over.
struct Pause {
    failed: &'static str,
    next: Duration,
    until: Option<Instant>,
}

impl Pause {
    fn new(failed: &'static str) -> Pause {
        Pause { failed, next: PAUSES[0], until: None }
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    fn ended(&mut self, partition: Partition, ended: Result<(), SpoolError>) {
        let Err(error) = ended else {
            *self = Pause::new(self.failed);
            return;
        };
        tracing::warn!(partition, %error, again_in_ms = self.next.as_millis(), "{}", self.failed);
        self.until = Some(Instant::now() + self.next);
        self.next = (self.next * 2).min(PAUSES[1]);
    }
}

/// What the log answers, if it does so before then.
async fn in_time<T>(until: Instant, answer: impl Future<Output = Result<T, LogError>>) -> Result<T, SpoolError> {
    Ok(timeout_at(until, answer).await.map_err(|_| SpoolError::LogTimedOut(SEND_WAIT))??)
}

/// The clicks that are due, from disk. Between them may be others, which were sent.
async fn read(open: &Open, partition: Partition, due: &[Due]) -> Result<Vec<(Due, Bytes)>, SpoolError> {
    let (Some(first), Some(last)) = (due.first(), due.last()) else { return Ok(Vec::new()) };
    let mut consumer = open.log.consumer(&open.topic, &from(partition, first.offset)).await?;
    let mut found = Vec::with_capacity(due.len());
    let mut due = due.iter().peekable();
    while due.peek().is_some() {
        let records = consumer.poll(BATCH_MAX, READ_WAIT).await?;
        if records.is_empty() {
            return Err(SpoolError::TimedOut(READ_WAIT));
        }
        for record in records.iter().take_while(|record| record.offset <= last.offset) {
            if let Some(due) = due.next_if(|due| due.offset == record.offset) {
                found.push((*due, record.value.clone()));
            }
        }
        if records.last().is_some_and(|record| record.offset >= last.offset) {
            break;
        }
    }
    if let Some(missing) = due.next() {
        let what = format!("partition {partition} offset {} was put in and is not there", missing.offset);
        return Err(SpoolError::Damaged { file: open.dir.clone(), what });
    }
    Ok(found)
}

/// The click with the number of this send, and its key. What is no click, which nobody puts here, is sent as it is.
fn raised(value: &Bytes, attempt: u32) -> (Option<ImpressionId>, Bytes) {
    match serde_json::from_slice(value) {
        Ok(Event::Click(mut click)) => {
            click.attempt = attempt;
            let key = click.impression_id.clone();
            (Some(key), serde_json::to_vec(&Event::Click(click)).map_or_else(|_| value.clone(), Bytes::from))
        }
        _ => (None, value.clone()),
    }
}
