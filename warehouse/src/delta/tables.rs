//! Names, columns and rows of the tables. Times are in microseconds, UTC.

use crate::rows::{Correction, Count, Quarantined, RawRow};
use crate::sequence::Entry;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use click::{Dimensions, Millis, Minute};
use deltalake_core::kernel::{DataType, StructField};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

/// The tables, in the order in which a closing writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    RawClicks,
    Quarantine,
    Corrections,
    CorrectionMinutes,
    CorrectionQuarterHours,
    CorrectionDays,
    Minutes,
    QuarterHours,
    Days,
    Closings,
}

const DAY_MS: i64 = 24 * 60 * Minute::MS;

impl Name {
    pub const ALL: [Name; 10] = [
        Name::RawClicks,
        Name::Quarantine,
        Name::Corrections,
        Name::CorrectionMinutes,
        Name::CorrectionQuarterHours,
        Name::CorrectionDays,
        Name::Minutes,
        Name::QuarterHours,
        Name::Days,
        Name::Closings,
    ];

    /// Counts of final minutes, from coarse to fine.
    pub const COUNTS: [Name; 3] = [Name::Days, Name::QuarterHours, Name::Minutes];

    /// Sums of the corrections of each closing, from coarse to fine.
    pub const CORRECTIONS: [Name; 3] = [Name::CorrectionDays, Name::CorrectionQuarterHours, Name::CorrectionMinutes];

    pub fn as_str(self) -> &'static str {
        match self {
            Name::RawClicks => "raw_clicks",
            Name::Quarantine => "quarantine",
            Name::Corrections => "click_corrections",
            Name::CorrectionMinutes => "corrections_by_minute",
            Name::CorrectionQuarterHours => "corrections_by_quarter_hour",
            Name::CorrectionDays => "corrections_by_day",
            Name::Minutes => "clicks_by_minute",
            Name::QuarterHours => "clicks_by_quarter_hour",
            Name::Days => "clicks_by_day",
            Name::Closings => "closings",
        }
    }

    /// The column that says what time a row is about.
    pub fn time_column(self) -> &'static str {
        match self {
            Name::RawClicks | Name::Quarantine => "appended_at",
            Name::Corrections | Name::CorrectionMinutes | Name::Minutes => "minute",
            Name::CorrectionQuarterHours | Name::QuarterHours => "quarter_hour",
            Name::CorrectionDays | Name::Days => "day",
            Name::Closings => "finalized_at",
        }
    }

    /// Minutes that a row of a table of counts or sums stands for.
    pub fn minutes(self) -> i64 {
        match self {
            Name::CorrectionQuarterHours | Name::QuarterHours => 15,
            Name::CorrectionDays | Name::Days => 24 * 60,
            _ => 1,
        }
    }

    /// Columns that make folders. Raw clicks are kept by the day of their append time, minutes by their own. A closing's
    /// corrections may be about many days, and are few: by day they would be as many files as rows.
    pub fn partition_columns(self) -> impl Iterator<Item = &'static str> {
        matches!(self, Name::RawClicks | Name::Minutes | Name::QuarterHours).then_some("date").into_iter()
    }

    /// What a query can skip files by comes first in the columns; a commit's statistics stop there.
    pub fn configuration(self) -> [(&'static str, Option<&'static str>); 1] {
        let indexed = match self {
            Name::RawClicks => "5",
            Name::Quarantine => "4",
            _ => "12",
        };
        [("delta.dataSkippingNumIndexedCols", Some(indexed))]
    }

    pub fn columns(self) -> Vec<StructField> {
        let must = |name: &str, kind: DataType| StructField::new(name, kind, false);
        let may = |name: &str, kind: DataType| StructField::new(name, kind, true);
        let texts = |names: &[&'static str]| names.iter().map(|name| may(name, DataType::STRING)).collect::<Vec<_>>();
        let dimensions = || Dimensions::NAMES.map(|name| must(name, DataType::STRING));
        let position =
            [must("log_id", DataType::STRING), must("partition", DataType::INTEGER), must("offset", DataType::LONG)];
        let count = |clicks: &str| {
            let mut columns = vec![must(self.time_column(), DataType::TIMESTAMP)];
            columns.extend(dimensions());
            columns.push(must(clicks, DataType::LONG));
            columns
        };
        match self {
            Name::RawClicks => {
                let mut columns = position.to_vec();
                columns.extend([must("appended_at", DataType::TIMESTAMP), may("timestamp", DataType::TIMESTAMP)]);
                columns.extend([must("verdict", DataType::STRING), must("version", DataType::LONG)]);
                columns.extend(texts(&["kind", "click_id", "impression_id"]));
                columns.extend(texts(&Dimensions::NAMES));
                columns.extend(texts(&["ip_hash", "user_agent"]));
                columns.extend([may("seen_before", DataType::BOOLEAN), may("attempt", DataType::LONG)]);
                columns.extend([may("invalid_reason", DataType::STRING), must("date", DataType::DATE)]);
                columns
            }
            Name::Quarantine => {
                let mut columns = position.to_vec();
                columns.extend([must("appended_at", DataType::TIMESTAMP), must("bytes", DataType::BINARY)]);
                columns.push(must("error", DataType::STRING));
                columns
            }
            Name::Corrections => {
                let mut columns = position.to_vec();
                columns.extend([must("kind", DataType::STRING), must("minute", DataType::TIMESTAMP)]);
                columns.extend(dimensions());
                columns.extend([must("delta", DataType::LONG), must("closing", DataType::LONG)]);
                columns.push(must("reason", DataType::STRING));
                columns
            }
            Name::Minutes | Name::QuarterHours => {
                let mut columns = count("clicks");
                columns.push(must("date", DataType::DATE));
                columns
            }
            Name::Days => count("clicks"),
            Name::CorrectionMinutes | Name::CorrectionQuarterHours | Name::CorrectionDays => {
                let mut columns = count("delta");
                columns.push(must("closing", DataType::LONG));
                columns
            }
            Name::Closings => {
                let mut columns = vec![must("number", DataType::LONG), must("kind", DataType::STRING)];
                columns.extend([must("through", DataType::TIMESTAMP), must("version", DataType::LONG)]);
                columns.extend(
                    ["log_id", "positions", "result_positions", "digest", "totals", "quarantined"]
                        .map(|name| must(name, DataType::STRING)),
                );
                columns.push(must("finalized_at", DataType::TIMESTAMP));
                columns
            }
        }
    }
}

