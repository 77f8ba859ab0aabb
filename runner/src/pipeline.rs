//! One pipeline at work: records in, rows out, a checkpoint now and then.
//!
//! Every stage is at-least-once, and every row has a key that a replay reproduces. The order that makes it safe:
//! rows are durable in their topics, then claims are on disk, then the checkpoint says so. Whatever happens between
//! two of these, the pipeline goes on from the older checkpoint and writes the same rows again.

use crate::checkpoint::{Checkpoint, Header};
use crate::claims::Claims;
use crate::error::RunError;
use crate::functions::SharedClaims;
use crate::plan::{Program, Step, StepKind};
use crate::sink;
use crate::source::{BATCH_RECORDS_MAX, Undecodable};
use click::{Millis, Offsets, Partition};
use datafusion::arrow::array::RecordBatch;
use faults::Point;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tally_log::{Acknowledgement, Consumer, Log, Topic};

/// Rows that are on their way into their topics at most.
const IN_FLIGHT_MAX: usize = 65_536;

/// A pipeline and its place in the log.
pub struct Pipeline {
    program: Program,
    log: Arc<dyn Log>,
    from: Topic,
    consumer: Box<dyn Consumer>,
    sinks: HashMap<String, Topic>,
    claims: SharedClaims,
    checkpoint: PathBuf,
    /// From where a restart would read.
    safe: Offsets,
    version: i64,
    in_flight: VecDeque<Acknowledgement>,
    /// The partition that the next batch of rows goes to. Where a row lies says nothing: its key names it.
    to: Partition,
    /// Append time of the last record seen in each partition.
    appended: HashMap<Partition, Millis>,
}

/// What one batch came to.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: usize,
    pub undecodable: Vec<Undecodable>,
}

impl Pipeline {
    /// Goes on from the checkpoint of this version, or starts the version at `start` with empty windows.
    pub async fn open(
        mut program: Program,
        log: Arc<dyn Log>,
        claims: SharedClaims,
        checkpoint: PathBuf,
        version: i64,
        start: &Offsets,
    ) -> Result<Self, RunError> {
        let from = log.topic(&program.source.topic).await?;
        let mut next = start.clone();
        match Checkpoint::read(&checkpoint)? {
            Some(held) if held.header.version > version || held.header.log_id != from.log_id => {
                let Header { version: held_version, log_id, .. } = held.header;
                let what = format!(
                    "belongs to version {held_version} on log {log_id}, and the warehouse says version {version} on log {}: \
                     the warehouse folder is missing or older than the runner's state, or log and state are of two systems",
                    from.log_id
                );
                return Err(RunError::Checkpoint { path: checkpoint, what });
            }
            Some(held) if held.header.version == version => {
                next = held.header.next;
                program.source.restore_watermarks(held.header.watermarks);
                restore_windows(&mut program, &held.windows, &checkpoint)?;
            }
            // Of an older version only its rows before this one's start count, and those are final.
            Some(_) | None => {}
        }
        if program.claims
            && let Some(claims) = lock(&claims).as_ref()
        {
            claims.check_start(from.log_id, &next)?;
        }
        let written = |step: &Step| match &step.kind {
            StepKind::Sink { topic, .. } => Some(topic.clone()),
            _ => None,
        };
        let topics: Vec<String> = program.steps.iter().filter_map(written).collect();
        let mut sinks = HashMap::new();
        for topic in topics {
            let to = log.topic(&topic).await?;
            sinks.insert(topic, to);
        }
        let consumer = log.consumer(&from, &next).await?;
        let (in_flight, appended) = (VecDeque::new(), HashMap::new());
        let safe = consumer.next();
        Ok(Pipeline {
            safe,
            program,
            log,
            from,
            consumer,
            sinks,
            claims,
            checkpoint,
            version,
            in_flight,
            to: 0,
            appended,
        })
    }

    /// Takes the next records through all steps. Waits for them at most as long as said.
    pub async fn step(&mut self, wait: Duration) -> Result<Batch, RunError> {
        let records = self.consumer.poll(BATCH_RECORDS_MAX, wait).await?;
        if records.is_empty() {
            return Ok(Batch::default());
        }
        let name = format!("{} (reading {})", self.program.file, self.program.source.topic);
        let decoded = self.program.source.decode(&records);
        let (batch, undecodable) = decoded.map_err(|error| RunError::Evaluate { step: name, error })?;
        for record in &records {
            self.appended.insert(record.partition, record.appended_at);
        }
        for (topic, rows) in self.evaluate(batch)? {
            self.write(&topic, &rows).await?;
        }
        Ok(Batch { records: records.len(), undecodable })
    }

