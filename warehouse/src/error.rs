//! What can go wrong in the warehouse.

use click::{LogId, Minute, Offset, Partition};
use std::path::PathBuf;
use tally_log::LogError;

pub type Result<T> = std::result::Result<T, Error>;

/// Each says where, and what an operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Log(#[from] LogError),
    /// A result topic does not hold what is still needed of it.
    #[error(
        "{0}: rows expired before they were read, or the topic was made anew. No minute closes before `tally deploy --again` (with \
         `tally run`: `tally run --again`; on one machine: `tally up --again`) has them made again from the log"
    )]
    Unread(LogError),
    #[error("another process uses the warehouse in {}", .0.display())]
    InUse(PathBuf),
    /// Something on disk is not what was written. Never skipped, never guessed at.
    #[error("{} is damaged: {what}", .file.display())]
    Damaged { file: PathBuf, what: String },
    #[error("table {table}: {what}")]
    Table { table: &'static str, what: String },
    /// A statement that a server did not carry out, with its answer.
    #[error("clickhouse at {server}: {what}; statement: {statement}")]
    Statement { server: String, statement: String, what: String },
    /// The tables on a server are not those that this version knows.
    #[error("database {database} {what}")]
    Schema { database: String, what: String },
    #[error(transparent)]
    File(#[from] tally_log::durable::FileError),
    /// Put if absent: somebody was first.
    #[error(
        "table {table}: entry {number} was written by another loader, which is at work on the same warehouse; this one stops"
    )]
    Taken { table: &'static str, number: u64 },
    #[error(
        "version {next} comes next, and {expected} was to be recorded: somebody else deploys at the same time; nothing was recorded here"
    )]
    OtherVersion { expected: i64, next: i64 },
    #[error("no pipeline was deployed to this warehouse yet")]
    NotDeployed,
    #[error(
        "the warehouse counts log {counted}, but topic {topic:?} is log {found}: it was made anew, and its positions mean nothing here. \
         Nothing more is counted. `tally topics` says what can be done; on one machine, bring back the log's folder as it was, or \
         begin with an empty data folder, and keep this one for its reports"
    )]
    OtherLog { topic: String, counted: LogId, found: LogId },
    /// What a closing must write is not in the result topic, though it was there when the closing began.
    #[error(
        "closing {number}: topic {topic:?} has no row of {partition}:{offset}; `tally deploy --again`, or on one machine `tally up --again`, gives the closing up and counts from the one before it on"
    )]
    RowGone { number: u64, topic: String, partition: Partition, offset: Offset },
    /// The rows that were counted and the rows that are written differ: nothing more is written.
    #[error(
        "closing {number}: {what}; nothing of it counts before this is understood. `tally deploy --again`, or on one machine `tally up --again`, gives the closing up and counts from the one before it on"
    )]
    Contradiction { number: u64, what: String },
    #[error(
        "repair {number} of the minutes before {through} began and did not end: run `tally repair` again, for the last of them, or give it up as a closing with `--again`"
    )]
    RepairBegun { number: u64, through: Minute },
    /// A repair that cannot be, with the reason. Nothing was written.
    #[error("minute {minute} cannot be repaired: {what}")]
    NoRepair { minute: Minute, what: String },
    #[error("a task of the loader died: {0}")]
    Died(String),
}

impl Error {
    /// What went wrong with a result topic: rows that are gone can be made again.
    pub(crate) fn of_results(error: LogError) -> Error {
        match error {
            LogError::OutOfRange { .. } | LogError::TopicReplaced { .. } => Error::Unread(error),
            error => Error::Log(error),
        }
    }
}
