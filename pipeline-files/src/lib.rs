//! The files of pipelines/, as every engine gets them: the runner plans them, `deploy` hands them to Arroyo.
//!
//! # Layout
//!
//! * [`PipelineFiles`]: the files of a folder, and the digest that identifies a deployment of them
//! * [`Variables`], [`fill`]: `${NAME}` in a file
//! * [`parse`](mod@parse): the statements of a file
//! * [`SqlError`]: what is wrong, with its place

#![forbid(unsafe_code)]

mod error;
mod files;
pub mod parse;
mod template;

pub use error::SqlError;
pub use files::{PipelineFiles, ReadError, of_nobody, variables};
pub use parse::File;
pub use template::{Variables, fill};
