//! Runs pipelines/*.sql on one machine, on DataFusion.
//!
//! DataFusion plans the SQL and brings the expressions and accumulators; this crate adds only what streaming needs.
//!
//! # Layout
//!
//! The way of a record, then what is around it:
//!
//! * `pipeline_files`, a crate of its own: the files of a folder, and their statements
//! * `plan`: the steps a batch goes through; `refuse`: what a stream cannot do; [`check`]: both, and nothing run
//! * `source`: records to columns, watermarks
//! * `node`: a view is a function from batch to batch; `functions`: those that Arroyo has as UDFs
//! * [`claims`]: who was first; `keys`: what each record claims, without claiming it; `restore`:
//!   claims that a new version takes over from final rows
//! * `window`: tumbling windows
//! * `sink`: rows to records
//! * `pipeline`, `checkpoint`: one file at work; [`Runner`]: all of them

#![forbid(unsafe_code)]

mod checkpoint;
pub mod claims;
mod error;
mod functions;
mod keys;
mod node;
mod pipeline;
mod plan;
mod refuse;
mod restore;
mod runner;
mod sink;
mod source;
mod window;

pub use claims::{ClaimsSettings, VersionStart};
pub use error::RunError;
pub use keys::{ClaimKeys, Claimed};
pub use pipeline_files::{PipelineFiles, ReadError, SqlError};
pub use restore::{FinalClaim, FinalRows};
pub use runner::{Runner, RunnerCounters, RunnerSettings, check, digest};