/// How all data files are written.
pub(super) fn writer_properties() -> WriterProperties {
    WriterProperties::builder().set_compression(Compression::SNAPPY).build()
}

/// Rows of a table, as columns in its order.
pub(super) trait ToBatch: Send + Sync + Sized + 'static {
    const TABLE: Name;
    fn columns(rows: &[Self], closing: u64) -> Vec<ArrayRef>;
}

pub(super) fn micros(at: Millis) -> i64 {
    // `Millis` fits nanoseconds, so it fits microseconds.
    at.get() * 1000
}

fn times(values: impl Iterator<Item = Option<Millis>>) -> ArrayRef {
    let values: TimestampMicrosecondArray = values.map(|at| at.map(micros)).collect();
    Arc::new(values.with_timezone("UTC"))
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn longs(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn dates(values: impl Iterator<Item = Millis>) -> ArrayRef {
    // Days between 1678 and 2262 fit 32 bits.
    Arc::new(Date32Array::from_iter_values(values.map(|at| at.get().div_euclid(DAY_MS) as i32)))
}

fn dimension_columns<'a, T: 'a>(rows: &'a [T], of: impl Fn(&'a T) -> &'a Dimensions) -> [ArrayRef; 5] {
    std::array::from_fn(|index| texts(rows.iter().map(|row| &**of(row).values()[index])))
}

impl ToBatch for RawRow {
    const TABLE: Name = Name::RawClicks;

    fn columns(rows: &[Self], _: u64) -> Vec<ArrayRef> {
        type Text = fn(&RawRow) -> &Option<String>;
        let maybe =
            |of: Text| -> ArrayRef { Arc::new(rows.iter().map(|row| of(row).as_deref()).collect::<StringArray>()) };
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.log_id.to_string()))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.log_partition))),
            longs(rows.iter().map(|row| row.log_offset)),
            times(rows.iter().map(|row| Some(row.appended_at))),
            times(rows.iter().map(|row| row.timestamp)),
            texts(rows.iter().map(|row| &*row.verdict)),
            longs(rows.iter().map(|row| row.version)),
            maybe(|row| &row.kind),
            maybe(|row| &row.click_id),
            maybe(|row| &row.impression_id),
            maybe(|row| &row.ad_id),
            maybe(|row| &row.campaign_id),
            maybe(|row| &row.publisher_id),
            maybe(|row| &row.country),
            maybe(|row| &row.device),
            maybe(|row| &row.ip_hash),
            maybe(|row| &row.user_agent),
            Arc::new(rows.iter().map(|row| row.seen_before).collect::<BooleanArray>()),
            Arc::new(rows.iter().map(|row| row.attempt).collect::<Int64Array>()),
            maybe(|row| &row.invalid_reason),
            dates(rows.iter().map(|row| row.appended_at)),
        ]
    }
}

