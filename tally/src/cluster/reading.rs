//! Reads a topic to an end.

use click::Offsets;
use std::time::Duration;
use tally_log::{Consumer, LogError, Record};

/// Records of one poll, for who has no bound of its own.
pub const RECORDS_MAX: usize = 8_192;
/// How long a poll waits, and how many in a row may be empty though the topic goes on.
const POLL: Duration = Duration::from_millis(500);
const EMPTY_POLLS_MAX: u32 = 60;

/// The next records, at most `records_max`, and some after the ends perhaps; `None` when the consumer has come to all of them.
///
/// # Errors
/// If the log fails, or nothing comes for half a minute though there is more.
pub async fn next(
    consumer: &mut dyn Consumer,
    topic: &str,
    ends: &Offsets,
    records_max: usize,
) -> Result<Option<Vec<Record>>, LogError> {
    for _ in 0..EMPTY_POLLS_MAX {
        let next = consumer.next();
        if ends.iter().all(|(partition, end)| next.get(partition) >= end) {
            return Ok(None);
        }
        let records = consumer.poll(records_max, POLL).await?;
        if !records.is_empty() {
            return Ok(Some(records));
        }
    }
    let (topic, next, ends) = (topic.to_string(), consumer.next(), ends.clone());
    Err(LogError::Silent { topic, next, ends, waited: POLL * EMPTY_POLLS_MAX })
}
