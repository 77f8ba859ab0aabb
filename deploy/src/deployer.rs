//! What is to be deployed where, and the look at what is there already.

use crate::arroyo::{Arroyo, Job, Pipeline, Udf};
use crate::cluster::{Cluster, ClusterError, Deployment, Topic};
use crate::error::DeployError;
use crate::graph::lost_edges;
use crate::locate;
use crate::plan::{Plan, Prepared, Step, Why, name_of, read_name, stem_of};
use crate::settings::Settings;
use crate::traps::{self, Source};
use click::{LogId, Millis};
use pipeline_files::parse::{Kind, Placed, Table, parse};
use pipeline_files::{File, PipelineFiles, fill, variables};
use std::collections::BTreeSet;
use std::time::Duration;

/// A set of pipeline files with their functions, an Arroyo, and the rest of the system.
pub struct Deployer<'a> {
    pub arroyo: &'a Arroyo,
    pub cluster: &'a dyn Cluster,
    pub files: &'a PipelineFiles,
    /// Every function that the files call.
    pub functions: &'a [Source],
    pub settings: &'a Settings,
}

/// A pipeline of ours in Arroyo.
pub(crate) struct Found {
    pub version: i64,
    pub pipeline: Pipeline,
    pub job: Option<Job>,
}

impl Found {
    pub fn is_over(&self) -> bool {
        self.job.as_ref().is_some_and(Job::is_over)
    }

    pub fn state(&self) -> String {
        self.job.as_ref().map_or("without a job".to_string(), |job| job.state.to_string())
    }
}

/// Whether the recorded version can be carried on.
enum Continue {
    No(Why),
    /// The pipelines that must be created, and that must be started again, each with the steps for it.
    Yes(Vec<Step>),
}

