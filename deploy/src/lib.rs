//! Hands the pipelines to an Arroyo: checked, deployed by position, watched.
//!
//! A deployment goes by position. The last closing fixed a position in every partition: what lies before it is final by
//! the old rules, and a new version of the pipelines counts from there on. So the old version is stopped, the new one is
//! recorded, told to the claims and to Kafka, and started. Each step looks first at what was done, so a deployment that
//! broke off is carried on by running it again.
//!
//! # Layout
//!
//! * [`Deployer`]: what to deploy where; [`Deployer::plan`] looks, [`Deployer::deploy`] does (`deployer`, `run`)
//! * [`Plan`]: the steps, to be shown or carried out
//! * [`Status`]: how what was deployed is doing
//! * [`Cluster`]: what of the rest of the system it needs, to be brought by the caller
//! * [`traps`]: what Arroyo accepts and then gets wrong; [`check`]: the same for files of no deployment
//! * `arroyo`: the REST client; `graph`: edges that got lost; `locate`: Arroyo's errors at our file and line

#![forbid(unsafe_code)]

mod arroyo;
mod cluster;
mod deployer;
mod error;
mod graph;
mod locate;
mod plan;
mod run;
mod settings;
mod status;
pub mod traps;

pub use arroyo::{ApiError, Arroyo, Deadlines, JobError};
pub use cluster::{Cluster, ClusterError, Deployment, Progress, Topic};
pub use deployer::Deployer;
pub use error::DeployError;
pub use plan::{Plan, Step, Why};
pub use settings::{Settings, SettingsError};
pub use status::{PipelineStatus, Status};
pub use traps::Source;

use click::Lateness;
use pipeline_files::{PipelineFiles, SqlError, of_nobody};

/// The files of all functions that are ours.
pub fn sources() -> Vec<Source> {
    udfs::sources().iter().map(Source::from).collect()
}

/// What identifies a deployment: SQL, functions, and the settings that counts depend on.
pub fn digest(
    files: &PipelineFiles,
    functions: &[Source],
    lateness: Lateness,
    horizon_ms: i64,
) -> Result<String, SqlError> {
    files.digest(lateness, horizon_ms, functions.iter().map(|function| (function.name, function.source)))
}

/// Refuses files and functions that Arroyo would take and then get wrong. Nothing is asked of an Arroyo.
pub fn check(files: &PipelineFiles, functions: &[Source], lateness: Lateness) -> Result<(), SqlError> {
    let functions = traps::functions(functions)?;
    let variables = of_nobody(lateness);
    for file in files.filled(&variables)? {
        traps::check(&file, &variables, &functions)?;
    }
    Ok(())
}
