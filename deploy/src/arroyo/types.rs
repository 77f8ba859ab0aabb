//! What is sent to Arroyo and what it answers, with the names that it uses.

use serde::{Deserialize, Serialize};

/// A function as it is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Udf {
    /// The whole source file.
    pub definition: String,
    pub language: &'static str,
}

impl Udf {
    pub fn rust(definition: impl Into<String>) -> Self {
        Udf { definition: definition.into(), language: "rust" }
    }
}

/// What Arroyo would run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Node {
    pub node_id: u64,
    pub operator: String,
    /// The operators in it, as `a -> b -> c`.
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Edge {
    pub src_id: u64,
    pub dest_id: u64,
}

/// A query that was planned, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Validation {
    pub graph: Option<Graph>,
    pub errors: Vec<String>,
}

/// A function that was compiled without being kept, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UdfValidation {
    pub udf_name: Option<String>,
    pub errors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pipeline {
    pub id: String,
    pub name: String,
    /// As it was sent.
    #[serde(default)]
    pub query: String,
    pub checkpoint_interval_micros: u64,
    /// Microseconds since 1970, of whole seconds.
    #[serde(default)]
    pub created_at: u64,
}

/// How a job is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// It is to run.
    None,
    /// After a last checkpoint.
    Checkpoint,
    /// At once.
    Immediate,
}

/// The run of a pipeline; each has one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Job {
    pub id: String,
    pub state: JobState,
    /// Whether it is to run. A stopped one that is, is about to start.
    pub running_desired: bool,
    /// 1 for the first start, one more for each restart; 0 before.
    pub run_id: u64,
    #[serde(default, alias = "failure_message")]
    pub failure_reason: Option<String>,
    /// Microseconds since 1970.
    pub created_at: u64,
}

impl Job {
    /// It does nothing any more, unless it is told to start again.
    pub fn is_over(&self) -> bool {
        match self.state.0.as_str() {
            "Failed" | "Finished" => true,
            "Stopped" => !self.running_desired,
            _ => false,
        }
    }
}

/// Arroyo's name of a state: `Created`, `Scheduling`, `Running`, `CheckpointStopping`, `Stopped`, …
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct JobState(pub String);

impl JobState {
    pub fn is_running(&self) -> bool {
        self.0 == "Running"
    }

    pub fn is_failed(&self) -> bool {
        self.0 == "Failed"
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Checkpoint {
    pub epoch: u64,
    pub start_time: u64,
    /// Unless it is still being made.
    pub finish_time: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct JobError {
    /// Microseconds since 1970.
    pub created_at: u64,
    pub operator_id: Option<String>,
    pub task_index: Option<u64>,
    pub message: String,
    pub details: String,
}

#[derive(Deserialize)]
pub(super) struct Collection<T> {
    pub data: Vec<T>,
    /// Only where there are pages.
    #[serde(default, rename = "hasMore")]
    pub has_more: bool,
}

#[derive(Serialize)]
pub(super) struct Query<'a> {
    pub query: &'a str,
    pub udfs: &'a [Udf],
}

/// A pipeline to be created.
#[derive(Debug, Clone, Serialize)]
pub struct NewPipeline<'a> {
    pub name: &'a str,
    pub query: &'a str,
    pub udfs: &'a [Udf],
    pub parallelism: u64,
    pub checkpoint_interval_micros: u64,
}

#[derive(Serialize)]
pub(super) struct Patch {
    pub stop: Stop,
}

#[derive(Deserialize)]
pub(super) struct Refusal {
    pub error: String,
}
