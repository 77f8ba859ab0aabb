//! Reads the tables, with DataFusion. Filters and ranges are expressions, never text.

use super::Table;
use super::tables::{Name, micros};
use crate::backend::{Answer, Billable, Pending, View};
use crate::error::{Error, Result};
use crate::report::{self, Order, ReportQuery, ReportRow};
use crate::rows::Count;
use crate::sequence::{Entry, Kind};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::{SortColumn, SortOptions, cast, concat_batches, lexsort_to_indices, sum, take};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use async_trait::async_trait;
use click::{Dimensions, Millis, Minute, Offsets};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions::expr_fn::least;
use datafusion::functions_aggregate::expr_fn::{count, sum as sum_of};
use datafusion::prelude::{Expr, SessionConfig, SessionContext, cast as cast_expr, ident, lit};
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};
use futures::StreamExt;
use std::ops::Range;
use std::sync::Arc;

/// The session that all queries share: its caches hold the metadata of data files.
pub(super) fn session() -> SessionContext {
    let mut config = SessionConfig::new();
    let options = config.options_mut();
    // A campaign's rows are few among a file's: what the filter leaves is decoded, nothing else.
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    SessionContext::new_with_config(config)
}

/// Reads a table as it is now, whatever is written later.
pub(super) async fn provider(table: &Table) -> Result<Arc<dyn TableProvider>> {
    table.delta.table_provider().await.map_err(|error| table.failed(error))
}

fn time(at: Millis) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros(at)), Some("UTC".into())))
}

fn between(column: Expr, from: Millis, to: Millis) -> Expr {
    column.clone().gt_eq(time(from)).and(column.lt(time(to)))
}

/// The start of the stretch of so many minutes that contains the time, counted from 1970, before which nobody clicked.
fn start_of(minutes: i64, column: Expr) -> Expr {
    let at = cast_expr(column, DataType::Int64);
    let unit = lit(minutes * Minute::MS * 1000);
    cast_expr(at.clone() - at % unit, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
}

/// The last entries, all deployments, and what began after them.
pub(super) async fn entries(session: &SessionContext, table: &Table) -> Result<Vec<Entry>> {
    let failed = |error: DataFusionError| table.failed(error);
    let since = table.done.map_or(0, |done| done as i64);
    let wanted = ident("number").gt_eq(lit(since)).or(ident("kind").eq(lit(Kind::Deployment.as_str())));
    let frame = session.read_table(provider(table).await?).and_then(|frame| frame.filter(wanted));
    let batches = frame.map_err(failed)?.collect().await.map_err(failed)?;
    let mut entries = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            entries.push(entry(&batch, row).map_err(|what| table.failed(what))?);
        }
    }
    Ok(entries)
}

fn entry(batch: &RecordBatch, row: usize) -> std::result::Result<Entry, String> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("column {name} is missing"));
    let text = |name: &str| -> std::result::Result<String, String> {
        let texts = cast(column(name)?, &DataType::Utf8).map_err(|error| error.to_string())?;
        Ok(texts.as_string::<i32>().value(row).to_string())
    };
    let long = |name: &str| -> std::result::Result<i64, String> {
        let longs = cast(column(name)?, &DataType::Int64).map_err(|error| error.to_string())?;
        Ok(longs.as_primitive::<Int64Type>().value(row))
    };
    let json = |name: &str, error: serde_json::Error| format!("column {name}: {error}");
    let number = long("number")?;
    Ok(Entry {
        number: u64::try_from(number).map_err(|_| format!("number {number} is below 0"))?,
        kind: serde_json::from_value(text("kind")?.into()).map_err(|error| json("kind", error))?,
        through: Millis::new(long("through")? / 1000).minute(),
        log_id: text("log_id")?.parse().map_err(|error: click::Invalid| error.to_string())?,
        positions: serde_json::from_str(&text("positions")?).map_err(|error| json("positions", error))?,
        result_positions: serde_json::from_str(&text("result_positions")?)
            .map_err(|error| json("result_positions", error))?,
        version: long("version")?,
        digest: text("digest")?,
        quarantined: serde_json::from_str(&text("quarantined")?).map_err(|error| json("quarantined", error))?,
        finalized_at: Millis::new(long("finalized_at")? / 1000),
    })
}

