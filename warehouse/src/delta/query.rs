//! Reads the tables, with DataFusion. Filters and ranges are expressions, never text.

use super::Table;
use super::store::DurableStore;
use super::tables::{Name, micros};
use crate::backend::{Billable, Claimant, Known};
use crate::error::Result;
use crate::rows::Count;
use crate::sequence::{Entry, Kind};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use click::{Dimensions, LogId, Millis, Minute, Offset, Offsets, Partition, Position};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::object_store::ObjectStoreUrl;
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
    let session = SessionContext::new_with_config(config);
    // DataFusion's own store for local files compares no checksums.
    session.register_object_store(ObjectStoreUrl::local_filesystem().as_ref(), Arc::new(DurableStore::default()));
    session
}

/// Reads a table as it is now, whatever is written later.
pub(super) async fn provider(table: &Table) -> Result<Arc<dyn TableProvider>> {
    table.delta.table_provider().await.map_err(|error| table.failed(error))
}

fn time(at: Millis) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros(at)), Some("UTC".into())))
}

pub(super) fn between(column: Expr, from: Millis, to: Millis) -> Expr {
    column.clone().gt_eq(time(from)).and(column.lt(time(to)))
}

/// The start of the stretch of so many minutes that contains the time, counted from 1970, before which nobody clicked.
pub(super) fn start_of(minutes: i64, column: Expr) -> Expr {
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
        totals: text("totals")?,
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

/// Sums up the corrections of one closing.
pub(super) async fn sum_corrections(
    session: &SessionContext,
    source: &Table,
    target: Name,
    closing: u64,
) -> Result<SendableRecordBatchStream> {
    let failed = |error: DataFusionError| source.failed(error);
    let start = start_of(target.minutes(), ident(source.name.time_column()));
    let closing = lit(closing as i64);
    let plan = |frame: DataFrame| -> PlanResult<DataFrame> {
        let mut groups = vec![start.alias(target.time_column())];
        groups.extend(Dimensions::NAMES.map(ident));
        let summed = frame
            .filter(ident("closing").eq(closing.clone()))?
            .aggregate(groups, vec![sum_of(ident("delta")).alias("delta")])?
            .with_column("closing", closing)?;
        summed.sort_by(["campaign_id", "ad_id", target.time_column()].map(ident).to_vec())
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

/// Raw rows that hold a claim.
pub(super) async fn claimants(
    session: &SessionContext,
    raw_clicks: Arc<dyn TableProvider>,
    log_id: LogId,
    partition: Partition,
    offsets: Range<Offset>,
) -> PlanResult<Vec<Claimant>> {
    let wanted = ident("log_id")
        .eq(lit(log_id.to_string()))
        .and(ident("partition").eq(lit(partition)))
        .and(ident("offset").gt_eq(lit(offsets.start)).and(ident("offset").lt(lit(offsets.end))))
        .and(ident("verdict").eq(lit("billable")).or(ident("verdict").eq(lit("late"))));
    let mut columns = vec![ident("impression_id"), ident("offset"), ident("appended_at"), ident("version")];
    columns.push(clicked_at());
    columns.extend(Dimensions::NAMES.map(ident));
    let found = session
        .read_table(raw_clicks)?
        .filter(wanted)?
        .select(columns)?
        .sort_by(vec![ident("offset")])?
        .collect()
        .await?;
    let mut rows = Vec::new();
    for batch in found {
        let impressions = cast(batch.column(0), &DataType::Utf8)?;
        let impressions = impressions.as_string::<i32>();
        let offsets = batch.column(1).as_primitive::<Int64Type>();
        let times = batch.column(2).as_primitive::<TimestampMicrosecondType>();
        let versions = batch.column(3).as_primitive::<Int64Type>();
        let clicked = batch.column(4).as_primitive::<TimestampMicrosecondType>();
        let dimensions = dimensions(&batch.columns()[5..])?;
        rows.extend(dimensions.enumerate().map(|(row, dimensions)| Claimant {
            impression_id: impressions.value(row).into(),
            position: Position { log_id, partition, offset: offsets.value(row) },
            appended_at: Millis::new(times.value(row) / 1000),
            version: versions.value(row),
            minute: Millis::new(clicked.value(row) / 1000).minute(),
            dimensions,
        }));
    }
    Ok(rows)
}

/// What the raw rows say of a click.
pub(super) async fn known(
    session: &SessionContext,
    raw_clicks: Arc<dyn TableProvider>,
    click_id: &str,
    impression_id: &str,
) -> PlanResult<Known> {
    let is_billed = ident("verdict").eq(lit("billable")).or(ident("verdict").eq(lit("late")));
    let records = [
        (ident("click_id").eq(lit(click_id)), Known::Recorded),
        (ident("impression_id").eq(lit(impression_id)).and(is_billed), Known::Billed),
    ];
    for (wanted, known) in records {
        if session.read_table(raw_clicks.clone())?.filter(wanted)?.limit(0, Some(1))?.count().await? > 0 {
            return Ok(known);
        }
    }
    Ok(Known::Unknown)
}

/// Counts billable raw rows.
pub(super) async fn billable(
    session: &SessionContext,
    raw_clicks: Arc<dyn TableProvider>,
    minutes: Range<Minute>,
    appended_before: Millis,
    before: &Offsets,
) -> PlanResult<Vec<Billable>> {
    let clicked_at = clicked_at();
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
        let dimensions = dimensions(&batch.columns()[2..7])?;
        let clicks = batch.column(7).as_primitive::<Int64Type>();
        for (row, dimensions) in dimensions.enumerate() {
            let minute = Millis::new(minutes.value(row) / 1000).minute();
            let count = Count { minute, dimensions, clicks: clicks.value(row) };
            rows.push(Billable { version: versions.value(row), count });
        }
    }
    Ok(rows)
}

/// `LEAST(timestamp, appended_at)`, as the pipelines have it.
fn clicked_at() -> Expr {
    least(vec![ident("timestamp"), ident("appended_at")])
}

/// The dimensions of raw rows, of their five columns. NULL is the empty text here too, as it is where rows come in.
fn dimensions(columns: &[ArrayRef]) -> PlanResult<impl Iterator<Item = Dimensions>> {
    let texts: Vec<ArrayRef> =
        columns.iter().map(|column| cast(column, &DataType::Utf8)).collect::<arrow::error::Result<_>>()?;
    let rows = columns.first().map_or(0, |column| column.len());
    Ok((0..rows).map(move |row| {
        let text = |column: usize| -> Arc<str> {
            let texts = texts[column].as_string::<i32>();
            if texts.is_null(row) { "".into() } else { texts.value(row).into() }
        };
        Dimensions { ad_id: text(0), campaign_id: text(1), publisher_id: text(2), country: text(3), device: text(4) }
    }))
}
