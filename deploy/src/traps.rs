//! What Arroyo accepts and then gets wrong, as far as it can be seen in SQL and functions. Each was met on a running
//! Arroyo; none of them is an error there before rows are missing or wrong.
//!
//! * The arguments of an asynchronous function must be the first columns of the view it reads, in its order and types:
//!   what was in flight at a checkpoint is asked again with the row's first columns.
//! * An argument of such a function that can be NULL must be an `Option`: otherwise it is given `""` or 0.
//! * An asynchronous function must name its timeout, and a long one: Arroyo panics when it is over.
//! * No function can return `bool`; a file has one `#[udf]`.
//! * `WATERMARK FOR` wants an expression that cannot be NULL and that names no generated column.
//! * `UNION` under an aggregate cannot be planned.
//! * A source must begin where its version begins: at the offsets of topic `clicks` committed for the version's own consumer
//!   group. With none Arroyo reads nothing, without an error.
//! * A source must leave out what it cannot decode: otherwise one such record stops the pipeline for good.
//!
//! # Layout
//!
//! * [`functions`]: signatures out of source files (`udf`)
//! * [`check`]: a pipeline file (`sql`), with names, types and NULLs of each view's columns (`columns`)

mod columns;
mod sql;
mod udf;

pub use columns::Kind;
pub use sql::check;
pub use udf::{Argument, Udf};

use pipeline_files::SqlError;

/// The file of a function that pipelines call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The function's name in SQL.
    pub name: &'static str,
    /// The whole file.
    pub source: &'static str,
}

impl From<&udfs::Source> for Source {
    fn from(file: &udfs::Source) -> Self {
        Source { name: file.name, source: file.source }
    }
}

/// The functions in these files, or what is wrong with the first that cannot work on Arroyo.
pub fn functions(sources: &[Source]) -> Result<Vec<Udf>, SqlError> {
    sources.iter().map(Udf::read).collect()
}
