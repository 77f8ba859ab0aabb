//! A plan carried out.

use crate::arroyo::{ApiError, Job, NewPipeline, Stop};
use crate::cluster::{Deployment, Progress};
use crate::deployer::{Deployer, doing, kept, millis, refused};
use crate::error::DeployError;
use crate::locate::unescaped;
use crate::plan::{Plan, Prepared, Step, Why};
use click::{Offset, Offsets, Partition};
use reqwest::StatusCode;
use std::ops::ControlFlow;
use std::time::Instant;

/// How often a version that broke before its first checkpoint is deployed again by itself.
const STARTS_MAX: u32 = 3;

/// Arroyo compiles the functions of a pipeline before it plans its query. One that reads a table which is not there cannot
/// be planned, so nothing comes of it but compiled functions, which it keeps.
const MISSED_TABLE: &str = "functions_are_compiled_before_this_table_is_missed";

/// What Arroyo's answer begins with when a function does not compile.
const BUILD_FAILED: &str = "Failed to build UDF";

/// How the run of a pipeline began that is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// It was there before.
    Found,
    Created,
    /// From the checkpoint of this epoch.
    Restarted {
        epoch: u64,
    },
}

/// What is known of a pipeline that is waited for.
struct Watched {
    /// Checkpoints after this epoch were completed since the wait began; `None` until that was looked at.
    after: Option<u64>,
    /// It has made a checkpoint, so a restart does no harm to it.
    is_safe: bool,
}

impl Watched {
    fn new(start: Start) -> Self {
        match start {
            Start::Found => Watched { after: None, is_safe: false },
            Start::Created => Watched { after: Some(0), is_safe: false },
            Start::Restarted { epoch } => Watched { after: Some(epoch), is_safe: true },
        }
    }

    /// Takes the last epoch that was completed into account; whether it was since the wait began.
    fn is_new(&mut self, epoch: Option<u64>) -> bool {
        let Some(after) = self.after else {
            self.after = Some(epoch.unwrap_or(0));
            // Nobody knows which of its starts made that one; whoever deployed it did.
            self.is_safe |= epoch.is_some();
            return false;
        };
        epoch.is_some_and(|epoch| epoch > after)
    }
}

/// How a wait ended that found no error.
enum Waited {
    Running,
    /// It may have skipped records: a start without a finished checkpoint reads on behind what was read before.
    Restarted {
        name: String,
        id: String,
    },
}

