//! The warehouse as a whole.

use crate::backend::{Backend, Claimant, Known};
use crate::closing::{Closer, RowsOf};
use crate::delta::Delta;
use crate::error::{Error, Result};
use crate::live::Live;
use crate::loader::Status;
use crate::report::{Report, ReportError, ReportQuery, Reports};
use crate::sequence::{Deployment, Entry, Kind, ResultPositions, Sequence};
use async_trait::async_trait;
use click::{Clock, Lateness, LogId, Millis, Minute, Offset, Offsets, Partition};
use faults::Point;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tally_log::{Log, LogError, Topic, durable, ends};

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The same that the pipeline is given.
    pub lateness: Lateness,
    /// How long a record may have no raw row while a later one has, before it is looked at in the log, in
    /// milliseconds of the clock.
    pub hole_ms: i64,
    /// Minutes that one closing takes at most: bounds what a closing holds in memory.
    pub minutes_max: u32,
    /// With more open rows than this no more are read while a minute could close: bounds the memory, 24 bytes a row.
    pub open_rows_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { lateness: Lateness::DEFAULT, hole_ms: 2_000, minutes_max: 15, open_rows_max: 12_000_000 }
    }
}

/// Names of the topics of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub clicks: String,
    pub raw_clicks: String,
    pub clicks_by_minute: String,
}

impl Default for Topics {
    fn default() -> Self {
        let [clicks, raw_clicks, clicks_by_minute] = ["clicks", "raw_clicks", "clicks_by_minute"].map(String::from);
        Topics { clicks, raw_clicks, clicks_by_minute }
    }
}

/// What a deployment may do besides recording a pipeline that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deploying {
    /// Record a new version though the digest is that of the last one.
    pub though_unchanged: bool,
    /// Give up a repair that began and did not end, or a closing that began and can never be carried out: nothing of it
    /// counted, and the new version counts its minutes. A repair that another process is at finds its number taken.
    pub give_up_begun: bool,
    /// Record this version or none: so of two that deploy at the same time one finds out.
    pub as_version: Option<i64>,
}

/// Where each topic is needed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub clicks: Offsets,
    pub results: ResultPositions,
}

/// A handle on the warehouse. Cheap to clone; answers reports.
#[derive(Clone)]
pub struct Warehouse(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub backend: Arc<dyn Backend>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub live: Live,
    /// Held while an entry is written, so that there is one writer at a time.
    pub sequence: tokio::sync::Mutex<Option<Sequence>>,
    /// The deployed version, 0 for none: a loader sees by it that it has to begin anew.
    pub version: AtomicI64,
    status: Mutex<Status>,
    /// Keeps other processes out.
    _lock: Option<durable::File>,
}

impl Warehouse {
    /// Opens the warehouse on Delta Lake in this folder, made if there is none. What is damaged in it is named.
    pub async fn open(dir: &Path, settings: Settings, clock: Arc<dyn Clock>) -> Result<Warehouse> {
        durable::create_dir_all(dir)?;
        let lock = durable::File::lock(&dir.join("lock"))?.ok_or_else(|| Error::InUse(dir.to_path_buf()))?;
        let backend = Arc::new(Delta::open(dir).await?);
        Warehouse::new(backend, settings, clock, Some(lock)).await
    }

    /// A warehouse on other tables. The caller sees to it that one process uses them.
    pub async fn open_on(backend: Arc<dyn Backend>, settings: Settings, clock: Arc<dyn Clock>) -> Result<Warehouse> {
        Warehouse::new(backend, settings, clock, None).await
    }

    async fn new(
        backend: Arc<dyn Backend>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        lock: Option<durable::File>,
    ) -> Result<Warehouse> {
        let sequence = Sequence::of(backend.entries().await?);
        let last = sequence.as_ref().map(|sequence| &sequence.last);
        let through = last.map_or(Minute::from_number(0), |last| last.through);
        // A closing takes the records that were appended before this.
        let counted_to = |last: &Entry| last.through.start().plus(settings.lateness.delay_ms());
        let (number, counted_to) = last.map_or((0, Millis::default()), |last| (last.number, counted_to(last)));
        let view = backend.view(number).await?;
        let live = Live::new(number, through, view, counted_to, backend.publishes());
        let version = AtomicI64::new(sequence.as_ref().map_or(0, |sequence| sequence.deployment.version));
        let status = Mutex::new(Status { complete_through: through.start(), ..Status::default() });
        let sequence = tokio::sync::Mutex::new(sequence);
        Ok(Warehouse(Arc::new(Inner { backend, settings, clock, live, sequence, version, status, _lock: lock })))
    }

    /// The pipeline with this digest counts from here on. If it is the one that does already, nothing changes; else
    /// it is a new version, which starts where the last closing ended. Returns before the engine is started: what it
    /// writes afterwards counts.
    pub async fn deploy(&self, log: &dyn Log, topics: &Topics, digest: &str) -> Result<Deployment> {
        self.deploy_as(log, topics, digest, Deploying::default()).await
    }

