//! From rows to records of a topic: one JSON object a row, as Arroyo writes it (NULLs explicit, times without zone).

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::WriterBuilder;
use datafusion::arrow::json::writer::LineDelimited;

/// The JSON of every row. All share one buffer.
pub fn encode(rows: &RecordBatch) -> Result<Vec<Bytes>, ArrowError> {
    let mut buffer = Vec::with_capacity(rows.num_rows() * 512);
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut buffer);
    writer.write(rows)?;
    writer.finish()?;
    drop(writer);
    let buffer = Bytes::from(buffer);
    let mut values = Vec::with_capacity(rows.num_rows());
    let mut start = 0;
    // JSON escapes line ends inside texts, so every one in the buffer ends a row.
    for (end, _) in buffer.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        values.push(buffer.slice(start..end));
        start = end + 1;
    }
    Ok(values)
}
