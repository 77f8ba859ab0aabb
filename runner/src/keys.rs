//! What each record of the log claims, without claiming it: for whoever makes claims again that were lost elsewhere.
//!
//! A file is planned as for a run, and evaluated as far as the step that calls `claim_click`, which is given a function
//! that writes down what it is asked.

use crate::error::RunError;
use crate::functions::{self, Ask};
use crate::plan::{CLAIMS, Program, StepKind, plan};
use crate::source::{BATCH_RECORDS_MAX, Undecodable};
use click::{Lateness, LogId, Millis, Offset, Partition};
use datafusion::common::exec_datafusion_err;
use pipeline_files::{PipelineFiles, variables};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tally_log::Record;

/// A record, and what it claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub partition: Partition,
    pub offset: Offset,
    pub appended_at: Millis,
    /// As `claim_click` is given it; none for a record that claims nothing.
    pub key: Option<String>,
}

type Keys = HashMap<(Partition, Offset), String>;

/// The claims of one version of the pipelines.
pub struct ClaimKeys {
    program: Program,
    /// The steps to be evaluated: the one that asks, and what it reads.
    needed: BTreeSet<usize>,
    keys: Arc<Mutex<Keys>>,
}

impl ClaimKeys {
    /// Plans the files as this version of them.
    ///
    /// # Errors
    /// If a file cannot be run, not exactly one of them calls `claim_click`, or what it asks about comes out of a window.
    pub async fn plan(
        files: &PipelineFiles,
        lateness: Lateness,
        version: i64,
        log_id: LogId,
    ) -> Result<ClaimKeys, RunError> {
        let keys = Arc::new(Mutex::new(Keys::new()));
        let mut asking = Vec::new();
        for file in files.filled(&variables(lateness, version, &log_id.to_string()))? {
            let program = plan(&file, functions::asking(writing_down(keys.clone()))).await?;
            if program.claims {
                asking.push(program);
            }
        }
        let Some(program) = asking.pop().filter(|_| asking.is_empty()) else {
            let what = "they are known where one pipeline file calls claim_click, not none or several".to_string();
            return Err(RunError::Keys(what));
        };
        let needed = needed(&program)?;
        Ok(ClaimKeys { program, needed, keys })
    }

    /// The topic that is read.
    pub fn topic(&self) -> &str {
        &self.program.source.topic
    }

    /// What these records claim, one answer for each, in their order. A record that cannot be decoded claims nothing.
    ///
    /// # Errors
    /// If an expression of the pipeline fails.
    pub fn of(&mut self, records: &[Record]) -> Result<Vec<Claimed>, RunError> {
        let mut claimed = Vec::with_capacity(records.len());
        for records in records.chunks(BATCH_RECORDS_MAX) {
            self.ask(records)?;
            let mut keys = std::mem::take(&mut *self.lock()?);
            claimed.extend(records.iter().map(|record| {
                let Record { partition, offset, appended_at, .. } = *record;
                Claimed { partition, offset, appended_at, key: keys.remove(&(partition, offset)) }
            }));
        }
        Ok(claimed)
    }

    fn ask(&mut self, records: &[Record]) -> Result<(), RunError> {
        let file = self.program.file.clone();
        let failed = |step: &str, error| RunError::Evaluate { step: format!("{file}, `{step}`,"), error };
        let topic = self.program.source.topic.clone();
        let (batch, undecodable) = self.program.source.decode(records).map_err(|error| failed(&topic, error))?;
        for Undecodable { partition, offset, error } in undecodable {
            tracing::debug!(topic, partition, offset, error, "a record cannot be decoded, and claims nothing");
        }
        let mut outputs = Vec::new();
        for (number, step) in self.program.steps.iter().enumerate() {
            outputs.push(match &step.kind {
                StepKind::Source => batch.clone(),
                StepKind::View(node) if self.needed.contains(&number) => {
                    node.evaluate(&outputs).map_err(|error| failed(&step.name, error))?
                }
                _ => step.nothing(&self.program.source),
            });
        }
        Ok(())
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, Keys>, RunError> {
        self.keys.lock().map_err(|_| RunError::Keys("an earlier batch failed".into()))
    }
}

/// Answers that everybody is the first, since nobody looks at the answer.
fn writing_down(keys: Arc<Mutex<Keys>>) -> Ask {
    Arc::new(move |_, asked| {
        let mut keys = keys.lock().map_err(|_| exec_datafusion_err!("claims failed before"))?;
        for one in asked {
            if let Some(key) = one.key {
                keys.insert((one.partition, one.offset), key.to_string());
            }
        }
        Ok(asked.iter().map(|one| one.key.map(|_| 1)).collect())
    })
}

/// The step that asks, and all that it reads.
fn needed(program: &Program) -> Result<BTreeSet<usize>, RunError> {
    let asking = program.steps.iter().position(|step| step.name == CLAIMS);
    let mut needed: BTreeSet<usize> = asking.into_iter().collect();
    // A step reads earlier ones only.
    for number in (0..program.steps.len()).rev() {
        let Some(step) = program.steps.get(number).filter(|_| needed.contains(&number)) else { continue };
        match &step.kind {
            StepKind::View(node) => node.reads(&mut needed),
            StepKind::Source => {}
            StepKind::Window { .. } | StepKind::Sink { .. } => {
                let what = format!("{}: claim_click reads `{}`, which comes out of a window", program.file, step.name);
                return Err(RunError::Keys(what));
            }
        }
    }
    Ok(needed)
}