    /// The same, also if the digest has not changed: the way back for an engine that lost its way, or for result
    /// topics that were not read in time. What began and stands in its way is given up.
    pub async fn deploy_again(&self, log: &dyn Log, topics: &Topics, digest: &str) -> Result<Deployment> {
        let how = Deploying { though_unchanged: true, give_up_begun: true, as_version: None };
        self.deploy_as(log, topics, digest, how).await
    }

    /// The same as [`deploy`](Warehouse::deploy), with what else it may do said one by one.
    ///
    /// Dies the process before the entry is put, no version was recorded: a closing that had begun may be carried out by
    /// then, and one that was to be given up can still be; the next call begins anew. Dies it after that, the version counts,
    /// though nobody was told: the next call finds it recorded. One that would record it though it is unchanged has to look
    /// first ([`deployments`](Warehouse::deployments)), or says which version it means.
    ///
    /// # Errors
    /// [`Taken`](Error::Taken) if another process put an entry since this warehouse was opened: nothing was recorded, and
    /// it can be done on one that is opened anew. [`OtherVersion`](Error::OtherVersion) if another version comes next.
    /// [`RepairBegun`](Error::RepairBegun), or what keeps a closing that began from its end, unless it is to be given up.
    pub async fn deploy_as(&self, log: &dyn Log, topics: &Topics, digest: &str, how: Deploying) -> Result<Deployment> {
        let mut sequence = self.0.sequence.lock().await;
        let clicks = log.topic(&topics.clicks).await?;
        if let Some(sequence) = &*sequence {
            check_log(sequence, &clicks)?;
            let Entry { version, positions, .. } = &sequence.deployment;
            if sequence.deployment.digest == digest && !how.though_unchanged {
                return Ok(Deployment { version: *version, positions: positions.clone(), new: false, given_up: None });
            }
        }
        let next = sequence.as_ref().map_or(1, |sequence| sequence.deployment.version + 1);
        if let Some(expected) = how.as_version
            && expected != next
        {
            return Err(Error::OtherVersion { expected, next });
        }
        let mut given_up = None;
        // A closing that began is carried out first, by the rules that it began under.
        match self.finish_begun(&mut sequence, log, topics).await {
            Err(error) if how.give_up_begun && is_without_way_out(&error, topics) => {
                given_up = self.give_up(&sequence, &error).await?;
            }
            finished => finished?,
        }
        let now = self.0.clock.now();
        // Rows that stand in the result topics before this moment are of earlier deployments, or of none.
        let result_positions = ResultPositions {
            raw_clicks: ends(log, &log.topic(&topics.raw_clicks).await?).await?,
            clicks_by_minute: ends(log, &log.topic(&topics.clicks_by_minute).await?).await?,
        };
        let (number, through, positions, finalized_at) = match &*sequence {
            Some(Sequence { last, .. }) => {
                (last.number + 1, last.through, last.positions.clone(), now.max(last.finalized_at))
            }
            None => {
                let (positions, first) = beginning(log, &clicks).await?;
                let through = self.0.settings.lateness.watermark(first.map_or(now, |first| first.min(now))).minute();
                (0, through, positions, now)
            }
        };
        let entry = Entry {
            number,
            kind: Kind::Deployment,
            through,
            log_id: clicks.log_id,
            positions: positions.clone(),
            result_positions,
            version: next,
            digest: digest.to_string(),
            totals: String::new(),
            quarantined: Vec::new(),
            finalized_at,
        };
        faults::at(Point::DeployedBefore);
        self.0.backend.put_entry(&entry).await?;
        faults::at(Point::DeployedAfter);
        *sequence = Some(Sequence { last: entry.clone(), deployment: entry, begun: None });
        {
            let mut live = self.0.live.write();
            live.through = through;
            live.tell_everything();
        }
        self.0.status().complete_through = through.start();
        self.0.version.store(next, Ordering::SeqCst);
        tracing::info!(version = next, %through, "pipeline deployed");
        Ok(Deployment { version: next, positions, new: true, given_up })
    }

    /// Looks for a deployment that another process recorded, and goes on from it if there is one. Does nothing while an
    /// entry is being written here.
    pub(crate) async fn follow(&self) -> Result<()> {
        let Ok(mut sequence) = self.0.sequence.try_lock() else { return Ok(()) };
        let Some(found) = Sequence::of(self.0.backend.entries().await?) else { return Ok(()) };
        let version = found.deployment.version;
        if sequence.as_ref().is_some_and(|known| known.deployment.version >= version) {
            return Ok(());
        }
        tracing::info!(version, "another process deployed a pipeline");
        *sequence = Some(found);
        self.0.version.store(version, Ordering::SeqCst);
        Ok(())
    }

    /// Every deployment so far, oldest first.
    pub async fn deployments(&self) -> Result<Vec<Entry>> {
        let mut deployments = self.0.backend.entries().await?;
        deployments.retain(|entry| entry.kind == Kind::Deployment);
        deployments.sort_by_key(|entry| entry.version);
        Ok(deployments)
    }