impl ToBatch for Quarantined {
    const TABLE: Name = Name::Quarantine;

    fn columns(rows: &[Self], _: u64) -> Vec<ArrayRef> {
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.log_id.to_string()))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition))),
            longs(rows.iter().map(|row| row.offset)),
            times(rows.iter().map(|row| Some(row.appended_at))),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.bytes))),
            texts(rows.iter().map(|row| &*row.error)),
        ]
    }
}

impl ToBatch for Correction {
    const TABLE: Name = Name::Corrections;

    fn columns(rows: &[Self], closing: u64) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.log_id.to_string()))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition))),
            longs(rows.iter().map(|row| row.offset)),
            texts(rows.iter().map(|row| row.kind)),
            times(rows.iter().map(|row| Some(row.count.minute.start()))),
        ];
        columns.extend(dimension_columns(rows, |row| &row.count.dimensions));
        columns.extend([
            longs(rows.iter().map(|row| row.count.clicks)),
            longs(rows.iter().map(|_| closing as i64)),
            texts(rows.iter().map(|row| &*row.reason)),
        ]);
        columns
    }
}

impl ToBatch for Count {
    const TABLE: Name = Name::Minutes;

    fn columns(rows: &[Self], _: u64) -> Vec<ArrayRef> {
        let mut columns = vec![times(rows.iter().map(|row| Some(row.minute.start())))];
        columns.extend(dimension_columns(rows, |row| &row.dimensions));
        columns.extend([longs(rows.iter().map(|row| row.clicks)), dates(rows.iter().map(|row| row.minute.start()))]);
        columns
    }
}

impl ToBatch for Entry {
    const TABLE: Name = Name::Closings;

    fn columns(rows: &[Self], _: u64) -> Vec<ArrayRef> {
        let json = |of: fn(&Entry) -> serde_json::Result<String>| -> ArrayRef {
            let values = rows.iter().map(|row| of(row).expect("numbers always are JSON"));
            Arc::new(StringArray::from_iter_values(values))
        };
        vec![
            longs(rows.iter().map(|row| row.number as i64)),
            texts(rows.iter().map(|row| row.kind.as_str())),
            times(rows.iter().map(|row| Some(row.through.start()))),
            longs(rows.iter().map(|row| row.version)),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.log_id.to_string()))),
            json(|row| serde_json::to_string(&row.positions)),
            json(|row| serde_json::to_string(&row.result_positions)),
            texts(rows.iter().map(|row| &*row.digest)),
            texts(rows.iter().map(|row| &*row.totals)),
            json(|row| serde_json::to_string(&row.quarantined)),
            times(rows.iter().map(|row| Some(row.finalized_at))),
        ]
    }
}
