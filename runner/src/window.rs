//! Tumbling windows: rows are counted by key in DataFusion's accumulators and come out once, when the watermark has
//! passed the end of their window.

use crate::node::Node;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StructArray, TimestampNanosecondArray,
    UInt32Array,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options, concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimestampNanosecondType};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One aggregate of a window: which columns of the window's input it takes.
pub struct Aggregate {
    pub function: Arc<AggregateFunctionExpr>,
    pub arguments: Vec<usize>,
    pub filter: Option<usize>,
}

/// `GROUP BY tumble(INTERVAL '…'), keys`, and its open windows.
pub struct Window {
    /// Makes the columns that this window groups by and aggregates, and the hidden ones at the end.
    pub input: Node,
    /// Number of key columns; they are the input's first.
    pub keys: usize,
    /// Where the window's own column stands among the grouping columns of the output.
    pub window_column: usize,
    pub aggregates: Vec<Aggregate>,
    /// Of the rows that come out: grouping columns, then aggregates.
    pub output: SchemaRef,
    pub width_ns: i64,
    open: BTreeMap<i64, Groups>,
    /// Rows that came after their window's end had been passed by the watermark of their own partition.
    late_rows: u64,
}

/// Keys and accumulators of one open window.
struct Groups {
    keys: Option<Box<dyn GroupValues>>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    groups: usize,
}

impl Window {
    pub fn new(
        input: Node,
        keys: usize,
        window_column: usize,
        aggregates: Vec<Aggregate>,
        output: SchemaRef,
        width_ns: i64,
    ) -> Result<Self> {
        let window =
            Window { input, keys, window_column, aggregates, output, width_ns, open: BTreeMap::new(), late_rows: 0 };
        // What cannot be counted is to be known before the first record.
        window.new_groups()?;
        Ok(window)
    }

    /// How many rows came too late for their window so far.
    pub fn late_rows(&self) -> u64 {
        self.late_rows
    }

