//! The interface of the tables. The loader decides what is final and in what order it is written; a backend writes
//! each step once and answers reports.

use crate::error::Result;
use crate::report::{Dimension, ReportQuery, ReportRow};
use crate::rows::{Correction, Count, Quarantined, RawRow};
use crate::sequence::Entry;
use async_trait::async_trait;
use click::{Dimensions, LogId, Millis, Minute, Offset, Offsets, Partition, Position};
use std::ops::Range;
use std::sync::Arc;

/// What final raw rows say of a click.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Its own record is there.
    Recorded,
    /// Another click of its impression is billed.
    Billed,
    Unknown,
}

/// Billable rows of one minute, version and dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billable {
    pub version: i64,
    pub count: Count,
}

/// A final raw row whose verdict is billable or late: it holds the claim of its impression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    pub impression_id: String,
    pub position: Position,
    pub appended_at: Millis,
    /// The pipeline version that judged it.
    pub version: i64,
    /// What it counts in.
    pub minute: Minute,
    pub dimensions: Dimensions,
}

/// One step of a closing: rows of one table. Nothing of it can be seen before the commit, which is all or nothing.
#[async_trait]
pub trait Rows<T>: Send {
    async fn write(&mut self, rows: &[T]) -> Result<()>;

    /// Makes them durable, under the number of the closing.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// A step of a closing, or `None` if it was done already.
pub type StepRows<T> = Option<Box<dyn Rows<T>>>;

/// The tables. Everything is durable when a call returns.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// At least: all deployments, the last two closings, and a closing that began after them.
    async fn entries(&self) -> Result<Vec<Entry>>;

    /// Puts an entry if its number and kind are absent, else fails with [`Taken`](crate::Error::Taken).
    async fn put_entry(&self, entry: &Entry) -> Result<()>;

    // The steps of a closing, in their order.
    async fn raw_clicks(&self, number: u64) -> Result<StepRows<RawRow>>;
    async fn quarantine(&self, number: u64) -> Result<StepRows<Quarantined>>;
    async fn click_corrections(&self, number: u64) -> Result<StepRows<Correction>>;
    /// Sums of this closing's corrections by minute, quarter hour and day (UTC), each with the closing's number. They
    /// may be about times that were summed up long ago: a reader adds up the sums of all closings. Each table once.
    async fn sum_corrections(&self, number: u64) -> Result<()>;
    async fn clicks_by_minute(&self, number: u64) -> Result<StepRows<Count>>;
    /// Quarter hours and days (UTC) that end in (`from`, `through`], summed up from the minutes. Each table once.
    async fn roll_up(&self, number: u64, from: Minute, through: Minute) -> Result<()>;

    /// Gives up a closing that began and did not end: what it has written never counts, once the entry of its number is
    /// another one. Until that is put the closing can still be carried out, from its beginning.
    async fn abandon(&self, number: u64) -> Result<()>;

    /// Work that makes later reads cheaper and changes nothing of what they say, after minutes from `from` to
    /// `through` became final.
    async fn tidy(&self, from: Minute, through: Minute) -> Result<()>;

    /// Counts the billable raw rows of these minutes whose positions are before `before`. None was appended at or
    /// after `appended_before`: rows that were need not be looked at.
    async fn billable(
        &self,
        minutes: Range<Minute>,
        appended_before: Millis,
        before: &Offsets,
    ) -> Result<Vec<Billable>>;

    /// The final raw rows of one partition, at these offsets, that hold a claim; in the order of their offsets.
    async fn claimants(&self, log_id: LogId, partition: Partition, offsets: Range<Offset>) -> Result<Vec<Claimant>>;

    /// What final raw rows say of this click.
    async fn known(&self, click_id: &str, impression_id: &str) -> Result<Known>;

    /// The tables as they are now; `last` is the number of the last entry that counts.
    async fn view(&self, last: u64) -> Result<Arc<dyn View>>;

    /// Whether readers in other processes learn of counts that are not final from the tables.
    fn publishes(&self) -> bool {
        false
    }

    /// Publishes them for such readers, all at once or not at all. Needs not be durable. After an error the next ones
    /// have to be whole.
    async fn publish(&self, _counts: &Provisional) -> Result<()> {
        Ok(())
    }
}

/// Counts that are not in the tables yet, for readers in other processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisional {
    /// The number of the last entry that counts: what the counts go beside.
    pub last: u64,
    /// Minutes before this are final with it.
    pub through: Minute,
    /// When the counts were last brought up to date.
    pub refreshed_at: Millis,
    /// These are all counts; else they are added to those that were published before.
    pub whole: bool,
    pub counts: Vec<Count>,
}

/// Counts that are not in the tables yet, summed up by the columns of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Start of the query's time unit, in milliseconds since the epoch; 0 without a time column.
    pub time: Millis,
    pub values: Vec<Arc<str>>,
    pub clicks: i64,
}

/// The rows of a report, and what they sum up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub rows: Vec<ReportRow>,
    pub truncated: bool,
    pub clicks: i64,
    pub provisional_clicks: i64,
}

/// The tables of one moment: what is written later cannot be seen through it.
#[async_trait]
pub trait View: Send + Sync + 'static {
    /// Answers from closed minutes before `through`, corrections, and `pending`.
    async fn report(&self, query: &ReportQuery, through: Minute, pending: Vec<Pending>) -> Result<Answer>;
}

/// Whether a query lets these dimensions through.
pub(crate) fn lets_through(query: &ReportQuery, dimensions: &Dimensions) -> bool {
    query.filters.iter().all(|(dimension, allowed)| {
        let value = &**dimension.of(dimensions);
        allowed.iter().any(|allowed| allowed == value)
    })
}

impl Dimension {
    /// Its value.
    pub(crate) fn of(self, dimensions: &Dimensions) -> &Arc<str> {
        dimensions.values()[self as usize]
    }

    /// Its column.
    pub(crate) fn column(self) -> &'static str {
        Dimensions::NAMES[self as usize]
    }
}
