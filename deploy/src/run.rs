//! A plan carried out.

use crate::arroyo::{ApiError, Job, NewPipeline, Stop};
use crate::cluster::Deployment;
use crate::deployer::{Deployer, doing, refused};
use crate::error::DeployError;
use crate::locate::unescaped;
use crate::plan::{Plan, Prepared, Step, Why};
use click::{Offsets, Partition};
use reqwest::StatusCode;
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

impl Start {
    /// Checkpoints after this epoch are new.
    fn epoch(self) -> u64 {
        if let Start::Restarted { epoch } = self { epoch } else { 0 }
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
                    why = Some(Why::Broken { name, how: "was restarted before its first checkpoint" });
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
                    let start = start(recorded(&deployment)?, plan.partitions);
                    let prepared = &mut pipelines[*pipeline];
                    prepared.found = Some(self.create(prepared, plan.partitions, &start).await?);
                    starts[*pipeline] = Start::Created;
                }
                Step::Restart { pipeline, id, epoch, .. } => {
                    self.arroyo.set_stop(id, Stop::None).await?;
                    starts[*pipeline] = Start::Restarted { epoch: *epoch };
                }
                Step::Wait { partitions } => {
                    let deployment = recorded(&deployment)?;
                    let waited = self.wait(deployment, &pipelines, &starts, *partitions).await?;
                    return Ok((deployment.clone(), waited));
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

    /// Answers the pipeline's id.
    async fn create(&self, prepared: &Prepared, partitions: Partition, start: &Offsets) -> Result<String, DeployError> {
        let Prepared { name, file, .. } = prepared;
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
        match self.arroyo.create(&pipeline).await {
            Ok(pipeline) => Ok(pipeline.id),
            Err(ApiError::Refused { status: StatusCode::BAD_REQUEST, text, .. }) => Err(refused(file, &text)),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait(
        &self,
        deployment: &Deployment,
        pipelines: &[Prepared],
        starts: &[Start],
        partitions: Partition,
    ) -> Result<Waited, DeployError> {
        let until = Instant::now() + self.settings.start_wait;
        // Those that had made a checkpoint; a restart does no harm to them.
        let mut is_safe: Vec<bool> = starts.iter().map(|start| matches!(start, Start::Restarted { .. })).collect();
        loop {
            let mut missing = Vec::new();
            for ((prepared, start), is_safe) in pipelines.iter().zip(starts).zip(&mut is_safe) {
                let Some(id) = &prepared.found else { continue };
                match self.look(id, start.epoch()).await {
                    Ok((Some(job), _)) if job.is_over() => {
                        let reason = job.failure_reason.unwrap_or_else(|| format!("it is {}", job.state));
                        let why = format!("{reason}{}", self.last_error(id).await);
                        return Err(DeployError::Failed { name: prepared.name.clone(), id: id.clone(), why });
                    }
                    Ok((Some(job), is_checkpointed)) => {
                        // Of one that was there before nobody knows which start made its first checkpoint.
                        let is_first = is_checkpointed && *start == Start::Found;
                        if !*is_safe && job.run_id > 1 && !is_first {
                            return Ok(Waited::Restarted { name: prepared.name.clone(), id: id.clone() });
                        }
                        *is_safe |= is_checkpointed;
                        if !job.state.is_running() {
                            missing.push(format!("{} is {}", prepared.name, job.state));
                        } else if !is_checkpointed {
                            missing.push(format!("{} has made no checkpoint", prepared.name));
                        }
                    }
                    Ok((None, _)) => missing.push(format!("{} has no job", prepared.name)),
                    // Arroyo's API may be away for a moment; what it runs is not.
                    Err(DeployError::Api(error @ ApiError::Unanswered { .. })) => missing.push(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            let progress = self.cluster.progress(deployment).await.map_err(doing("looking for rows in raw_clicks"))?;
            let silent: Vec<String> = (0..partitions)
                .filter(|partition| !progress.rows.iter().any(|(seen, _)| seen == *partition))
                .map(|partition| partition.to_string())
                .collect();
            if !silent.is_empty() {
                let from = silent.join(", ");
                missing.push(format!("no row has come from partition {from} (heartbeats come from running redirects)"));
            }
            if missing.is_empty() {
                return Ok(Waited::Running);
            }
            if Instant::now() >= until {
                let (version, waited) = (deployment.version, self.settings.start_wait);
                return Err(DeployError::NotRunning { version, waited, missing: missing.join("; ") });
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// The job, and whether it has completed a checkpoint after this epoch.
    async fn look(&self, pipeline: &str, after: u64) -> Result<(Option<Job>, bool), DeployError> {
        let Some(job) = self.arroyo.job(pipeline).await? else { return Ok((None, false)) };
        let epoch = self.last_epoch(pipeline, &job.id).await?;
        // Looked at again: a job that is in its first start now had made that checkpoint in it.
        Ok((self.arroyo.job(pipeline).await?, epoch.is_some_and(|epoch| epoch > after)))
    }

    /// The newest error of a pipeline, to be put behind what is said of it; nothing if there is none to be had.
    async fn last_error(&self, pipeline: &str) -> String {
        let Ok(Some(job)) = self.arroyo.job(pipeline).await else { return String::new() };
        let Ok(errors) = self.arroyo.errors(pipeline, &job.id).await else { return String::new() };
        errors.first().map(|error| format!(": {}: {}", error.message, error.details)).unwrap_or_default()
    }

    fn interval_micros(&self) -> u64 {
        u64::try_from(self.settings.checkpoint_interval.as_micros()).unwrap_or(u64::MAX)
    }
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