    fn key_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.input.schema().fields()[..self.keys].to_vec()))
    }

    /// Counts the rows of the input. A row is late when the watermark that *its own partition* had before it has
    /// passed the end of its window: that depends on the log alone, not on how records are batched or how
    /// partitions are interleaved, and is never more lenient than the watermark that closes windows.
    pub fn absorb(&mut self, outputs: &[RecordBatch]) -> Result<()> {
        let batch = self.input.evaluate(outputs)?;
        let columns = batch.num_columns();
        let times = batch.column(columns - 2).as_primitive::<TimestampNanosecondType>();
        let watermarks = batch.column(columns - 1).as_primitive::<TimestampNanosecondType>();
        let mut rows: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let time = times.value(row);
            // A window that reaches beyond what a timestamp can hold is over before it begins.
            let start = time.checked_sub(time.rem_euclid(self.width_ns));
            let window = start.and_then(|start| Some((start, start.checked_add(self.width_ns)?)));
            match window {
                Some((start, end)) if watermarks.is_null(row) || end > watermarks.value(row) => {
                    rows.entry(start).or_default().push(row as u32);
                }
                _ => self.late_rows += 1,
            }
        }
        for (start, rows) in rows {
            let part = match rows.len() == batch.num_rows() {
                true => batch.clone(),
                false => take_record_batch(&batch, &UInt32Array::from(rows))?,
            };
            self.add(start, &part)?;
        }
        Ok(())
    }

    fn add(&mut self, start: i64, rows: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&start) {
            let groups = self.new_groups()?;
            self.open.insert(start, groups);
        }
        let Some(groups) = self.open.get_mut(&start) else { return internal_err!("the window was just opened") };
        let indices = groups.intern(&rows.columns()[..self.keys], rows.num_rows())?;
        for (aggregate, accumulator) in self.aggregates.iter().zip(&mut groups.accumulators) {
            let arguments: Vec<ArrayRef> = aggregate.arguments.iter().map(|i| rows.column(*i).clone()).collect();
            let filter: Option<&BooleanArray> = aggregate.filter.map(|i| rows.column(i).as_boolean());
            accumulator.update_batch(&arguments, &indices, filter, groups.groups)?;
        }
        Ok(())
    }

    fn new_groups(&self) -> Result<Groups> {
        let keys = match self.keys {
            0 => None,
            _ => Some(new_group_values(self.key_schema(), &GroupOrdering::None)?),
        };
        let accumulators: Result<Vec<Box<dyn GroupsAccumulator>>> = self
            .aggregates
            .iter()
            .map(|aggregate| {
                let function = aggregate.function.clone();
                match function.groups_accumulator_supported() {
                    true => function.create_groups_accumulator(),
                    false => Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())) as _),
                }
            })
            .collect();
        Ok(Groups { keys, accumulators: accumulators?, groups: 0 })
    }

    /// The rows of every window whose end the watermark has reached, oldest window first.
    pub fn close(&mut self, watermark_ns: Option<i64>) -> Result<RecordBatch> {
        let mut batches = Vec::new();
        while let Some(entry) = self.open.first_entry() {
            let start = *entry.key();
            if watermark_ns.is_none_or(|watermark| start + self.width_ns > watermark) {
                break;
            }
            let mut groups = entry.remove();
            let rows = groups.groups;
            let mut columns = groups.emit_keys()?;
            columns.insert(self.window_column, window_column(start, start + self.width_ns, rows));
            for accumulator in &mut groups.accumulators {
                let column = accumulator.evaluate(EmitTo::All)?;
                // A sum is wider inside than its column is: one that does not fit stops the pipeline.
                let exact = CastOptions { safe: false, ..CastOptions::default() };
                columns.push(cast_with_options(&column, self.output.field(columns.len()).data_type(), &exact)?);
            }
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            batches.push(RecordBatch::try_new_with_options(self.output.clone(), columns, &options)?);
        }
        Ok(concat_batches(&self.output, &batches)?)
    }

    /// The open windows as rows: start, keys, states of the accumulators.
    pub fn snapshot(&mut self) -> Result<RecordBatch> {
        let schema = self.state_schema()?;
        let mut batches = Vec::new();
        for start in self.open.keys().copied().collect::<Vec<_>>() {
            // Reading the states of accumulators empties them, so the window is put together again from the rows.
            let Some(mut groups) = self.open.remove(&start) else { continue };
            let mut columns = vec![Arc::new(TimestampNanosecondArray::from_value(start, groups.groups)) as ArrayRef];
            columns.extend(groups.emit_keys()?);
            for accumulator in &mut groups.accumulators {
                columns.extend(accumulator.state(EmitTo::All)?);
            }
            let batch = RecordBatch::try_new(schema.clone(), columns)?;
            self.restore(&batch)?;
            batches.push(batch);
        }
        Ok(concat_batches(&schema, &batches)?)
    }

    /// Takes rows of [`Self::snapshot`] into the open windows.
    pub fn restore(&mut self, states: &RecordBatch) -> Result<()> {
        let starts = states.column(0).as_primitive::<TimestampNanosecondType>();
        let mut from = 0;
        while from < states.num_rows() {
            let start = starts.value(from);
            let rows = starts.values()[from..].iter().take_while(|s| **s == start).count();
            let part = states.slice(from, rows);
            let mut groups = self.new_groups()?;
            let indices = groups.intern(&part.columns()[1..=self.keys], rows)?;
            let mut column = 1 + self.keys;
            for (aggregate, accumulator) in self.aggregates.iter().zip(&mut groups.accumulators) {
                let width = aggregate.function.state_fields()?.len();
                accumulator.merge_batch(&part.columns()[column..column + width], &indices, groups.groups)?;
                column += width;
            }
            self.open.insert(start, groups);
            from += rows;
        }
        Ok(())
    }

    /// Schema of [`Self::snapshot`]: of equal pipelines it is equal.
    pub fn state_schema(&self) -> Result<SchemaRef> {
        let time = DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Nanosecond, None);
        let mut fields = vec![Arc::new(Field::new("start", time, false))];
        fields.extend(self.key_schema().fields().iter().cloned());
        for (number, aggregate) in self.aggregates.iter().enumerate() {
            for field in aggregate.function.state_fields()? {
                // States may be NULL whatever the function says of its results.
                let name = format!("{number}:{}", field.name());
                fields.push(Arc::new(Field::new(name, field.data_type().clone(), true)));
            }
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

impl Groups {
    fn intern(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<usize>> {
        let mut indices = Vec::with_capacity(rows);
        match &mut self.keys {
            Some(values) => {
                values.intern(keys, &mut indices)?;
                self.groups = values.len();
            }
            None => {
                indices.resize(rows, 0);
                self.groups = 1;
            }
        }
        Ok(indices)
    }

    fn emit_keys(&mut self) -> Result<Vec<ArrayRef>> {
        self.keys.as_mut().map_or(Ok(Vec::new()), |keys| keys.emit(EmitTo::All))
    }
}

fn window_column(start: i64, end: i64, rows: usize) -> ArrayRef {
    let DataType::Struct(fields) = crate::functions::window_type() else {
        // `window_type` is a struct by its definition.
        return Arc::new(StructArray::new_empty_fields(rows, None));
    };
    let fields: Fields = fields;
    let starts = Arc::new(TimestampNanosecondArray::from_value(start, rows)) as ArrayRef;
    let ends = Arc::new(TimestampNanosecondArray::from_value(end, rows)) as ArrayRef;
    Arc::new(StructArray::new(fields, vec![starts, ends], None))
}
