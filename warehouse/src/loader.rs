//! Reads the result topics and decides when minutes are final.
//!
//! * `intake`: what a row changes
//! * `decide`: which minutes can close, and what holds them up
//! * `publish`: what readers in other processes are told

mod again;
mod decide;
mod intake;
mod publish;

use crate::closing::{Closer, RowsOf, Totals, reached, read_record};
use crate::error::{Error, Result};
use crate::live::{Counts, add};
use crate::open::{Inserted, OpenPartition, Slot};
use crate::sequence::{Entry, Kind, Sequence};
use crate::warehouse::{Topics, Warehouse, check_log};
use again::FinalClaims;
use click::{Dimensions, Millis, Minute, Offset, Offsets, Partition, Verdict};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tally_log::{Consumer, Log, LogError, Topic, ends};
use tokio::task::JoinHandle;

/// Records of one poll. They are parsed and counted before the next.
const RECORDS_MAX: usize = 20_000;
/// How long the loader waits for rows before it looks at everything else.
const POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether another process deployed, where one can.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Polls that may be empty, in a [`step`](Loader::step), though the topic goes on.
const EMPTY_POLLS_MAX: usize = 100;
/// Dimensions that are known before those in use are looked for and the others forgotten.
const DIMENSIONS_MAX: usize = 1 << 20;
/// Final minutes whose counts are kept to compare rows that come again with. Each is counted anew when it is asked for.
const FINAL_MINUTES: usize = 16;

/// How often it is looked at how far the log goes, which costs a question for each partition, in milliseconds.
const LOOK_EVERY_MS: i64 = 500;

/// How long no minute closes, though its time has come, before a line of the log says why, and between two such lines.
const TELL_AFTER_MS: i64 = 60_000;

/// How long a partition may give no row of a record that is in the log, before it is named. An engine that starts, or
/// makes a checkpoint, pauses for less.
const SILENT_MS: i64 = 30_000;

/// How the loader is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Minutes before this are final. Its age is the main alarm.
    pub complete_through: Millis,
    /// Raw rows that were counted since the start, each position once.
    pub rows: u64,
    /// The same by verdict, at most 64 of them.
    pub verdicts: BTreeMap<String, u64>,
    /// Rows that are not in the warehouse yet.
    pub open_rows: u64,
    /// Rows that came again.
    pub replayed: u64,
    /// Rows that say otherwise than what is final, or that no rule lets count: of another version or log, or
    /// impossible. Never counted.
    pub refused: u64,
    /// Records of the result topics that are no rows.
    pub unreadable: u64,
    /// Records of the log that are no clicks, taken out since the start.
    pub quarantined: u64,
    /// How far the rows of each partition of `clicks` have come. Looked at twice a second.
    pub partitions: BTreeMap<Partition, Progress>,
    /// Minutes with clicks that are not final.
    pub open_minutes: u64,
    /// Minutes of which every record has its row, and that still do not close: their two counts do not agree, or
    /// nothing may close. Looked at twice a second, and at no more of them than one closing takes.
    pub refused_minutes: u64,
    /// Why no minute closes though its time has come.
    pub waiting: Option<String>,
}

/// How far the rows of a partition have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Append time up to which, without a gap, every record has a decided row: the watermark, but for lateness and
    /// slack. `None` before the first one since the last closing.
    pub reached: Option<Millis>,
    /// Records of the log after that.
    pub lag: u64,
}

