//! All pipelines of a deployment, with the claims they share.

use crate::claims::{Claims, ClaimsSettings, VersionStart};
use crate::error::RunError;
use crate::functions::{self, SharedClaims};
use crate::pipeline::{Pipeline, lock};
use crate::plan::{functions_for_check, plan};
use crate::restore::{FinalRows, restore};
use click::{Lateness, Millis, Offsets};
use pipeline_files::{PipelineFiles, SqlError, of_nobody, variables};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tally_log::Log;
use tracing::{info, warn};

/// How the runner behaves.
#[derive(Debug, Clone)]
pub struct RunnerSettings {
    pub lateness: Lateness,
    pub claims: ClaimsSettings,
    /// A restart reads again at most what came since the last checkpoint.
    pub checkpoint_every: Duration,
}

impl Default for RunnerSettings {
    fn default() -> Self {
        RunnerSettings {
            lateness: Lateness::DEFAULT,
            claims: ClaimsSettings::default(),
            checkpoint_every: Duration::from_secs(10),
        }
    }
}

/// Counters that others may read while the runner runs.
#[derive(Debug, Default)]
pub struct RunnerCounters {
    pub records: AtomicU64,
    /// Records of the log that every pipeline has taken in, over all partitions from offset 0.
    pub taken: AtomicU64,
    pub undecodable: AtomicU64,
    pub late_rows: AtomicU64,
    pub checkpoints: AtomicU64,
    /// To be told by whoever knows: minutes before this are final, in milliseconds. Claims are kept for longer than a
    /// replay from there needs them; from the beginning, as long as nobody says.
    pub complete_through: AtomicI64,
    /// From where a restart would read the log: what is before it is not needed by this runner.
    pub safe: Mutex<Offsets>,
}

/// Plans every file for no deployment at all, to find what is wrong with it.
pub async fn check(files: &PipelineFiles, lateness: Lateness) -> Result<(), SqlError> {
    for file in files.filled(&of_nobody(lateness))? {
        plan(&file, functions_for_check()).await?;
    }
    Ok(())
}

/// What makes two deployments to this runner the same: files, settings that counts depend on, and functions.
pub fn digest(files: &PipelineFiles, lateness: Lateness, horizon_ms: i64) -> Result<String, SqlError> {
    files.digest(
        lateness,
        horizon_ms,
        udfs::sources().iter().filter(|function| function.linked).map(|function| (function.name, function.source)),
    )
}

/// The pipelines of one deployment.
pub struct Runner {
    pipelines: Vec<Pipeline>,
    claims: SharedClaims,
    settings: RunnerSettings,
    counters: Arc<RunnerCounters>,
}

impl Runner {
    /// Opens the state in `dir` for the newest of the versions, which are in order, and the files that it runs.
    /// `rows` are the final rows; without them, or for a checkpoint, claims that were lost are an error.
    pub async fn open(
        files: &PipelineFiles,
        versions: Vec<VersionStart>,
        log: Arc<dyn Log>,
        dir: &Path,
        settings: RunnerSettings,
        rows: Option<&dyn FinalRows>,
    ) -> Result<Self, RunError> {
        let Some(newest) = versions.last().cloned() else {
            return Err(RunError::Checkpoint { path: dir.to_path_buf(), what: "no version was deployed".into() });
        };
        tally_log::durable::create_dir_all(dir)
            .map_err(|e| RunError::Checkpoint { path: dir.to_path_buf(), what: e.to_string() })?;
        let mut claims = Claims::open(&dir.join("claims"), settings.claims.clone(), versions)?;
        if let Some(rows) = rows {
            let restored = restore(&mut claims, &newest, rows).await?;
            if restored > 0 {
                info!(restored, "claims before this version were taken over from final rows");
            }
        }
        let claims: SharedClaims = Arc::new(Mutex::new(Some(claims)));
        let mut pipelines = Vec::new();
        for file in files.filled(&variables(settings.lateness, newest.version, &newest.log_id.to_string()))? {
            let program = plan(&file, functions::all(claims.clone())).await?;
            let stem = Path::new(&file.name).file_stem().map_or("pipeline".into(), |stem| stem.to_string_lossy());
            let checkpoint = dir.join(format!("{stem}.checkpoint"));
            let version = newest.version;
            let start = &newest.positions;
            pipelines.push(Pipeline::open(program, log.clone(), claims.clone(), checkpoint, version, start).await?);
        }
        let runner = Runner { pipelines, claims, settings, counters: Arc::default() };
        runner.count_taken();
        runner.note_safe();
        Ok(runner)
    }

