//! Why a deployment stopped. Running it again carries on from there.

use crate::arroyo::ApiError;
use crate::cluster::ClusterError;
use crate::settings::SettingsError;
use pipeline_files::SqlError;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A file or function that Arroyo cannot run, or would get wrong.
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{doing}: {error}")]
    Cluster { doing: String, error: ClusterError },
    #[error(
        "pipeline file {0}: its name goes into that of a consumer group, so it is made of letters, digits, _ and -"
    )]
    FileName(String),
    /// Arroyo refuses the file, and names nothing that stands in it.
    #[error("{file}: Arroyo: {text}")]
    Refused { file: String, text: String },
    #[error(
        "{file}: Arroyo's plan of it has lost an edge: {}. Rows would be missing without an error. Set \
         pipeline.chaining.enabled = false in Arroyo's configuration, or change the number of views",
        .edges.join("; ")
    )]
    LostEdges { file: String, edges: Vec<String> },
    #[error("functions do not compile:\n{0}")]
    Functions(String),
    #[error(
        "topic clicks was made anew: version {version} is of {recorded}, and the topic is {found} now. Nothing can be deployed to \
         this warehouse before it is as it was: `tally topics` says what can be done"
    )]
    OtherTopic { version: i64, recorded: String, found: String },
    #[error(
        "{repair} began and did not end, and version {version} would give it up: run `tally repair` again, or let \
         `tally deploy --again` give it up. Nothing was stopped"
    )]
    Repair { repair: String, version: i64 },
    #[error(
        "pipeline {name} ({id}, {state}) counts the same log, and its name does not begin with {prefix}-: both would read \
         every record. Set the name that it was deployed with, or stop it in Arroyo"
    )]
    OtherName { name: String, id: String, state: String, prefix: String },
    #[error(
        "somebody else has created pipeline {name} ({id}): another deployment goes on at the same time, and is left to it"
    )]
    SameTime { name: String, id: String },
    #[error("version {found} was recorded where {expected} was expected: another deployment goes on at the same time")]
    OtherVersion { expected: i64, found: i64 },
    #[error("pipeline {name} ({id}) did not stop within {waited:?}: it is {state}")]
    NotStopped { name: String, id: String, state: String, waited: Duration },
    #[error("pipeline {name} ({id}) failed: {why}")]
    Failed { name: String, id: String, why: String },
    #[error(
        "pipeline {name} ({id}) was restarted before its first checkpoint, {times} times in a row: it may have skipped \
         records{why}"
    )]
    Restarted { name: String, id: String, times: u32, why: String },
    #[error("version {version} is not running after {waited:?}: {missing}")]
    NotRunning { version: i64, waited: Duration, missing: String },
}