impl Status {
    /// Counted rows with this verdict.
    pub fn verdict(&self, verdict: &str) -> u64 {
        self.verdicts.get(verdict).copied().unwrap_or(0)
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Records read from the two topics.
    pub records: usize,
    /// Closings written.
    pub closings: usize,
}

/// What the engine counted in a minute.
#[derive(Default)]
struct EngineMinute {
    counts: HashMap<u32, i64>,
    /// Two rows of one key with different values.
    conflict: Option<String>,
    /// The least offset of its rows in each partition of the result topic.
    note: Vec<(Partition, Offset)>,
}

/// Reads the result topics and writes closings. One per warehouse.
pub struct Loader {
    warehouse: Warehouse,
    log: Arc<dyn Log>,
    topics: Topics,
    clicks: Topic,
    raw_topic: Topic,
    minutes_topic: Topic,
    /// Everything that follows from the entries and the topics, and is made anew at a deployment.
    run: Run,
    /// The closing that is being written.
    closing: Option<JoinHandle<Result<Entry>>>,
    publisher: publish::Publisher,
    /// When it was last looked at how far the log goes.
    looked_at: Millis,
    /// Since when no minute closes though its time has come, or when that was last told.
    waits_since: Option<Millis>,
}

struct Run {
    last: Entry,
    deployment: Entry,
    raw: Box<dyn Consumer>,
    minutes: Box<dyn Consumer>,
    partitions: BTreeMap<Partition, OpenPartition>,
    engine: BTreeMap<Minute, EngineMinute>,
    /// Something that no later row can put right: no minute closes before the next deployment.
    broken: Option<String>,
    /// The loader cannot go on before a record's row has come.
    skipped: Option<String>,
    final_minutes: VecDeque<(Minute, HashMap<Dimensions, i64>)>,
    /// At most one span of each partition.
    final_claims: Vec<FinalClaims>,
}

impl Loader {
    /// Starts where the last closing ended: carries out one that was interrupted, and counts open minutes anew.
    pub async fn start(warehouse: &Warehouse, log: Arc<dyn Log>, topics: Topics) -> Result<Loader> {
        let clicks = log.topic(&topics.clicks).await?;
        let raw_topic = log.topic(&topics.raw_clicks).await?;
        let minutes_topic = log.topic(&topics.clicks_by_minute).await?;
        let run = Run::begin(warehouse, &log, &topics, [&clicks, &raw_topic, &minutes_topic]).await?;
        let warehouse = warehouse.clone();
        let publisher = publish::Publisher::default();
        Ok(Loader {
            warehouse,
            log,
            topics,
            clicks,
            raw_topic,
            minutes_topic,
            run,
            closing: None,
            publisher,
            looked_at: Millis::default(),
            waits_since: None,
        })
    }

    /// Reads what is in the topics and closes what can be closed, until nothing more can be done.
    pub async fn step(&mut self) -> Result<Step> {
        let mut step = Step::default();
        loop {
            self.follow_deployment().await?;
            let raw_end = ends(&*self.log, &self.raw_topic).await.map_err(Error::of_results)?;
            let minutes_end = ends(&*self.log, &self.minutes_topic).await.map_err(Error::of_results)?;
            let mut empty = 0;
            while empty < EMPTY_POLLS_MAX {
                let more = |next: Offsets, end: &Offsets| (!reached(&next, end)).then_some(POLL);
                let waits = [more(self.run.raw.next(), &raw_end), more(self.run.minutes.next(), &minutes_end)];
                if waits == [None, None] {
                    break;
                }
                let records = self.read(waits).await?;
                step.records += records;
                empty = if records == 0 { empty + 1 } else { 0 };
                step.closings += self.close(true).await?;
            }
            self.look_at_holes().await?;
            self.look_at_backlog().await?;
            let closings = self.close(true).await?;
            step.closings += closings;
            if closings == 0 {
                self.publish_now().await?;
                return Ok(step);
            }
        }
    }