impl Deployer<'_> {
    /// Looks at everything and changes nothing: the steps of a deployment, or why it cannot be. Files are checked by
    /// Arroyo's planner, the graph for lost edges, and files and functions for what Arroyo would get wrong.
    ///
    /// `again` makes a new version even if nothing has changed, unless the recorded one was never started; a new version
    /// then gives up what began and stands in its way.
    pub async fn plan(&self, again: bool) -> Result<Plan, DeployError> {
        self.plan_for(again.then_some(Why::Again), again).await
    }

    /// The same, and a new version for a given reason.
    pub(crate) async fn plan_for(&self, wanted: Option<Why>, give_up: bool) -> Result<Plan, DeployError> {
        self.settings.check()?;
        traps::functions(self.functions)?;
        let stems: Result<Vec<&str>, DeployError> = self.files.iter().map(|(file, _)| stem_of(file)).collect();
        let stems = stems?;
        let Settings { lateness, horizon_ms, .. } = *self.settings;
        let digest = crate::digest(self.files, self.functions, lateness, horizon_ms)?;
        self.arroyo.ping().await?;
        let topic = self.cluster.topic().await.map_err(doing("looking at topic clicks"))?;
        let current = self.cluster.current().await.map_err(doing("reading the recorded version"))?;
        let (found, others) = self.found(topic.log_id).await?;
        if let Some(other) = others.first() {
            let Pipeline { name, id, .. } = &other.pipeline;
            return Err(DeployError::OtherName {
                name: name.clone(),
                id: id.clone(),
                state: other.state(),
                prefix: self.settings.name.clone(),
            });
        }

        let next = current.as_ref().map_or(1, |deployment| deployment.version + 1);
        let (version, carried_on) = match &current {
            None => (next, Continue::No(Why::First)),
            Some(deployment) => match self.carried_on(deployment, &digest, &topic, &stems, &found, wanted).await? {
                Continue::No(why) => (next, Continue::No(why)),
                carried_on => (deployment.version, carried_on),
            },
        };
        let mut pipelines = self.prepare(version, topic.log_id)?;
        self.validate(&pipelines).await?;

        for prepared in &mut pipelines {
            prepared.found =
                kept(found.iter().map(|found| &found.pipeline), &prepared.name).map(|kept| kept.id.clone());
        }
        let is_kept = |found: &Found| pipelines.iter().any(|p| p.found.as_deref() == Some(found.pipeline.id.as_str()));
        let old = found.iter().filter(|found| !is_kept(found) && !found.is_over());
        let stops = old.map(|found| Step::Stop {
            name: found.pipeline.name.clone(),
            id: found.pipeline.id.clone(),
            state: found.state(),
        });
        let mut steps: Vec<Step> = stops.collect();
        let created = |steps: &mut Vec<Step>| {
            let create =
                |(pipeline, prepared): (usize, &Prepared)| Step::Create { pipeline, name: prepared.name.clone() };
            steps.extend(pipelines.iter().enumerate().filter(|(_, prepared)| prepared.found.is_none()).map(create));
        };
        let deployment = match carried_on {
            Continue::No(why) => {
                let gives_up = self.cluster.repair().await.map_err(doing("looking for a repair that began"))?;
                if let (Some(repair), false) = (&gives_up, give_up) {
                    return Err(DeployError::Repair { repair: repair.clone(), version });
                }
                steps.extend([Step::Record { version, why, gives_up }, Step::Announce { version }]);
                created(&mut steps);
                None
            }
            Continue::Yes(restarts) => {
                if pipelines.iter().any(|prepared| prepared.found.is_none()) {
                    steps.push(Step::Announce { version });
                }
                created(&mut steps);
                steps.extend(restarts);
                current
            }
        };
        if steps.iter().any(|step| matches!(step, Step::Create { .. })) {
            let functions = self.functions.iter().map(|function| function.name.to_string()).collect();
            steps.insert(0, Step::Compile { functions });
        }
        steps.push(Step::Wait { partitions: topic.partitions });
        Ok(Plan { version, steps, deployment, pipelines, partitions: topic.partitions, digest, give_up })
    }

    /// Compiles the functions in Arroyo and keeps nothing; the first time this takes minutes.
    pub async fn check_functions(&self) -> Result<(), DeployError> {
        let mut wrong = Vec::new();
        for function in self.functions {
            for error in self.arroyo.validate_udf(&Udf::rust(function.source)).await?.errors {
                wrong.push(locate::compiler_error(function.name, &error));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(DeployError::Functions(wrong.join("\n"))) }
    }

    /// The functions as they are uploaded.
    pub(crate) fn udfs(&self) -> Vec<Udf> {
        self.functions.iter().map(|function| Udf::rust(function.source)).collect()
    }

    /// Every pipeline of ours, newest first, with its job; and those of another name that count this log and are not over,
    /// left by a change of the name.
    pub(crate) async fn found(&self, log_id: LogId) -> Result<(Vec<Found>, Vec<Found>), DeployError> {
        let (mut found, mut others) = (Vec::new(), Vec::new());
        for pipeline in self.arroyo.pipelines().await? {
            let version = read_name(&self.settings.name, &pipeline.name).map(|(_, version)| version);
            if version.is_none() && !counts(&pipeline.query, log_id) {
                continue;
            }
            let job = self.arroyo.job(&pipeline.id).await?;
            match version {
                Some(version) => found.push(Found { version, pipeline, job }),
                None => others.push(Found { version: 0, pipeline, job }),
            }
        }
        others.retain(|other| !other.is_over());
        Ok((found, others))
    }

    /// The epoch of the last checkpoint that was completed.
    pub(crate) async fn last_epoch(&self, pipeline: &str, job: &str) -> Result<Option<u64>, DeployError> {
        let checkpoints = self.arroyo.checkpoints(pipeline, job).await?;
        Ok(checkpoints.iter().filter(|c| c.finish_time.is_some()).map(|c| c.epoch).max())
    }

    async fn carried_on(
        &self,
        deployment: &Deployment,
        digest: &str,
        topic: &Topic,
        stems: &[&str],
        found: &[Found],
        wanted: Option<Why>,
    ) -> Result<Continue, DeployError> {
        same_topic(deployment, topic)?;
        if deployment.digest != digest {
            return Ok(Continue::No(Why::Changed));
        }
        let progress = self.cluster.progress(deployment).await.map_err(doing("looking for rows in raw_clicks"))?;
        let has_rows = !progress.rows.is_empty();
        // A version that was recorded and never started has counted nothing: it is the one to start.
        if let Some(why) = wanted
            && (has_rows || found.iter().any(|found| found.version == deployment.version))
        {
            return Ok(Continue::No(why));
        }
        let prepared = self.prepare(deployment.version, topic.log_id)?;
        let mut restarts = Vec::new();
        for (number, (stem, prepared)) in stems.iter().zip(&prepared).enumerate() {
            let name = name_of(&self.settings.name, stem, deployment.version);
            let broken = |how: &str| Ok(Continue::No(Why::Broken { name: name.clone(), how: how.into() }));
            let kept = kept(found.iter().map(|found| &found.pipeline), &name);
            let Some(kept) = found.iter().find(|found| kept.is_some_and(|kept| kept.id == found.pipeline.id)) else {
                // What it counted may be final by now, and its start far behind.
                if has_rows {
                    return broken("is gone from Arroyo, and rows of its version are there");
                }
                continue;
            };
            // What the digest does not cover, since counts do not depend on it.
            if let Some(how) = self.outdated(&kept.pipeline, prepared) {
                return broken(&how);
            }
            let Found { pipeline, job: Some(job), .. } = kept else { continue };
            let epoch = self.last_epoch(&pipeline.id, &job.id).await?;
            match epoch {
                _ if job.state.is_failed() => return broken("has failed"),
                // A start without a finished checkpoint reads on behind what the one before it had read.
                None if job.is_over() => return broken("stopped before its first checkpoint"),
                None if job.run_id > 1 => return broken("was restarted before its first checkpoint"),
                Some(epoch) if job.is_over() => {
                    let id = pipeline.id.clone();
                    restarts.push(Step::Restart { pipeline: number, name: name.clone(), id, epoch });
                }
                _ => {}
            }
        }
        Ok(Continue::Yes(restarts))
    }

    /// What a pipeline was created with that is set otherwise now.
    fn outdated(&self, pipeline: &Pipeline, prepared: &Prepared) -> Option<String> {
        let (made, set) =
            (Duration::from_micros(pipeline.checkpoint_interval_micros), self.settings.checkpoint_interval);
        if made != set {
            return Some(format!("makes a checkpoint every {made:?}, and every {set:?} is set"));
        }
        let (made, set) = (brokers(&pipeline.query), brokers(&prepared.file.text));
        let shown = |brokers: BTreeSet<String>| brokers.into_iter().collect::<Vec<_>>().join(" and ");
        // Without any it is not known what it was created with.
        let is_other = !made.is_empty() && made != set;
        is_other.then(|| format!("has Kafka at {}, and {} is set", shown(made), shown(set)))
    }

    /// The files with everything filled in.
    fn prepare(&self, version: i64, log_id: LogId) -> Result<Vec<Prepared>, DeployError> {
        let mut pipelines = Vec::new();
        let functions = traps::functions(self.functions)?;
        for (file, text) in self.files.iter() {
            let name = name_of(&self.settings.name, stem_of(file)?, version);
            let mut variables = variables(self.settings.lateness, version, &log_id.to_string());
            variables.insert("KAFKA".into(), self.settings.kafka.clone());
            variables.insert("GROUP".into(), name.clone());
            let file = File::new(file, fill(file, text, &variables)?);
            traps::check(&file, &variables, &functions)?;
            pipelines.push(Prepared { name, file, found: None });
        }
        Ok(pipelines)
    }

    async fn validate(&self, pipelines: &[Prepared]) -> Result<(), DeployError> {
        let udfs = self.udfs();
        for Prepared { file, .. } in pipelines {
            let validation = self.arroyo.validate_query(&file.text, &udfs).await?;
            if let Some(error) = validation.errors.first() {
                return Err(refused(file, error));
            }
            let Some(graph) = validation.graph else {
                return Err(refused(file, "neither a graph nor an error came of it"));
            };
            let edges = lost_edges(&graph);
            if !edges.is_empty() {
                return Err(DeployError::LostEdges { file: file.name.clone(), edges });
            }
        }
        Ok(())
    }
}