    /// Goes on in the counters of a runner before it.
    pub fn counting_in(mut self, counters: Arc<RunnerCounters>) -> Self {
        self.counters = counters;
        self.count_taken();
        self.note_safe();
        self
    }

    pub fn counters(&self) -> Arc<RunnerCounters> {
        self.counters.clone()
    }

    /// Takes in what is in the log now, to its end; what came of it is in the topics then. Returns how many records
    /// that were.
    pub async fn catch_up(&mut self) -> Result<usize, RunError> {
        let mut records = 0;
        loop {
            let taken = self.step(Duration::ZERO).await?;
            records += taken;
            if taken == 0 {
                break;
            }
        }
        for pipeline in &mut self.pipelines {
            pipeline.flush().await?;
        }
        Ok(records)
    }

    /// One batch of every pipeline.
    async fn step(&mut self, wait: Duration) -> Result<usize, RunError> {
        let mut records = 0;
        let mut late_rows = 0;
        for pipeline in &mut self.pipelines {
            let batch = pipeline.step(wait).await?;
            records += batch.records;
            for bad in &batch.undecodable {
                let topic = &pipeline.from().name;
                warn!(
                    topic,
                    bad.partition,
                    bad.offset,
                    error = bad.error,
                    "a record cannot be decoded and is left out"
                );
            }
            self.counters.undecodable.fetch_add(batch.undecodable.len() as u64, Ordering::Relaxed);
            late_rows += pipeline.late_rows();
        }
        self.counters.records.fetch_add(records as u64, Ordering::Relaxed);
        self.count_taken();
        self.counters.late_rows.store(late_rows, Ordering::Relaxed);
        Ok(records)
    }

    fn note_safe(&self) {
        let mut safe = Offsets::default();
        for (at, pipeline) in self.pipelines.iter().enumerate() {
            for (partition, offset) in pipeline.safe().iter() {
                // All pipelines read one topic; a partition that only one of them knows is that one's.
                let least = if at == 0 { offset } else { offset.min(safe.get(partition)) };
                safe.set(partition, least);
            }
        }
        *self.counters.safe.lock().unwrap_or_else(PoisonError::into_inner) = safe;
    }

    fn count_taken(&self) {
        let sum = |pipeline: &Pipeline| pipeline.next().iter().map(|(_, offset)| offset.max(0) as u64).sum();
        let taken: u64 = self.pipelines.iter().map(sum).min().unwrap_or(0);
        self.counters.taken.store(taken, Ordering::Relaxed);
    }

    /// Makes everything that was taken in safe.
    pub async fn checkpoint(&mut self) -> Result<(), RunError> {
        for pipeline in &mut self.pipelines {
            pipeline.checkpoint().await?;
        }
        // Only now: a replay from an older checkpoint would ask for claims that are gone. Nor may one go that a new
        // version will ask for, which starts where minutes are final.
        let reached = self.pipelines.iter().map(Pipeline::reached).min().flatten();
        let complete_through = Millis::new(self.counters.complete_through.load(Ordering::Relaxed));
        if let (Some(reached), Some(claims)) = (reached, lock(&self.claims).as_mut()) {
            claims.expire(reached.min(complete_through))?;
        }
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.note_safe();
        Ok(())
    }

    /// Runs until told to stop, and stops with a checkpoint.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut shutdown = pin!(shutdown);
        let mut last = Instant::now();
        loop {
            // A batch is never cut short: dropped halfway its rows would be missing until the next restart.
            let stop = tokio::select! {
                biased;
                () = &mut shutdown => true,
                () = std::future::ready(()) => false,
            };
            if stop {
                self.checkpoint().await?;
                info!("runner stopped with a checkpoint");
                return Ok(());
            }
            self.step(Duration::from_millis(100)).await?;
            if last.elapsed() >= self.settings.checkpoint_every {
                self.checkpoint().await?;
                last = Instant::now();
            }
        }
    }
}
