//! Reads a topic to an end.

use anyhow::{Result, bail};
use click::Offsets;
use std::time::Duration;
use tally_log::{Consumer, Record};

/// Records of one poll, how long a poll waits, and how many in a row may be empty though the topic goes on.
const RECORDS_MAX: usize = 8_192;
const POLL: Duration = Duration::from_millis(500);
const EMPTY_POLLS_MAX: u32 = 60;

/// The next records, and some after the ends perhaps; `None` when the consumer has come to all of them.
///
/// # Errors
/// If the log fails, or nothing comes for half a minute though there is more.
pub async fn next(consumer: &mut dyn Consumer, topic: &str, ends: &Offsets) -> Result<Option<Vec<Record>>> {
    for _ in 0..EMPTY_POLLS_MAX {
        let next = consumer.next();
        if ends.iter().all(|(partition, end)| next.get(partition) >= end) {
            return Ok(None);
        }
        let records = consumer.poll(RECORDS_MAX, POLL).await?;
        if !records.is_empty() {
            return Ok(Some(records));
        }
    }
    let waited = POLL * EMPTY_POLLS_MAX;
    bail!("topic {topic} is read to {:?} and ends at {ends:?}, and nothing came for {waited:?}", consumer.next())
}
