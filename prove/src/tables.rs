//! The warehouse's tables, read from their files as anybody can: Delta's log names the files, Parquet holds the rows. No code
//! of the product is asked, so that what it counts can be compared with what it keeps.

use crate::judge::{Cell, Cells};
use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use click::{Millis, Minute};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A row of `raw_clicks`, as far as a judge needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Log, partition and offset.
    pub position: (String, i64, i64),
    pub impression: String,
    pub click: String,
    pub verdict: String,
    /// The earlier of click and record tells the minute.
    pub cell: Cell,
}

impl Row {
    /// Whether it is billed, in its minute or as a correction of it.
    pub fn is_billed(&self) -> bool {
        matches!(self.verdict.as_str(), "billable" | "late")
    }
}

/// The clicks that a site's spool kept aside, and that were put away when they needed nothing more.
///
/// # Errors
/// If they cannot be read.
pub fn settled(data: &Path) -> Result<BTreeSet<String>> {
    let folder = data.join("spool/aside/settled");
    let mut clicks = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        for line in std::fs::read_to_string(&path)?.lines() {
            let json: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let click = json["kept"]["event"]["clickId"].as_str();
            clicks.insert(click.with_context(|| format!("{} has no click", path.display()))?.to_string());
        }
    }
    Ok(clicks)
}

/// The tables of a site, below its data folder.
pub struct Tables(PathBuf);

impl Tables {
    pub fn of(data: &Path) -> Tables {
        Tables(data.join("warehouse"))
    }

    /// Minutes before `through` as they were first closed.
    ///
    /// # Errors
    /// If they cannot be read, or a cell is there twice.
    pub fn closed(&self, through: Minute) -> Result<Cells> {
        let mut cells = Cells::new();
        for batch in self.batches("clicks_by_minute")? {
            for (cell, clicks) in counted(&batch, "clicks")? {
                if cell.0 < through {
                    ensure!(cells.insert(cell.clone(), clicks).is_none(), "a minute has a row twice: {cell:?}");
                }
            }
        }
        Ok(cells)
    }

    /// What was added to minutes after they closed, and in how many rows.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn corrections(&self) -> Result<(Cells, u64)> {
        let (mut cells, mut rows) = (Cells::new(), 0);
        for batch in self.batches("click_corrections")? {
            for (cell, delta) in counted(&batch, "delta")? {
                *cells.entry(cell).or_default() += delta;
                rows += 1;
            }
        }
        Ok((cells, rows))
    }

    /// Every click of the log that is final: each position once, and none left out.
    ///
    /// # Errors
    /// If they cannot be read, or a position is there twice or is missing.
    pub fn raw_clicks(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut offsets: HashMap<(String, i64), BTreeSet<i64>> = HashMap::new();
        for batch in self.batches("raw_clicks")? {
            let text = |name: &str| texts(&batch, name);
            let (log, verdict) = (text("log_id")?, text("verdict")?);
            let (click, impression) = (text("click_id")?, text("impression_id")?);
            let [partition, offset] = [longs(&batch, "partition")?, longs(&batch, "offset")?];
            let [timestamp, appended_at] = [times(&batch, "timestamp")?, times(&batch, "appended_at")?];
            let dimensions = dimensions(&batch)?;
            for at in 0..batch.num_rows() {
                let position = (log.value(at).to_string(), partition.value(at), offset.value(at));
                let of = offsets.entry((position.0.clone(), position.1)).or_default();
                ensure!(of.insert(position.2), "{position:?} has two raw rows");
                // A heartbeat.
                if impression.is_null(at) {
                    continue;
                }
                let clicked = timestamp.value(at).min(appended_at.value(at));
                let [ad, campaign, publisher, country, device] =
                    dimensions.each_ref().map(|of| of.value(at).to_string());
                rows.push(Row {
                    position,
                    impression: impression.value(at).into(),
                    click: click.value(at).into(),
                    verdict: verdict.value(at).into(),
                    cell: (Millis::new(clicked).minute(), ad, campaign, publisher, country, device),
                });
            }
        }
        for (partition, offsets) in offsets {
            let (first, last) = (offsets.first().copied().unwrap_or(0), offsets.last().copied().unwrap_or(-1));
            let held = i64::try_from(offsets.len())?;
            ensure!(last - first + 1 == held, "{partition:?} has {held} raw rows from offset {first} to {last}");
        }
        Ok(rows)
    }

    fn batches(&self, table: &str) -> Result<Vec<RecordBatch>> {
        let dir = self.0.join(table);
        let mut batches = Vec::new();
        for path in files(&dir)? {
            let read = read(&path).with_context(|| path.display().to_string())?;
            batches.extend(read);
        }
        Ok(batches)
    }
}

fn read(path: &Path) -> Result<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()?;
    Ok(reader.collect::<std::result::Result<_, _>>()?)
}

/// The files that are part of a table by all entries of its log.
fn files(table: &Path) -> Result<BTreeSet<PathBuf>> {
    let log = table.join("_delta_log");
    let mut files = BTreeSet::new();
    for version in 0.. {
        let path = log.join(format!("{version:020}.json"));
        if !path.exists() {
            break;
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for line in text.lines() {
            let action: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let named = |kind: &str| action[kind]["path"].as_str().map(|file| table.join(file));
            if let Some(file) = named("add") {
                files.insert(file);
            }
            if let Some(file) = named("remove") {
                files.remove(&file);
            }
        }
    }
    Ok(files)
}

fn counted(batch: &RecordBatch, clicks: &str) -> Result<Vec<(Cell, i64)>> {
    let (minute, clicks, dimensions) = (times(batch, "minute")?, longs(batch, clicks)?, dimensions(batch)?);
    let cell = |at: usize| {
        let [ad, campaign, publisher, country, device] = dimensions.each_ref().map(|of| of.value(at).to_string());
        ((Millis::new(minute.value(at)).minute(), ad, campaign, publisher, country, device), clicks.value(at))
    };
    Ok((0..batch.num_rows()).map(cell).collect())
}

fn dimensions(batch: &RecordBatch) -> Result<[StringArray; 5]> {
    let [ad, campaign, publisher, country, device] =
        ["ad_id", "campaign_id", "publisher_id", "country", "device"].map(|name| texts(batch, name));
    Ok([ad?, campaign?, publisher?, country?, device?])
}

fn column(batch: &RecordBatch, name: &str, kinds: &[DataType]) -> Result<arrow::array::ArrayRef> {
    let Some(column) = batch.column_by_name(name) else { bail!("no column {name}") };
    let mut column = column.clone();
    for kind in kinds {
        column = cast(&column, kind)?;
    }
    Ok(column)
}

fn texts(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    Ok(column(batch, name, &[DataType::Utf8])?.as_string::<i32>().clone())
}

fn longs(batch: &RecordBatch, name: &str) -> Result<Int64Array> {
    Ok(column(batch, name, &[DataType::Int64])?.as_primitive::<Int64Type>().clone())
}

/// In milliseconds.
fn times(batch: &RecordBatch, name: &str) -> Result<Int64Array> {
    let milliseconds = DataType::Timestamp(TimeUnit::Millisecond, None);
    Ok(column(batch, name, &[milliseconds, DataType::Int64])?.as_primitive::<Int64Type>().clone())
}