/// Sums a finer table up into a coarser one.
pub(super) async fn roll_up(
    session: &SessionContext,
    source: &Table,
    target: Name,
    from: Minute,
    to: Minute,
) -> Result<SendableRecordBatchStream> {
    let failed = |error: DataFusionError| source.failed(error);
    let column = ident(source.name.time_column());
    let start = start_of(target.minutes(), column.clone());
    let plan = |frame: DataFrame| -> PlanResult<DataFrame> {
        let mut groups = vec![start.alias(target.time_column())];
        groups.extend(Dimensions::NAMES.map(ident));
        let summed = frame
            .filter(between(column, from.start(), to.start()))?
            .aggregate(groups, vec![sum_of(ident("clicks")).alias("clicks")])?;
        let mut columns = vec![ident(target.time_column())];
        columns.extend(Dimensions::NAMES.map(|name| cast_expr(ident(name), DataType::Utf8).alias(name)));
        columns.push(ident("clicks"));
        if target.partition_columns().next().is_some() {
            columns.push(cast_expr(ident(target.time_column()), DataType::Date32).alias("date"));
        }
        let order = ["campaign_id", "ad_id", target.time_column()].map(ident).to_vec();
        summed.select(columns)?.sort_by(order)
    };
    let frame = session.read_table(provider(source).await?).and_then(plan).map_err(failed)?;
    frame.execute_stream().await.map_err(failed)
}

/// Hands the batches of a query to a writer, as they come. Whether there was any row.
pub(super) async fn write(
    mut rows: SendableRecordBatchStream,
    writer: &mut RecordBatchWriter,
) -> std::result::Result<bool, String> {
    let mut any = false;
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(|error| error.to_string())?;
        if batch.num_rows() == 0 {
            continue;
        }
        any = true;
        let batch = conform(&batch, &writer.arrow_schema()).map_err(|error| error.to_string())?;
        writer.write(batch).await.map_err(|error| error.to_string())?;
    }
    Ok(any)
}

/// The same columns, in the types of a table: a query may have text in other layouts, or NULL where there is none.
fn conform(batch: &RecordBatch, schema: &Arc<Schema>) -> arrow::error::Result<RecordBatch> {
    let column = |field: &Arc<Field>| -> arrow::error::Result<ArrayRef> {
        let index = batch.schema().index_of(field.name())?;
        cast(batch.column(index), field.data_type())
    };
    RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect::<arrow::error::Result<_>>()?)
}

/// Counts billable raw rows.
pub(super) async fn billable(
    session: &SessionContext,
    raw_clicks: Arc<dyn TableProvider>,
    minutes: Range<Minute>,
    appended_before: Millis,
    before: &Offsets,
) -> PlanResult<Vec<Billable>> {
    // `LEAST(timestamp, appended_at)`, as the pipelines have it.
    let clicked_at = least(vec![ident("timestamp"), ident("appended_at")]);
    let of_partition = |(partition, end)| ident("partition").eq(lit(partition)).and(ident("offset").lt(lit(end)));
    let before = before.iter().map(of_partition).reduce(Expr::or).unwrap_or_else(|| lit(false));
    let wanted = ident("verdict")
        .eq(lit("billable"))
        .and(between(ident("appended_at"), minutes.start.start(), appended_before))
        .and(between(clicked_at.clone(), minutes.start.start(), minutes.end.start()))
        .and(before);
    let mut groups = vec![start_of(1, clicked_at).alias("minute"), ident("version")];
    groups.extend(Dimensions::NAMES.map(ident));
    let counted = session
        .read_table(raw_clicks)?
        .filter(wanted)?
        .aggregate(groups, vec![count(lit(1_i64)).alias("clicks")])?
        .collect()
        .await?;
    let mut rows = Vec::new();
    for batch in counted {
        let minutes = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        let versions = batch.column(1).as_primitive::<Int64Type>();
        let texts = (2..7)
            .map(|index| cast(batch.column(index), &DataType::Utf8))
            .collect::<arrow::error::Result<Vec<ArrayRef>>>()?;
        let clicks = batch.column(7).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let text = |column: usize| -> Arc<str> {
                let texts = texts[column].as_string::<i32>();
                // NULL is the empty text here too, as it is where rows come in.
                if texts.is_null(row) { "".into() } else { texts.value(row).into() }
            };
            let dimensions = Dimensions {
                ad_id: text(0),
                campaign_id: text(1),
                publisher_id: text(2),
                country: text(3),
                device: text(4),
            };
            let minute = Millis::new(minutes.value(row) / 1000).minute();
            let count = Count { minute, dimensions, clicks: clicks.value(row) };
            rows.push(Billable { version: versions.value(row), count });
        }
    }
    Ok(rows)
}

/// The tables of counts at one moment.
pub(super) struct DeltaView {
    session: SessionContext,
    minutes: Arc<dyn TableProvider>,
    quarter_hours: Arc<dyn TableProvider>,
    days: Arc<dyn TableProvider>,
    corrections: Arc<dyn TableProvider>,
    /// Corrections of a closing that has not ended are there already, and do not count yet.
    last: u64,
}