/// What a version counts is one life of the topic.
pub(crate) fn same_topic(deployment: &Deployment, topic: &Topic) -> Result<(), DeployError> {
    if deployment.log_id == topic.log_id {
        return Ok(());
    }
    Err(DeployError::OtherTopic {
        version: deployment.version,
        recorded: deployment.log_id.to_string(),
        found: topic.log_id.to_string(),
    })
}

/// The pipeline of this name. Of several, left by an answer that got lost or by deployments at the same time, the first is
/// kept, for everyone who looks.
pub(crate) fn kept<'a>(pipelines: impl Iterator<Item = &'a Pipeline>, name: &str) -> Option<&'a Pipeline> {
    pipelines.filter(|pipeline| pipeline.name == name).min_by_key(|pipeline| (pipeline.created_at, &pipeline.id))
}

/// The tables of a query; none of one that is not of a pipeline file.
fn tables(query: &str) -> Vec<Table> {
    let statements = parse(&File::new("", query)).unwrap_or_default().into_iter();
    let table = |statement: Placed| if let Kind::Table(table) = statement.kind { Some(table) } else { None };
    statements.filter_map(table).collect()
}

fn option<'a>(table: &'a Table, name: &str) -> Option<&'a str> {
    table.options.get(name).map(|(value, _)| value.as_str())
}

/// The Kafkas of a query.
fn brokers(query: &str) -> BTreeSet<String> {
    tables(query).iter().filter_map(|table| option(table, "bootstrap_servers")).map(str::to_string).collect()
}

/// Whether a query writes raw rows of this log, which names itself in each.
fn counts(query: &str, log_id: LogId) -> bool {
    let is_raw = |table: &Table| option(table, "type") == Some("sink") && option(table, "topic") == Some("raw_clicks");
    query.contains(&log_id.to_string()) && tables(query).iter().any(is_raw)
}

/// Arroyo's reason at its place in the file, if it can be found.
pub(crate) fn refused(file: &File, text: &str) -> DeployError {
    match locate::sql_error(file, text) {
        Some(error) => DeployError::Sql(error),
        None => DeployError::Refused { file: file.name.clone(), text: text.to_string() },
    }
}

/// Says what was asked of the rest of the system.
pub(crate) fn doing(doing: impl Into<String>) -> impl FnOnce(ClusterError) -> DeployError {
    let doing = doing.into();
    move |error| DeployError::Cluster { doing, error }
}

/// A time of Arroyo's, in whole milliseconds.
pub(crate) fn millis(micros: u64) -> Millis {
    Millis::new(i64::try_from(micros / 1_000).unwrap_or(i64::MAX))
}
