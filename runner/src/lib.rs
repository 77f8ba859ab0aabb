//! Runs pipelines/*.sql on one machine, on DataFusion.
//!
//! DataFusion plans the SQL and brings the expressions and accumulators; this crate adds only what streaming needs.
//!
//! # Layout
//!
//! The way of a record, then what is around it:
//!
//! * [`PipelineFiles`]: the files of a folder, `${NAME}` in them (`template`), and the digest of a deployment
//! * `parse`: statements; `plan`: the steps a batch goes through; `refuse`: what a stream cannot do
//! * `source`: records to columns, watermarks
//! * `node`: a view is a function from batch to batch; `functions`: those that Arroyo has as UDFs
//! * [`claims`]: who was first
//! * `window`: tumbling windows
//! * `sink`: rows to records
//! * `pipeline`, `checkpoint`: one file at work; [`Runner`]: all of them

#![forbid(unsafe_code)]

mod checkpoint;
pub mod claims;
mod error;
mod files;
mod functions;
mod node;
mod parse;
mod pipeline;
mod plan;
mod refuse;
mod runner;
mod sink;
mod source;
mod template;
mod window;

pub use claims::{ClaimsSettings, VersionStart};
pub use error::{RunError, SqlError};
pub use files::{PipelineFiles, ReadError};
pub use runner::{Runner, RunnerCounters, RunnerSettings};