    /// The final rows of one partition, at these offsets, that hold the claim of their impression; in the order of their
    /// offsets.
    ///
    /// # Errors
    /// If the tables cannot be read.
    pub async fn claimants(
        &self,
        log_id: LogId,
        partition: Partition,
        offsets: Range<Offset>,
    ) -> Result<Vec<Claimant>> {
        self.0.backend.claimants(log_id, partition, offsets).await
    }

    /// What final rows say of a click: whether it was recorded, or its impression billed.
    ///
    /// # Errors
    /// If the tables cannot be read.
    pub async fn known(&self, click_id: &str, impression_id: &str) -> Result<Known> {
        self.0.backend.known(click_id, impression_id).await
    }

    /// Carries out a closing that a crash left behind.
    pub(crate) async fn finish_begun(
        &self,
        sequence: &mut Option<Sequence>,
        log: &dyn Log,
        topics: &Topics,
    ) -> Result<()> {
        let Some(Sequence { last, begun, .. }) = sequence else { return Ok(()) };
        let Some(entry) = begun.as_ref() else { return Ok(()) };
        if entry.kind == Kind::RepairBegun {
            return Err(Error::RepairBegun { number: entry.number, through: entry.through });
        }
        tracing::info!(number = entry.number, "finishing a closing that was interrupted");
        let Inner { backend, clock, live, .. } = &*self.0;
        let rows = RowsOf { log, from: &last.result_positions.raw_clicks };
        let closer = Closer { backend: &**backend, log, topics, rows, clock: &**clock };
        let closing = closer.carry_out(last, entry, None).await?;
        let view = backend.view(closing.number).await?;
        live.write().go_on(closing.number, closing.through, view);
        (*last, *begun) = (closing, None);
        Ok(())
    }

    /// Gives up the closing or repair that began, and answers its entry. The deployment that follows takes its number.
    async fn give_up(&self, sequence: &Option<Sequence>, error: &Error) -> Result<Option<Entry>> {
        let Some(begun) = sequence.as_ref().and_then(|sequence| sequence.begun.as_ref()) else { return Ok(None) };
        tracing::warn!(number = begun.number, %error, "a closing that began cannot be carried out, and is given up");
        self.0.backend.abandon(begun.number).await?;
        Ok(Some(begun.clone()))
    }

    /// The closing or repair that had begun and not ended when this warehouse was opened. A repair may be under way in
    /// another process.
    pub async fn begun(&self) -> Option<Entry> {
        self.0.sequence.lock().await.as_ref()?.begun.clone()
    }

    /// The last entry that counts. `None` before the first deployment.
    pub async fn last(&self) -> Option<Entry> {
        Some(self.0.sequence.lock().await.as_ref()?.last.clone())
    }

    /// The first offsets of the log that the next closing, a restart or a new version still needs: those of the last
    /// entry. `None` before the first deployment. Waits while a closing is written.
    pub async fn needed(&self) -> Option<Needed> {
        let sequence = self.0.sequence.lock().await;
        let last = &sequence.as_ref()?.last;
        Some(Needed { clicks: last.positions.clone(), results: last.result_positions.clone() })
    }

    /// How the loader is doing.
    pub fn status(&self) -> Status {
        self.0.status().clone()
    }
}

impl Inner {
    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().expect("no one panics with this lock held")
    }
}

#[async_trait]
impl Reports for Warehouse {
    async fn report(&self, query: &ReportQuery) -> std::result::Result<Report, ReportError> {
        self.0.live.report(query).await
    }
}

/// All positions are about one life of the topic.
pub(crate) fn check_log(sequence: &Sequence, clicks: &Topic) -> Result<()> {
    let counted = sequence.last.log_id;
    if counted == clicks.log_id {
        return Ok(());
    }
    Err(Error::OtherLog { topic: clicks.name.clone(), counted, found: clicks.log_id })
}

/// Whether no later try can do better: the rows of a closing that began are not what they were, or not in the result
/// topic any more, or it is a repair, whose rows are in no topic.
fn is_without_way_out(error: &Error, topics: &Topics) -> bool {
    match error {
        Error::RowGone { .. } | Error::Contradiction { .. } | Error::RepairBegun { .. } => true,
        Error::Unread(LogError::OutOfRange { topic, .. }) => *topic == topics.raw_clicks,
        _ => false,
    }
}

/// The first position that is held of every partition, and the append time of the first record of all.
async fn beginning(log: &dyn Log, clicks: &Topic) -> Result<(Offsets, Option<Millis>)> {
    let (mut positions, mut first) = (Offsets::default(), None::<Millis>);
    for partition in 0..clicks.partitions {
        let held = log.held(clicks, partition).await?;
        positions.set(partition, held.start);
        if held.is_empty() {
            continue;
        }
        let start = Offsets::from_iter([(partition, held.start)]);
        let records = log.consumer(clicks, &start).await?.poll(1, Duration::from_secs(10)).await?;
        let appended_at = records.first().map(|record| record.appended_at);
        first = [first, appended_at].into_iter().flatten().min();
    }
    Ok((positions, first))
}