/// A stretch of time, and the table that answers it.
type Piece = (Name, Minute, Minute);

/// Covers [`from`, `to`) with whole units of the coarsest tables that can answer, and its edges with finer ones.
fn cover(from: Minute, to: Minute, tables: &[Name], pieces: &mut Vec<Piece>) {
    let Some((table, finer)) = tables.split_first() else { return };
    let unit = table.minutes();
    let start =
        Minute::from_number(from.number().div_euclid(unit) * unit + if from.number() % unit == 0 { 0 } else { unit });
    let end = Minute::from_number(to.number().div_euclid(unit) * unit);
    if start >= end {
        if from < to {
            cover(from, to, finer, pieces);
        }
        return;
    }
    pieces.push((*table, start, end));
    cover(from, start, finer, pieces);
    cover(end, to, finer, pieces);
}

impl DeltaView {
    pub fn new(session: SessionContext, providers: [Arc<dyn TableProvider>; 4], last: u64) -> Self {
        let [minutes, quarter_hours, days, corrections] = providers;
        DeltaView { session, minutes, quarter_hours, days, corrections, last }
    }

    fn provider(&self, name: Name) -> Arc<dyn TableProvider> {
        match name {
            Name::QuarterHours => &self.quarter_hours,
            Name::Days => &self.days,
            Name::Corrections => &self.corrections,
            _ => &self.minutes,
        }
        .clone()
    }

    /// Rows of one table, in the columns of the query and `clicks`.
    fn part(&self, query: &ReportQuery, (name, from, to): Piece) -> PlanResult<DataFrame> {
        let column = ident(name.time_column());
        let mut wanted = between(column.clone(), from.start(), to.start());
        for (dimension, allowed) in &query.filters {
            let allowed: Vec<Expr> = allowed.iter().map(lit).collect();
            // An empty list lets nothing through.
            let one_of = match allowed.is_empty() {
                true => lit(false),
                false => ident(dimension.column()).in_list(allowed, false),
            };
            wanted = wanted.and(one_of);
        }
        let (clicks, wanted) = match name {
            Name::Corrections => ("delta", wanted.and(ident("closing").lt_eq(lit(self.last as i64)))),
            _ => ("clicks", wanted),
        };
        let mut columns = Vec::new();
        if let Some(unit) = query.time {
            let start = if unit.minutes() == name.minutes() { column } else { start_of(unit.minutes(), column) };
            columns.push(start.alias("time"));
        }
        columns
            .extend(query.dimensions.iter().enumerate().map(|(index, d)| ident(d.column()).alias(value_column(index))));
        columns.push(ident(clicks).alias("clicks"));
        columns.push(lit(0_i64).alias("pending"));
        self.session.read_table(self.provider(name))?.filter(wanted)?.select(columns)
    }

    async fn groups(&self, query: &ReportQuery, through: Minute, pending: &[Pending]) -> PlanResult<RecordBatch> {
        let (from, to) = (query.from.minute(), query.to.minute());
        let tables: &[Name] = match query.time {
            Some(report::TimeUnit::Minute) => &[Name::Minutes],
            Some(report::TimeUnit::Hour) => &[Name::QuarterHours, Name::Minutes],
            Some(report::TimeUnit::Day) | None => &[Name::Days, Name::QuarterHours, Name::Minutes],
        };
        let mut pieces = Vec::new();
        cover(from, to.min(through), tables, &mut pieces);
        // A correction may be about a minute that is not final yet.
        let mut all = self.part(query, (Name::Corrections, from, to))?;
        for piece in pieces {
            all = all.union(self.part(query, piece)?)?;
        }
        let schema: Arc<Schema> = Arc::new(all.schema().as_arrow().clone());
        if !pending.is_empty() {
            all = all.union(self.session.read_batch(pending_batch(query, pending, &schema)?)?)?;
        }
        let mut groups: Vec<Expr> = query.time.iter().map(|_| ident("time")).collect();
        groups.extend((0..query.dimensions.len()).map(|index| ident(value_column(index))));
        let sums = ["clicks", "pending"].map(|name| sum_of(ident(name)).alias(name)).to_vec();
        let summed = all.aggregate(groups, sums)?;
        let schema = Arc::new(summed.schema().as_arrow().clone());
        let batches = summed.collect().await?;
        Ok(concat_batches(&schema, &batches)?)
    }
}

fn value_column(index: usize) -> String {
    format!("value{index}")
}

