//! What a report asks and answers.

use async_trait::async_trait;
use click::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Unit of the time column of a report; all in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Minute,
    Hour,
    Day,
}

/// One of the five dimensions that clicks are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    AdId,
    CampaignId,
    PublisherId,
    Country,
    Device,
}

/// A report, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportQuery {
    /// The first minute counted; minutes are counted whole, so this is the start of one.
    pub from: Millis,
    /// The first minute not counted.
    pub to: Millis,
    /// Values that are let through, a dimension that is not named lets everything through.
    pub filters: BTreeMap<Dimension, Vec<String>>,
    /// Unit of the time column, if there is one.
    pub time: Option<TimeUnit>,
    /// Dimensions of the rows, in the order of the columns.
    pub dimensions: Vec<Dimension>,
    /// At most this many rows.
    pub limit: usize,
    pub order: Order,
}

/// Order of the rows; ties go by the other columns, so that an order is always whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By time, then by the dimensions in their order.
    Columns,
    /// Most clicks first.
    ClicksDescending,
}

/// One row of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// Start of the row's minute, hour or day, if the query has a time column.
    pub time: Option<Millis>,
    /// Values of the query's dimensions, in their order.
    pub values: Vec<Arc<str>>,
    /// Billed clicks, with corrections.
    pub clicks: i64,
    /// Some part of the row is not final yet.
    pub provisional: bool,
}

/// A report. All of it is of one state of the warehouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub rows: Vec<ReportRow>,
    /// There were more rows than the limit.
    pub truncated: bool,
    /// Clicks of all rows, also of those beyond the limit.
    pub clicks: i64,
    /// How many of those are not final yet.
    pub provisional_clicks: i64,
    /// Minutes before this are final.
    pub complete_through: Millis,
    /// All records that were appended before this are counted.
    pub refreshed_at: Millis,
}

/// Answers reports.
#[async_trait]
pub trait Reports: Send + Sync + 'static {
    async fn report(&self, query: &ReportQuery) -> Result<Report, ReportError>;
}

/// A report that could not be made: the warehouse's fault, never the caller's.
#[derive(Debug, thiserror::Error)]
#[error("the warehouse could not answer: {0}")]
pub struct ReportError(pub String);