    /// The rows for each sink. Nothing is written before all steps went through.
    fn evaluate(&mut self, batch: RecordBatch) -> Result<Vec<(String, RecordBatch)>, RunError> {
        let watermark = self.program.source.watermark(self.from.partitions);
        let mut outputs: Vec<RecordBatch> = Vec::with_capacity(self.program.steps.len());
        let mut rows = Vec::new();
        let nothing: Vec<RecordBatch> = self.program.steps.iter().map(|s| s.nothing(&self.program.source)).collect();
        for (number, Step { name, kind }) in self.program.steps.iter_mut().enumerate() {
            let failed = |error| RunError::Evaluate { step: format!("{}, `{name}`,", self.program.file), error };
            let output = match kind {
                StepKind::Source => batch.clone(),
                StepKind::View(node) => node.evaluate(&outputs).map_err(failed)?,
                StepKind::Window { window, rest } => {
                    window.absorb(&outputs).map_err(failed)?;
                    let closed = window.close(watermark).map_err(failed)?;
                    rest.evaluate(&[closed]).map_err(failed)?
                }
                StepKind::Sink { topic, rows: node } => {
                    let made = node.evaluate(&outputs).map_err(failed)?;
                    if made.num_rows() > 0 {
                        rows.push((topic.clone(), made));
                    }
                    nothing[number].clone()
                }
            };
            outputs.push(output);
        }
        Ok(rows)
    }

    async fn write(&mut self, topic: &str, rows: &RecordBatch) -> Result<(), RunError> {
        let Some(topic) = self.sinks.get(topic) else { return Ok(()) };
        let encoded = sink::encode(rows).map_err(|error| RunError::Evaluate {
            step: format!("{}, the rows for {}", self.program.file, topic.name),
            error: error.into(),
        })?;
        let to = self.to % topic.partitions;
        self.to = self.to.wrapping_add(1).max(0);
        faults::at(Point::OutputBefore);
        for value in encoded {
            if self.in_flight.len() >= IN_FLIGHT_MAX
                && let Some(oldest) = self.in_flight.pop_front()
            {
                oldest.await?;
            }
            self.in_flight.push_back(self.log.append(topic, to, None, value).await?);
        }
        Ok(())
    }

    /// Waits until every row so far is durable in its topic.
    pub async fn flush(&mut self) -> Result<(), RunError> {
        while let Some(oldest) = self.in_flight.pop_front() {
            oldest.await?;
        }
        faults::at(Point::OutputAfter);
        Ok(())
    }

    /// Makes everything up to the last batch safe, and goes on from there after a restart.
    pub async fn checkpoint(&mut self) -> Result<(), RunError> {
        // A crash before this returns: the rows come again from the older checkpoint, with the same keys.
        self.flush().await?;
        // A crash before this returns: claims are made again, by the same positions.
        let next = self.consumer.next();
        if self.program.claims
            && let Some(claims) = lock(&self.claims).as_mut()
        {
            faults::at(Point::ClaimsBefore);
            claims.persist(self.from.log_id, &next)?;
            faults::at(Point::ClaimsAfter);
        }
        let mut windows = Vec::new();
        for step in &mut self.program.steps {
            if let StepKind::Window { window, .. } = &mut step.kind {
                let failed = |error| RunError::Evaluate { step: format!("open windows of `{}`", step.name), error };
                windows.push(window.snapshot().map_err(failed)?);
            }
        }
        let watermarks = self.program.source.watermarks().clone();
        let header = Header::new(self.version, self.from.log_id, next, watermarks);
        faults::at(Point::CheckpointBefore);
        Checkpoint { header, windows }.write(&self.checkpoint)?;
        self.safe = self.consumer.next();
        faults::at(Point::CheckpointAfter);
        Ok(())
    }

    /// The append time that every partition has reached; none before each of them has spoken.
    pub fn reached(&self) -> Option<Millis> {
        let spoken = self.appended.len() == self.from.partitions as usize;
        self.appended.values().min().copied().filter(|_| spoken)
    }

    /// The next record that will be read in each partition.
    pub fn next(&self) -> Offsets {
        self.consumer.next()
    }

    /// The next record that a restart would read in each partition.
    pub fn safe(&self) -> &Offsets {
        &self.safe
    }

    /// The topic that is read.
    pub fn from(&self) -> &Topic {
        &self.from
    }

    /// Rows that came after their window's end, over all windows since the start.
    pub fn late_rows(&self) -> u64 {
        let of = |step: &Step| match &step.kind {
            StepKind::Window { window, .. } => window.late_rows(),
            _ => 0,
        };
        self.program.steps.iter().map(of).sum()
    }
}

fn restore_windows(program: &mut Program, states: &[RecordBatch], path: &Path) -> Result<(), RunError> {
    let mut states = states.iter();
    for step in &mut program.steps {
        if let StepKind::Window { window, .. } = &mut step.kind {
            let failed = |what: String| RunError::Checkpoint { path: path.to_path_buf(), what };
            let state = states.next().ok_or_else(|| failed("has fewer windows than the pipeline".into()))?;
            if window.state_schema().map_err(|e| failed(e.to_string()))? != state.schema() {
                return Err(failed(format!("holds windows of another form for `{}`", step.name)));
            }
            window.restore(state).map_err(|e| failed(e.to_string()))?;
        }
    }
    Ok(())
}

/// Claims that another thread left in the middle of a batch are whole: a batch is stored at once or not at all.
pub fn lock(claims: &SharedClaims) -> MutexGuard<'_, Option<Claims>> {
    claims.lock().unwrap_or_else(PoisonError::into_inner)
}