fn pending_batch(query: &ReportQuery, pending: &[Pending], schema: &Arc<Schema>) -> PlanResult<RecordBatch> {
    let mut columns: Vec<ArrayRef> = Vec::new();
    if query.time.is_some() {
        let times = TimestampMicrosecondArray::from_iter_values(pending.iter().map(|row| micros(row.time)));
        columns.push(Arc::new(times.with_timezone("UTC")));
    }
    for index in 0..query.dimensions.len() {
        columns.push(Arc::new(StringArray::from_iter_values(pending.iter().map(|row| &row.values[index]))));
    }
    let clicks: ArrayRef = Arc::new(Int64Array::from_iter_values(pending.iter().map(|row| row.clicks)));
    columns.extend([clicks.clone(), clicks]);
    for (column, field) in columns.iter_mut().zip(schema.fields()) {
        *column = cast(column, field.data_type())?;
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

#[async_trait]
impl View for DeltaView {
    async fn report(&self, query: &ReportQuery, through: Minute, pending: Vec<Pending>) -> Result<Answer> {
        let failed = |error: &dyn std::fmt::Display| Error::Table { table: "reports", what: error.to_string() };
        let groups = self.groups(query, through, &pending).await.map_err(|error| failed(&error))?;
        answer(query, through, &groups).map_err(|error| failed(&error))
    }
}

/// Orders and cuts the groups.
fn answer(query: &ReportQuery, through: Minute, groups: &RecordBatch) -> arrow::error::Result<Answer> {
    let keys = groups.num_columns() - 2;
    let clicks = groups.column(keys).as_primitive::<Int64Type>();
    let pending = groups.column(keys + 1).as_primitive::<Int64Type>();
    let total = sum(clicks).unwrap_or(0);
    let provisional_clicks = sum(pending).unwrap_or(0);
    // Without columns to group by there is always a row, even of nothing.
    let any = clicks.null_count() < clicks.len();
    let count = if any { groups.num_rows() } else { 0 };
    let column = |index: usize, descending: bool| SortColumn {
        values: groups.column(index).clone(),
        options: Some(SortOptions { descending, nulls_first: true }),
    };
    let mut order: Vec<SortColumn> = (0..keys).map(|index| column(index, false)).collect();
    if query.order == Order::ClicksDescending || order.is_empty() {
        order.insert(0, column(keys, true));
    }
    let first = lexsort_to_indices(&order, Some(query.limit.min(count)))?;
    let columns: Vec<ArrayRef> =
        groups.columns().iter().map(|column| take(column, &first, None)).collect::<arrow::error::Result<_>>()?;
    let clicks = columns[keys].as_primitive::<Int64Type>();
    let pending = columns[keys + 1].as_primitive::<Int64Type>();
    let has_time = usize::from(query.time.is_some());
    let texts: Vec<ArrayRef> = columns[has_time..keys]
        .iter()
        .map(|column| cast(column, &DataType::Utf8))
        .collect::<arrow::error::Result<_>>()?;
    let rows = (0..first.len())
        .map(|row| {
            let time = query.time.map(|unit| {
                let at = columns[0].as_primitive::<TimestampMicrosecondType>().value(row);
                (unit, Millis::new(at / 1000))
            });
            let end = time.map_or(query.to, |(unit, start)| start.plus(unit.minutes() * Minute::MS).min(query.to));
            ReportRow {
                time: time.map(|(_, start)| start),
                values: texts.iter().map(|texts| texts.as_string::<i32>().value(row).into()).collect(),
                clicks: clicks.value(row),
                provisional: end > through.start() || pending.value(row) != 0,
            }
        })
        .collect::<Vec<_>>();
    Ok(Answer { truncated: rows.len() < count, rows, clicks: total, provisional_clicks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_covered_once_by_the_coarsest_tables() {
        let check = |from: i64, to: i64, expected: &[(Name, i64, i64)]| {
            let mut pieces = Vec::new();
            let (from, to) = (Minute::from_number(from), Minute::from_number(to));
            cover(from, to, &[Name::Days, Name::QuarterHours, Name::Minutes], &mut pieces);
            let pieces: Vec<_> = pieces.iter().map(|(name, from, to)| (*name, from.number(), to.number())).collect();
            assert_eq!(pieces, expected);
        };
        check(0, 1440, &[(Name::Days, 0, 1440)]);
        check(7, 7, &[]);
        check(9, 7, &[]);
        check(1, 14, &[(Name::Minutes, 1, 14)]);
        check(1, 31, &[(Name::QuarterHours, 15, 30), (Name::Minutes, 1, 15), (Name::Minutes, 30, 31)]);
        check(
            -1,
            1456,
            &[
                (Name::Days, 0, 1440),
                (Name::Minutes, -1, 0),
                (Name::QuarterHours, 1440, 1455),
                (Name::Minutes, 1455, 1456),
            ],
        );
    }
}