    /// Loads until `shutdown` resolves. Rows are read on while a closing is written.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut followed = Instant::now();
        loop {
            if self.warehouse.0.backend.publishes() && followed.elapsed() >= FOLLOW_EVERY {
                self.warehouse.follow().await?;
                followed = Instant::now();
            }
            self.follow_deployment().await?;
            let records = self.read([Some(POLL), Some(Duration::from_millis(1))]).await?;
            self.look_at_holes().await?;
            if self.warehouse.0.clock.now().get() - self.looked_at.get() >= LOOK_EVERY_MS {
                self.look_at_backlog().await?;
            }
            self.close(false).await?;
            self.publish().await;
            // A full poll says that there is more; still the shutdown has to be looked at.
            let pause = if records >= RECORDS_MAX { Duration::ZERO } else { POLL };
            tokio::select! {
                () = &mut shutdown => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // A closing that is being written would be carried out at the next start; it is soon done.
        self.end_closing(true).await.map(|_| ())
    }

    /// Begins anew when a version was deployed: older rows from its positions on are void.
    async fn follow_deployment(&mut self) -> Result<()> {
        if self.warehouse.0.version.load(Ordering::SeqCst) == self.run.deployment.version {
            return Ok(());
        }
        self.end_closing(true).await?;
        let topics = [&self.clicks, &self.raw_topic, &self.minutes_topic];
        self.run = Run::begin(&self.warehouse, &self.log, &self.topics, topics).await?;
        Ok(())
    }

    /// Reads rows that are there, from each topic that has a wait, which is how long it waits for the first one.
    async fn read(&mut self, [raw, minutes]: [Option<Duration>; 2]) -> Result<usize> {
        let mut records = Vec::new();
        if let Some(wait) = raw.filter(|_| !self.is_full()) {
            records = self.run.raw.poll(RECORDS_MAX, wait).await.map_err(Error::of_results)?;
        }
        // Also of none: the counts are up to date as of now.
        self.take_raw(&records).await?;
        let mut read = records.len();
        if let Some(wait) = minutes {
            let records = self.run.minutes.poll(RECORDS_MAX, wait).await.map_err(Error::of_results)?;
            self.take_minutes(&records).await?;
            read += records.len();
        }
        self.report_status();
        Ok(read)
    }

    /// With too many open rows no more are read, as long as those that are there suffice to close a minute.
    fn is_full(&self) -> bool {
        let open: usize = self.run.partitions.values().map(OpenPartition::len).sum();
        let at = self.run.last.through.end().plus(self.warehouse.0.settings.lateness.delay_ms());
        open > self.warehouse.0.settings.open_rows_max
            && self.run.partitions.values().all(|open| open.reached().is_some_and(|reached| reached >= at))
    }

    fn report_status(&mut self) {
        let waiting = self.waiting();
        let mut status = self.warehouse.0.status();
        status.open_rows = self.run.partitions.values().map(|open| open.len() as u64).sum();
        // Most often the engine's rows are on their way.
        let now = self.warehouse.0.clock.now();
        match (&waiting, self.waits_since) {
            (None, _) => self.waits_since = None,
            (Some(_), None) => self.waits_since = Some(now),
            (Some(reason), Some(since)) if now.get() - since.get() >= TELL_AFTER_MS => {
                tracing::warn!(reason, mend = self.mend(), "no minute closes");
                self.waits_since = Some(now);
            }
            _ => {}
        }
        status.waiting = waiting;
    }

    /// Says of when the counts are: of now if there is a row of every record of the log, else of the append time that
    /// the partitions with more records have come to.
    async fn look_at_backlog(&mut self) -> Result<()> {
        self.looked_at = self.warehouse.0.clock.now();
        let ends = ends(&*self.log, &self.clicks).await?;
        for (partition, open) in &mut self.run.partitions {
            open.look(self.looked_at, ends.get(*partition));
        }
        let behind = self.run.partitions.iter().filter(|(partition, open)| open.frontier() < ends.get(**partition));
        let read_to = behind.map(|(_, open)| open.reached()).min().unwrap_or(Some(self.looked_at));
        if let Some(read_to) = read_to {
            let mut live = self.warehouse.0.live.write();
            live.refreshed_at = live.refreshed_at.max(read_to);
        }
        self.report_progress(&ends);
        self.report_status();
        Ok(())
    }

    fn report_progress(&self, ends: &Offsets) {
        let progress = |(partition, open): (&Partition, &OpenPartition)| {
            let lag = u64::try_from(ends.get(*partition) - open.frontier()).unwrap_or(0);
            (*partition, Progress { reached: open.reached(), lag })
        };
        let (open_minutes, refused_minutes) = (self.open_minutes(), self.refused_minutes());
        let mut status = self.warehouse.0.status();
        status.partitions = self.run.partitions.iter().map(progress).collect();
        (status.open_minutes, status.refused_minutes) = (open_minutes, refused_minutes);
    }

    /// Looks at records whose row has not come though a later one has: in the log itself.
    async fn look_at_holes(&mut self) -> Result<()> {
        let now = self.warehouse.0.clock.now();
        self.run.skipped = None;
        for (partition, open) in &mut self.run.partitions {
            while let Some(offset) = open.hole() {
                let since = *open.hole_since.get_or_insert(now);
                if now.get() - since.get() < self.warehouse.0.settings.hole_ms {
                    break;
                }
                let position = click::Position { log_id: self.clicks.log_id, partition: *partition, offset };
                let record = match read_record(&*self.log, &self.clicks, *partition, offset).await {
                    Ok(record) => record,
                    Err(Error::Log(error @ LogError::OutOfRange { .. })) => {
                        self.run.skipped = Some(format!("there is no raw row of {position}, and no record: {error}"));
                        break;
                    }
                    Err(error) => return Err(error),
                };
                if serde_json::from_slice::<click::Event>(&record.value).is_ok() {
                    self.run.skipped = Some(format!("the engine skipped a record at {position}"));
                    break;
                }
                tracing::warn!(partition, offset, "a record that cannot be decoded goes to quarantine");
                let slot = Slot::Quarantined { appended_at: record.appended_at };
                if open.insert(offset, slot, None) == Inserted::New {
                    self.warehouse.0.status().quarantined += 1;
                }
                if let Err(error) = open.advance() {
                    self.run.broken = Some(format!("partition {partition}: {error}"));
                    break;
                }
                // What was missing beside it has been missing as long.
                open.hole_since = Some(since);
            }
        }
        self.report_status();
        Ok(())
    }

    /// Ends the closing that is being written, and begins the next one. Returns how many ended.
    async fn close(&mut self, wait: bool) -> Result<usize> {
        let mut ended = 0;
        loop {
            ended += self.end_closing(wait).await?;
            if self.closing.is_some() || !self.begin_closing() {
                return Ok(ended);
            }
            if !wait {
                return Ok(ended);
            }
        }
    }

    /// Begins a closing, if a minute can close.
    fn begin_closing(&mut self) -> bool {
        let Some((begun, carried)) = self.closable() else { return false };
        let (warehouse, log, topics) = (self.warehouse.clone(), self.log.clone(), self.topics.clone());
        let last = self.run.last.clone();
        self.closing =
            Some(tokio::spawn(async move { write(&warehouse, &*log, &topics, &last, begun, carried).await }));
        true
    }

    /// Takes what a closing made final out of the open rows and counts.
    async fn end_closing(&mut self, wait: bool) -> Result<usize> {
        let Some(task) = &mut self.closing else { return Ok(0) };
        if !wait && !task.is_finished() {
            return Ok(0);
        }
        let ended = task.await;
        self.closing = None;
        let closing = ended.map_err(|error| Error::Died(error.to_string()))??;
        let backend = &self.warehouse.0.backend;
        let view = backend.view(closing.number).await?;
        {
            let mut live = self.warehouse.0.live.write();
            let live = &mut *live;
            for (partition, open) in &mut self.run.partitions {
                let end = closing.positions.get(*partition);
                for (_, slot) in open.before(end) {
                    if let Slot::Row(row) = slot
                        && row.verdict == Verdict::Late
                    {
                        add(&mut live.late, row.minute, row.dimensions, -1);
                    }
                }
                open.drop_before(end);
            }
            live.current = live.current.split_off(&closing.through);
            live.older = live.older.split_off(&closing.through);
            live.go_on(closing.number, closing.through, view);
            let open = self.run.engine.split_off(&closing.through);
            let contradicted = self.run.engine.values().filter(|minute| minute.conflict.is_some()).count();
            self.run.engine = open;
            self.warehouse.0.status().refused += contradicted as u64;
            self.run.forget_dimensions(live);
        }
        self.warehouse.0.status().complete_through = closing.through.start();
        tracing::info!(number = closing.number, through = %closing.through, "minutes are final");
        self.run.last = closing;
        self.report_status();
        Ok(1)
    }
}

/// Writes a closing from its beginning.
async fn write(
    warehouse: &Warehouse,
    log: &dyn Log,
    topics: &Topics,
    last: &Entry,
    begun: Entry,
    carried: Totals,
) -> Result<Entry> {
    let inner = &*warehouse.0;
    let mut sequence = inner.sequence.lock().await;
    let known = sequence.as_mut().filter(|sequence| sequence.last == *last);
    let known = known.ok_or(Error::Taken { table: "closings", number: begun.number })?;
    inner.backend.put_entry(&begun).await?;
    known.begun = Some(begun.clone());
    let rows = RowsOf { log, from: &last.result_positions.raw_clicks };
    let closer = Closer { backend: &*inner.backend, log, topics, rows, clock: &*inner.clock };
    let closing = closer.carry_out(last, &begun, Some(carried)).await?;
    (known.last, known.begun) = (closing.clone(), None);
    // Files that stay small, or stay at all, cost time and space and no click: the next closing tries again.
    if let Err(error) = inner.backend.tidy(last.through, closing.through).await {
        tracing::warn!(%error, "small files were not merged");
    }
    Ok(closing)
}

impl Run {
    async fn begin(
        warehouse: &Warehouse,
        log: &Arc<dyn Log>,
        topics: &Topics,
        [clicks, raw_topic, minutes_topic]: [&Topic; 3],
    ) -> Result<Run> {
        let inner = &*warehouse.0;
        let mut sequence = inner.sequence.lock().await;
        check_log(sequence.as_ref().ok_or(Error::NotDeployed)?, clicks)?;
        warehouse.finish_begun(&mut sequence, &**log, topics).await?;
        let Sequence { last, deployment, .. } = sequence.as_ref().ok_or(Error::NotDeployed)?.clone();
        let start = |topic: &Topic, from: &Offsets| -> Offsets {
            (0..topic.partitions).map(|partition| (partition, from.get(partition))).collect()
        };
        let from = start(raw_topic, &last.result_positions.raw_clicks);
        let raw = log.consumer(raw_topic, &from).await.map_err(Error::of_results)?;
        let from = start(minutes_topic, &last.result_positions.clicks_by_minute);
        let minutes = log.consumer(minutes_topic, &from).await.map_err(Error::of_results)?;
        let (open, ever) = (last.through..Minute::from_number(i64::MAX), Millis::new(i64::MAX));
        let carried = inner.backend.billable(open, ever, &last.positions).await?;
        let view = inner.backend.view(last.number).await?;
        {
            let mut live = inner.live.write();
            let live = &mut *live;
            live.go_on(last.number, last.through, view);
            (live.current, live.older, live.late) = (Counts::new(), Counts::new(), Counts::new());
            for billable in carried {
                let counts = if billable.version == deployment.version { &mut live.current } else { &mut live.older };
                let dimensions = live.dimensions.index(billable.count.dimensions);
                add(counts, billable.count.minute, dimensions, billable.count.clicks);
            }
        }
        inner.status().complete_through = last.through.start();
        let slack_ms = inner.settings.lateness.slack_ms;
        let partitions = (0..clicks.partitions)
            .map(|partition| (partition, OpenPartition::new(last.positions.get(partition), slack_ms)))
            .collect();
        let (engine, final_minutes) = (BTreeMap::new(), VecDeque::new());
        let (broken, skipped) = (None, None);
        let final_claims = Vec::new();
        Ok(Run { last, deployment, raw, minutes, partitions, engine, broken, skipped, final_minutes, final_claims })
    }

    /// The entry that a closing of these minutes and positions begins with.
    fn begun(&self, now: Millis, through: Minute, positions: Offsets) -> Entry {
        let mut result_positions =
            crate::sequence::ResultPositions { raw_clicks: self.raw.next(), clicks_by_minute: self.minutes.next() };
        let mut quarantined = Vec::new();
        for (partition, open) in &self.partitions {
            let end = positions.get(*partition);
            open.lower(&mut result_positions.raw_clicks, end);
            let taken_out = open.before(end).filter(|(_, slot)| matches!(slot, Slot::Quarantined { .. }));
            quarantined.extend(taken_out.map(|(offset, _)| (*partition, offset)));
        }
        for (_, minute) in self.engine.range(through..) {
            for (partition, at) in &minute.note {
                let floor = &mut result_positions.clicks_by_minute;
                floor.set(*partition, floor.get(*partition).min(*at));
            }
        }
        Entry {
            number: self.last.number + 1,
            kind: Kind::Begun,
            through,
            positions,
            result_positions,
            quarantined,
            finalized_at: now.max(self.last.finalized_at),
            ..self.deployment.clone()
        }
    }
}
