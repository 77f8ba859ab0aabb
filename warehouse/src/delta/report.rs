//! Reports over the tables of counts: each stretch of time from the coarsest table that can answer, and with it the sums
//! of the corrections.

use super::query::{between, start_of};
use super::tables::{Name, micros};
use crate::backend::{Answer, Pending, View};
use crate::error::{Error, Result};
use crate::report::{self, Order, ReportQuery, ReportRow};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::{SortColumn, SortOptions, cast, concat_batches, lexsort_to_indices, sum, take};
use arrow::datatypes::{DataType, Int64Type, Schema, TimestampMicrosecondType};
use async_trait::async_trait;
use click::{Millis, Minute};
use datafusion::catalog::TableProvider;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::functions_aggregate::expr_fn::sum as sum_of;
use datafusion::prelude::{Expr, SessionContext, ident, lit};
use std::sync::Arc;

/// The tables of counts at one moment.
pub(super) struct DeltaView {
    pub session: SessionContext,
    /// All of [`Name::COUNTS`] and [`Name::CORRECTIONS`].
    pub tables: Vec<(Name, Arc<dyn TableProvider>)>,
    /// Corrections of a closing that has not ended are there already, and do not count yet.
    pub last: u64,
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
        let (clicks, wanted) = match Name::CORRECTIONS.contains(&name) {
            true => ("delta", wanted.and(ident("closing").lt_eq(lit(self.last as i64)))),
            false => ("clicks", wanted),
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
        let table = self.tables.iter().find(|(of, _)| *of == name).map(|(_, table)| table.clone());
        let table = table.ok_or_else(|| DataFusionError::Internal(format!("no view of table {}", name.as_str())))?;
        self.session.read_table(table)?.filter(wanted)?.select(columns)
    }

    async fn groups(&self, query: &ReportQuery, through: Minute, pending: &[Pending]) -> PlanResult<RecordBatch> {
        let (from, to) = (query.from.minute(), query.to.minute());
        // Tables of longer units than the query's cannot answer.
        let coarsest = match query.time {
            Some(report::TimeUnit::Minute) => 2,
            Some(report::TimeUnit::Hour) => 1,
            Some(report::TimeUnit::Day) | None => 0,
        };
        let mut pieces = Vec::new();
        cover(from, to.min(through), &Name::COUNTS[coarsest..], &mut pieces);
        // A correction may be about a minute that is not final yet.
        cover(from, to, &Name::CORRECTIONS[coarsest..], &mut pieces);
        // A range without minutes has no rows, in the columns of any table.
        let mut pieces = pieces.into_iter();
        let mut all = self.part(query, pieces.next().unwrap_or((Name::Minutes, from, from)))?;
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
