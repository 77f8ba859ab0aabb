//! From records of a topic to a batch of columns.

use crate::node::Node;
use click::{Offset, Partition};
use datafusion::arrow::array::{
    ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimestampNanosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::ReaderBuilder;
use datafusion::arrow::json::reader::Decoder;
use datafusion::common::Result;
use std::collections::BTreeMap;
use std::sync::Arc;
use tally_log::Record;

/// What the log knows of a record, as `METADATA FROM` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// Append time in milliseconds, `BIGINT`.
    Timestamp,
    /// `INT`.
    Partition,
    /// `BIGINT`.
    OffsetId,
}

impl Metadata {
    pub const NAMES: &str = "'timestamp' (BIGINT, milliseconds), 'partition' (INT), 'offset_id' (BIGINT)";

    pub fn of(name: &str, data_type: &DataType) -> Option<Metadata> {
        match (name, data_type) {
            ("timestamp", DataType::Int64) => Some(Metadata::Timestamp),
            ("partition", DataType::Int32) => Some(Metadata::Partition),
            ("offset_id", DataType::Int64) => Some(Metadata::OffsetId),
            _ => None,
        }
    }

    fn column(self, records: &[&Record]) -> ArrayRef {
        match self {
            Metadata::Timestamp => Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.appended_at.get()))),
            Metadata::Partition => Arc::new(Int32Array::from_iter_values(records.iter().map(|r| r.partition))),
            Metadata::OffsetId => Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.offset))),
        }
    }
}

/// `CREATE TABLE … WITH (type = 'source')`.
pub struct Source {
    pub topic: String,
    /// Fields of the JSON.
    fields: SchemaRef,
    metadata: Vec<Metadata>,
    /// Fields, then metadata.
    records: SchemaRef,
    /// From `records` to the table's columns, event time, and the watermark that the record raises its partition's to.
    columns: Node,
    /// The table's columns and the hidden ones.
    schema: SchemaRef,
    decoder: Option<Decoder>,
    /// The highest watermark of each partition so far, in nanoseconds. Never goes back.
    watermarks: BTreeMap<Partition, i64>,
}

/// A record that could not be decoded. It is left out, as Arroyo leaves it out with `bad_data = 'drop'`; the loader
/// finds the hole and keeps its bytes in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    pub partition: Partition,
    pub offset: Offset,
    pub error: String,
}

/// Records decoded at once at most.
pub const BATCH_RECORDS_MAX: usize = 8192;

impl Source {
    pub fn new(
        topic: String,
        fields: SchemaRef,
        metadata: Vec<Metadata>,
        records: SchemaRef,
        columns: Node,
        schema: SchemaRef,
    ) -> Self {
        Source { topic, fields, metadata, records, columns, schema, decoder: None, watermarks: BTreeMap::new() }
    }

    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The records as rows, in their order, and those that are none.
    pub fn decode(&mut self, records: &[Record]) -> Result<(RecordBatch, Vec<Undecodable>)> {
        let mut bad = Vec::new();
        let mut good: Vec<&Record> = records.iter().collect();
        let fields = match self.decode_all(&good) {
            Ok(batch) => batch,
            Err(_) => {
                // Rare: find out which records are to blame, each alone, and take the others.
                good.retain(|record| match self.decode_all(&[record]) {
                    Ok(_) => true,
                    Err(error) => {
                        let (partition, offset) = (record.partition, record.offset);
                        bad.push(Undecodable { partition, offset, error: error.to_string() });
                        false
                    }
                });
                self.decode_all(&good)?
            }
        };
        let mut columns = fields.columns().to_vec();
        columns.extend(self.metadata.iter().map(|metadata| metadata.column(&good)));
        let options = RecordBatchOptions::new().with_row_count(Some(good.len()));
        let batch = RecordBatch::try_new_with_options(self.records.clone(), columns, &options)?;
        let batch = self.columns.evaluate(&[batch])?;
        Ok((self.with_watermarks(batch, &good)?, bad))
    }

    /// Decodes records of which each must be exactly one JSON object.
    fn decode_all(&mut self, records: &[&Record]) -> Result<RecordBatch, ArrowError> {
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => ReaderBuilder::new(self.fields.clone()).with_batch_size(BATCH_RECORDS_MAX).build_decoder()?,
        };
        for (number, record) in records.iter().enumerate() {
            let read = decoder.decode(&record.value)?;
            let whole = decoder.len() == number + 1 && !decoder.has_partial_record() && read == record.value.len();
            if !whole {
                return Err(ArrowError::JsonError("a record must be one JSON object, whole and alone".into()));
            }
        }
        let batch = decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(self.fields.clone()));
        // Only a decoder that went through is clean enough to be used again.
        self.decoder = Some(decoder);
        Ok(batch)
    }

    /// Replaces the last column, the watermark that each record asks for, by the one its partition had *before* it.
    fn with_watermarks(&mut self, batch: RecordBatch, records: &[&Record]) -> Result<RecordBatch> {
        let (rest, asked) = batch.columns().split_at(batch.num_columns() - 1);
        let asked = asked[0].as_primitive::<TimestampNanosecondType>();
        let before: TimestampNanosecondArray = records
            .iter()
            .zip(asked.values())
            .map(|(record, asked)| {
                let held = self.watermarks.get(&record.partition).copied();
                self.watermarks.insert(record.partition, held.map_or(*asked, |held| held.max(*asked)));
                held
            })
            .collect();
        let mut columns = rest.to_vec();
        columns.push(Arc::new(before));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// The watermark of the whole topic: the lowest of its partitions', none before every one of them has spoken.
    pub fn watermark(&self, partitions: Partition) -> Option<i64> {
        (0..partitions).map(|p| self.watermarks.get(&p).copied()).min().flatten()
    }

    pub fn watermarks(&self) -> &BTreeMap<Partition, i64> {
        &self.watermarks
    }

    pub fn restore_watermarks(&mut self, watermarks: BTreeMap<Partition, i64>) {
        self.watermarks = watermarks;
    }
}
