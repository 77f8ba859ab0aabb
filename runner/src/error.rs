//! Errors, for the person who can mend them.

use pipeline_files::SqlError;

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Log(#[from] tally_log::LogError),
    /// An expression failed on a batch of records. Nothing of the batch was written.
    #[error("{step} could not be evaluated: {error}")]
    Evaluate { step: String, error: datafusion::error::DataFusionError },
    #[error(transparent)]
    Claims(#[from] crate::claims::ClaimsError),
    /// What records claim cannot be told.
    #[error("claims of the pipelines: {0}")]
    Keys(String),
    /// The final rows that claims are taken over from cannot be read.
    #[error("claims before this version: {0}")]
    FinalRows(String),
    #[error("checkpoint {}: {what}", .path.display())]
    Checkpoint { path: std::path::PathBuf, what: String },
}
