//! How what was deployed is doing.

use crate::arroyo::JobError;
use crate::cluster::Progress;
use crate::deployer::{Deployer, Found, doing, kept, millis, same_topic};
use crate::error::DeployError;
use crate::plan::{name_of, stem_of};
use click::{Millis, Offset, Partition};
use std::fmt;

/// Without a checkpoint for this many intervals a pipeline does not work, whatever Arroyo says of its state.
const INTERVALS_MAX: u64 = 3;

/// Heartbeats give every partition a row a second, and the clocks of brokers differ by up to half a minute: a partition with
/// records that wait and no row for this long does not go on.
const SILENT_MS_MAX: i64 = 60_000;

/// Errors of a pipeline that are shown.
const ERRORS_SHOWN: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub version: i64,
    /// One a file.
    pub pipelines: Vec<PipelineStatus>,
    /// Records of `clicks` without a row of this version, by partition; `None` where no row has come.
    pub lag: Vec<(Partition, Option<Offset>)>,
    /// What is wrong. Empty if all is well.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineStatus {
    pub name: String,
    pub id: String,
    /// Arroyo's word for it.
    pub state: String,
    pub run_id: u64,
    /// Epoch of the last completed checkpoint, and when it was completed.
    pub checkpoint: Option<(u64, Millis)>,
    pub checkpoint_interval_ms: u64,
    /// Newest first.
    pub errors: Vec<JobError>,
}

impl Status {
    /// Whether the pipelines work.
    pub fn is_healthy(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Deployer<'_> {
    /// Looks at the newest recorded version; `None` if none was. `now` is compared with Arroyo's clock.
    pub async fn status(&self, now: Millis) -> Result<Option<Status>, DeployError> {
        self.settings.check()?;
        let current = self.cluster.current().await.map_err(doing("reading the recorded version"))?;
        let Some(deployment) = current else { return Ok(None) };
        let topic = self.cluster.topic().await.map_err(doing("looking at topic clicks"))?;
        let version = deployment.version;
        let (mut pipelines, mut problems) = (Vec::new(), Vec::new());
        // Positions of another life show no lag, whatever waits in this one.
        problems.extend(same_topic(&deployment, &topic).err().map(|error| error.to_string()));
        let (mut found, others) = self.found(topic.log_id).await?;
        for (file, _) in self.files.iter() {
            let name = name_of(&self.settings.name, stem_of(file)?, version);
            let Some(pipeline) = kept(found.iter().map(|found| &found.pipeline), &name).cloned() else {
                problems.push(format!("{name} is not there"));
                continue;
            };
            found.retain(|found| found.pipeline.id != pipeline.id);
            let Some(job) = self.arroyo.job(&pipeline.id).await? else {
                problems.push(format!("{name} has no job"));
                continue;
            };
            let checkpoints = self.arroyo.checkpoints(&pipeline.id, &job.id).await?;
            let finished = checkpoints.iter().filter_map(|c| Some((c.epoch, millis(c.finish_time?))));
            let checkpoint = finished.max_by_key(|(_, at)| *at);
            let interval_ms = pipeline.checkpoint_interval_micros / 1_000;
            let since = checkpoint.map_or(millis(job.created_at), |(_, at)| at);
            let age_ms = now.get() - since.get();
            if job.is_over() {
                problems.push(format!("{name} is {}", job.state));
            } else if age_ms > i64::try_from(interval_ms.saturating_mul(INTERVALS_MAX)).unwrap_or(i64::MAX) {
                problems.push(format!(
                    "{name} has completed no checkpoint for {}, more than {INTERVALS_MAX} intervals of {}; Arroyo calls it {}",
                    seconds(age_ms),
                    seconds(i64::try_from(interval_ms).unwrap_or(i64::MAX)),
                    job.state
                ));
            }
            let mut errors = self.arroyo.errors(&pipeline.id, &job.id).await?;
            errors.truncate(ERRORS_SHOWN);
            pipelines.push(PipelineStatus {
                name,
                id: pipeline.id,
                state: job.state.to_string(),
                run_id: job.run_id,
                checkpoint,
                checkpoint_interval_ms: interval_ms,
                errors,
            });
        }
        for other in found.iter().filter(|found| !found.is_over()) {
            let name = &other.pipeline.name;
            problems.push(format!("{name} ({}) is not of version {version}, and {}", other.pipeline.id, other.state()));
        }
        for other in &others {
            let Found { pipeline, .. } = other;
            problems.push(format!(
                "{} ({}) counts the same log under another name, and is {}",
                pipeline.name,
                pipeline.id,
                other.state()
            ));
        }
        let progress = self.cluster.progress(&deployment).await.map_err(doing("looking for rows in raw_clicks"))?;
        let lag: Vec<_> = (0..topic.partitions).map(|partition| (partition, lag(&progress, partition))).collect();
        for (partition, behind) in &lag {
            let silent_ms = progress.written.get(partition).map_or(0, |written| now.get() - written.get());
            match behind {
                None => problems.push(format!("no row of version {version} has come from partition {partition}")),
                Some(behind) if *behind > 0 && silent_ms > SILENT_MS_MAX => problems.push(format!(
                    "no row has come from partition {partition} for {}, and {behind} of its records wait",
                    seconds(silent_ms)
                )),
                Some(_) => {}
            }
        }
        Ok(Some(Status { version, pipelines, lag, problems }))
    }
}

fn lag(progress: &Progress, partition: Partition) -> Option<Offset> {
    let (_, rows) = progress.rows.iter().find(|(seen, _)| *seen == partition)?;
    Some((progress.ends.get(partition) - rows).max(0))
}

fn seconds(ms: i64) -> String {
    format!("{}.{} s", ms / 1_000, ms.rem_euclid(1_000) / 100)
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}", self.version)?;
        for pipeline in &self.pipelines {
            let PipelineStatus { name, id, state, run_id, checkpoint, .. } = pipeline;
            write!(f, "\n{name} ({id}): {state}, start {run_id}, ")?;
            match checkpoint {
                Some((epoch, at)) => write!(f, "checkpoint {epoch} completed {at}")?,
                None => f.write_str("no checkpoint completed")?,
            }
            for error in &pipeline.errors {
                let at = millis(error.created_at);
                let operator = error.operator_id.as_deref().unwrap_or("job");
                write!(f, "\n  error {at} in {operator}: {}: {}", error.message, error.details)?;
            }
        }
        f.write_str("\nlag in records:")?;
        for (partition, behind) in &self.lag {
            match behind {
                Some(behind) => write!(f, " {partition}: {behind}")?,
                None => write!(f, " {partition}: no row")?,
            }
        }
        for problem in &self.problems {
            write!(f, "\nproblem: {problem}")?;
        }
        Ok(())
    }
}