impl Deployer<'_> {
    /// Deploys, and returns what counts now. `told` hears of each step before it is done.
    ///
    /// A deployment that broke off is carried on by the next one. Stopping is with a last checkpoint; it is not needed
    /// for what counts, which goes by position, so a pipeline that cannot make one is stopped without.
    pub async fn deploy(&self, again: bool, told: &(dyn Fn(&Step) + Sync)) -> Result<Deployment, DeployError> {
        let mut why = again.then_some(Why::Again);
        let mut starts = 1;
        loop {
            let plan = self.plan_for(why, again).await?;
            match self.carry_out(&plan, told).await? {
                (deployment, Waited::Running) => return Ok(deployment),
                (_, Waited::Restarted { name, id }) if starts < STARTS_MAX => {
                    tracing::warn!(name, id, "restarted before its first checkpoint: deploying again from the start");
                    why = Some(Why::Broken { name, how: "was restarted before its first checkpoint".into() });
                    starts += 1;
                }
                (_, Waited::Restarted { name, id }) => {
                    let why = self.last_error(&id).await;
                    return Err(DeployError::Restarted { name, id, times: starts, why });
                }
            }
        }
    }

    async fn carry_out(&self, plan: &Plan, told: &(dyn Fn(&Step) + Sync)) -> Result<(Deployment, Waited), DeployError> {
        let mut deployment = plan.deployment.clone();
        let mut pipelines = plan.pipelines.clone();
        let mut starts = vec![Start::Found; pipelines.len()];
        for step in &plan.steps {
            told(step);
            tracing::info!(version = plan.version, "{step}");
            match step {
                Step::Compile { .. } => self.compile().await?,
                Step::Stop { name, id, .. } => self.stop(name, id).await?,
                Step::Record { version, .. } => {
                    let recorded = self.cluster.record(&plan.digest, *version, plan.give_up).await;
                    deployment = Some(recorded.map_err(doing(format!("recording version {version}")))?);
                }
                Step::Announce { version } => {
                    let telling = format!("telling the claims of version {version}");
                    self.cluster.announce(recorded(&deployment)?).await.map_err(doing(telling))?;
                }
                Step::Create { pipeline, .. } => {
                    let deployment = recorded(&deployment)?;
                    self.check_newest(deployment).await?;
                    let start = start(deployment, plan.partitions);
                    let prepared = &mut pipelines[*pipeline];
                    prepared.found = Some(self.create(prepared, plan.partitions, &start).await?);
                    starts[*pipeline] = Start::Created;
                }
                Step::Restart { pipeline, id, epoch, .. } => {
                    self.check_newest(recorded(&deployment)?).await?;
                    self.arroyo.set_stop(id, Stop::None).await?;
                    starts[*pipeline] = Start::Restarted { epoch: *epoch };
                }
                Step::Wait { partitions } => {
                    let deployment = recorded(&deployment)?;
                    let waited = self.wait(deployment, &pipelines, &starts, *partitions).await;
                    // Its pipelines are stopped if it is not, which says less.
                    self.check_newest(deployment).await?;
                    return Ok((deployment.clone(), waited?));
                }
            }
        }
        Ok((recorded(&deployment)?.clone(), Waited::Running))
    }

    async fn compile(&self) -> Result<(), DeployError> {
        let udfs = self.udfs();
        let nothing = NewPipeline {
            name: &format!("{}-compile", self.settings.name),
            query: &format!("SELECT * FROM {MISSED_TABLE}"),
            udfs: &udfs,
            parallelism: 1,
            checkpoint_interval_micros: self.interval_micros(),
        };
        match self.arroyo.create(&nothing).await {
            Err(ApiError::Refused { status: StatusCode::BAD_REQUEST, text, .. }) if text.starts_with(BUILD_FAILED) => {
                // It does not say which; asked one by one it does.
                self.check_functions().await?;
                Err(DeployError::Functions(unescaped(&text)))
            }
            // It got as far as planning: "Failed to plan query:\n * table '…' not found". Any other refusal may have come
            // before it compiled anything.
            Err(ApiError::Refused { status: StatusCode::BAD_REQUEST, text, .. }) if text.contains(MISSED_TABLE) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(pipeline) => {
                self.arroyo.set_stop(&pipeline.id, Stop::Immediate).await?;
                let text =
                    format!("it planned a query of {MISSED_TABLE} as pipeline {}: no such table is there", pipeline.id);
                Err(DeployError::Refused { file: pipeline.name, text })
            }
        }
    }

    async fn stop(&self, name: &str, id: &str) -> Result<(), DeployError> {
        let mut state = String::new();
        for stop in [Stop::Checkpoint, Stop::Immediate] {
            self.arroyo.set_stop(id, stop).await?;
            let until = Instant::now() + self.settings.stop_wait;
            loop {
                match self.arroyo.job(id).await? {
                    Some(job) if !job.is_over() => state = job.state.to_string(),
                    _ => return Ok(()),
                }
                if Instant::now() >= until {
                    break;
                }
                tokio::time::sleep(self.settings.poll).await;
            }
            tracing::warn!(name, id, state, "pipeline does not stop");
        }
        let waited = self.settings.stop_wait * 2;
        Err(DeployError::NotStopped { name: name.to_string(), id: id.to_string(), state, waited })
    }

    /// Fails if somebody has recorded a later version.
    async fn check_newest(&self, deployment: &Deployment) -> Result<(), DeployError> {
        let newest = self.cluster.current().await.map_err(doing("reading the recorded version"))?;
        match newest {
            Some(newest) if newest.version != deployment.version => {
                Err(DeployError::OtherVersion { expected: deployment.version, found: newest.version })
            }
            _ => Ok(()),
        }
    }

    /// Answers the pipeline's id. Two of one name would read from one consumer group: what the first commits is where the
    /// second would begin, with windows that have not all of their rows. So whoever finds that another deployment was first
    /// leaves its pipeline alone, and stops its own before it has read.
    async fn create(&self, prepared: &Prepared, partitions: Partition, start: &Offsets) -> Result<String, DeployError> {
        let Prepared { name, file, .. } = prepared;
        let same_time = |id: &str| DeployError::SameTime { name: name.clone(), id: id.to_string() };
        if let Some(first) = kept(self.arroyo.pipelines().await?.iter(), name) {
            return Err(same_time(&first.id));
        }
        let committing = format!("committing the offsets of consumer group {name}");
        self.cluster.commit(name, start).await.map_err(doing(committing))?;
        let udfs = self.udfs();
        let pipeline = NewPipeline {
            name,
            query: &file.text,
            udfs: &udfs,
            parallelism: u64::try_from(partitions).unwrap_or(1).max(1),
            checkpoint_interval_micros: self.interval_micros(),
        };
        let created = match self.arroyo.create(&pipeline).await {
            Ok(pipeline) => pipeline.id,
            Err(ApiError::Refused { status: StatusCode::BAD_REQUEST, text, .. }) => return Err(refused(file, &text)),
            Err(error) => return Err(error.into()),
        };
        // Who sees nobody else goes on. Of two that see each other the later one gives way; of the same second both do.
        let pipelines = self.arroyo.pipelines().await?;
        let own = pipelines.iter().find(|pipeline| pipeline.id == created).map(|own| own.created_at);
        let others = pipelines.iter().filter(|pipeline| pipeline.name == *name && pipeline.id != created);
        match others.min_by_key(|other| other.created_at) {
            Some(first) if own.is_none_or(|own| first.created_at <= own) => {
                self.arroyo.set_stop(&created, Stop::Immediate).await?;
                Err(same_time(&first.id))
            }
            _ => Ok(created),
        }
    }

    /// Waits until the pipelines work: each makes a checkpoint and a row comes from every partition. What was there before
    /// proves nothing, since a pipeline that hangs is called Running too.
    async fn wait(
        &self,
        deployment: &Deployment,
        pipelines: &[Prepared],
        starts: &[Start],
        partitions: Partition,
    ) -> Result<Waited, DeployError> {
        let until = Instant::now() + self.settings.start_wait;
        let mut watched: Vec<Watched> = starts.iter().copied().map(Watched::new).collect();
        // A version that is created has no rows before.
        let is_new = starts.iter().all(|start| *start == Start::Created);
        let before = if is_new { Offsets::default() } else { self.progress(deployment).await?.rows };
        loop {
            let mut missing = Vec::new();
            for (prepared, watched) in pipelines.iter().zip(&mut watched) {
                let Some(id) = &prepared.found else { continue };
                match self.lacks(&prepared.name, id, watched).await? {
                    ControlFlow::Continue(lacks) => missing.extend(lacks),
                    ControlFlow::Break(ended) => return Ok(ended),
                }
            }
            let rows = self.progress(deployment).await?.rows;
            let silent: Vec<String> = (0..partitions)
                .filter(|partition| row_of(&rows, *partition) <= row_of(&before, *partition))
                .map(|partition| partition.to_string())
                .collect();
            if !silent.is_empty() {
                let (new, from) = (if is_new { "" } else { "new " }, silent.join(", "));
                missing.push(format!(
                    "no {new}row has come from partition {from} (heartbeats come from running redirects)"
                ));
            }
            if missing.is_empty() {
                return Ok(Waited::Running);
            }
            if Instant::now() >= until {
                for Prepared { name, found, .. } in pipelines {
                    let Some(id) = found else { continue };
                    missing
                        .extend(self.newest_error(id).await.map(|error| format!("the last error of {name}: {error}")));
                }
                let (version, waited) = (deployment.version, self.settings.start_wait);
                return Err(DeployError::NotRunning { version, waited, missing: missing.join("; ") });
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// What a pipeline lacks to work, or that the wait is over since it was restarted too early.
    async fn lacks(
        &self,
        name: &str,
        id: &str,
        watched: &mut Watched,
    ) -> Result<ControlFlow<Waited, Option<String>>, DeployError> {
        let (name, id) = (name.to_string(), id.to_string());
        let (job, epoch) = match self.look(&id).await {
            Ok((Some(job), epoch)) => (job, epoch),
            Ok((None, _)) => return Ok(ControlFlow::Continue(Some(format!("{name} has no job")))),
            // Arroyo's API may be away for a moment; what it runs is not.
            Err(DeployError::Api(error @ ApiError::Unanswered { .. })) => {
                return Ok(ControlFlow::Continue(Some(error.to_string())));
            }
            Err(error) => return Err(error),
        };
        if job.is_over() {
            let reason = job.failure_reason.unwrap_or_else(|| format!("it is {}", job.state));
            let why = format!("{reason}{}", self.last_error(&id).await);
            return Err(DeployError::Failed { name, id, why });
        }
        let is_checkpointed = watched.is_new(epoch);
        if !watched.is_safe && job.run_id > 1 {
            return Ok(ControlFlow::Break(Waited::Restarted { name, id }));
        }
        watched.is_safe |= is_checkpointed;
        let new = if watched.after == Some(0) { "" } else { "new " };
        Ok(ControlFlow::Continue(match (job.state.is_running(), is_checkpointed) {
            (false, _) => Some(format!("{name} is {}", job.state)),
            (true, false) => Some(format!("{name} has made no {new}checkpoint")),
            (true, true) => None,
        }))
    }

    async fn progress(&self, deployment: &Deployment) -> Result<Progress, DeployError> {
        self.cluster.progress(deployment).await.map_err(doing("looking for rows in raw_clicks"))
    }

    /// The job, and the epoch of its last completed checkpoint.
    async fn look(&self, pipeline: &str) -> Result<(Option<Job>, Option<u64>), DeployError> {
        let Some(job) = self.arroyo.job(pipeline).await? else { return Ok((None, None)) };
        let epoch = self.last_epoch(pipeline, &job.id).await?;
        // Looked at again: a job that is in its first start now had made that checkpoint in it.
        Ok((self.arroyo.job(pipeline).await?, epoch))
    }

    /// The newest error of a pipeline, to be put behind what is said of it; nothing if there is none to be had.
    async fn last_error(&self, pipeline: &str) -> String {
        self.newest_error(pipeline).await.map(|error| format!(": {error}")).unwrap_or_default()
    }

    async fn newest_error(&self, pipeline: &str) -> Option<String> {
        let job = self.arroyo.job(pipeline).await.ok()??;
        let errors = self.arroyo.errors(pipeline, &job.id).await.ok()?;
        errors.first().map(|error| format!("{}: {} ({})", error.message, error.details, millis(error.created_at)))
    }

    fn interval_micros(&self) -> u64 {
        u64::try_from(self.settings.checkpoint_interval.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The offset after the last row of a partition, which no row has before the first.
fn row_of(rows: &Offsets, partition: Partition) -> Option<Offset> {
    rows.iter().find(|(seen, _)| *seen == partition).map(|(_, next)| next)
}

/// The version that is deployed; every plan has it recorded before it is needed.
fn recorded(deployment: &Option<Deployment>) -> Result<&Deployment, DeployError> {
    deployment.as_ref().ok_or_else(|| DeployError::Cluster {
        doing: "carrying out a plan".into(),
        error: "no version is recorded".into(),
    })
}

/// The start of every partition: without an offset for one, Arroyo would read nothing, without an error.
fn start(deployment: &Deployment, partitions: Partition) -> Offsets {
    (0..partitions).map(|partition| (partition, deployment.start.get(partition))).collect()
}
