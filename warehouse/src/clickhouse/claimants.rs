//! The final raw rows that hold the claim of their impression, for whoever has to make lost claims again.

use super::query::{CLICKED_AT, dimensions, texts};
use super::server::Server;
use super::{ClickHouse, time};
use crate::backend::Claimant;
use crate::error::{Error, Result};
use click::{LogId, Millis, Offset, Offsets, Partition, Position};
use clickhouse::Row;
use futures::stream::{self, Stream, TryStreamExt};
use serde::Deserialize;
use std::ops::Range;

/// Offsets that one statement looks at. It bounds what is held in memory, and a statement's time.
const OFFSETS: Offset = 1 << 16;

#[derive(Row, Deserialize)]
struct ClaimantRow {
    impression_id: String,
    offset: i64,
    appended_ms: i64,
    version: i64,
    clicked_ms: i64,
    texts: Vec<String>,
}

/// Where the reading goes on.
struct Next {
    partition: Partition,
    offset: Offset,
    end: Offset,
}

impl ClickHouse {
    /// The final rows of one log, before these positions, that were appended at or after `from` and whose verdict is
    /// billable or late; by partition, in the order of their offsets. A partition that is not named has none.
    ///
    /// # Errors
    /// If the server does not answer a statement. What was not read then is missing: the stream has to be read anew.
    pub fn claimants(
        &self,
        log_id: LogId,
        before: &Offsets,
        from: Millis,
    ) -> impl Stream<Item = Result<Claimant>> + Send + use<> {
        let server = self.server.clone();
        let mut partitions: Vec<(Partition, Offset)> = before.iter().collect();
        partitions.reverse();
        let state = (server, partitions, None::<Next>);
        stream::try_unfold(state, move |(server, mut partitions, next)| async move {
            let next = match next {
                Some(next) => next,
                None => {
                    let Some((partition, end)) = partitions.pop() else { return Ok(None) };
                    let first = format!(
                        "SELECT toUInt64(if(count() = 0, {end}, min(offset))) AS answer FROM raw_clicks \
                         WHERE log_id = ? AND partition = {partition} AND offset < {end} AND appended_at >= {}",
                        time(from)
                    );
                    let first = server.number(&first, &[log_id.to_string()]).await?;
                    Next { partition, offset: Offset::try_from(first).unwrap_or(end), end }
                }
            };
            let Next { partition, offset, end } = next;
            let to = end.min(offset.saturating_add(OFFSETS));
            let rows = match offset < to {
                true => claimants(&server, log_id, partition, offset..to, Some(from)).await?,
                false => Vec::new(),
            };
            let rows = stream::iter(rows.into_iter().map(Ok::<_, Error>));
            let next = (to < end).then_some(Next { partition, offset: to, end });
            Ok::<_, Error>(Some((rows, (server, partitions, next))))
        })
        .try_flatten()
    }
}

/// Those of one partition at these offsets, that were appended at or after `from` if it is given.
pub(super) async fn claimants(
    server: &Server,
    log_id: LogId,
    partition: Partition,
    offsets: Range<Offset>,
    from: Option<Millis>,
) -> Result<Vec<Claimant>> {
    let (start, end) = (offsets.start, offsets.end);
    let appended = from.map_or(String::new(), |from| format!("AND appended_at >= {}", time(from)));
    let statement = format!(
        "SELECT ifNull(impression_id, '') AS impression_id, offset, toUnixTimestamp64Milli(appended_at) AS appended_ms, version, \
         toUnixTimestamp64Milli({CLICKED_AT}) AS clicked_ms, {} AS texts FROM raw_clicks FINAL \
         WHERE log_id = ? AND partition = {partition} AND offset >= {start} AND offset < {end} {appended} \
         AND verdict IN ('billable', 'late') AND closing NOT IN (SELECT number FROM abandoned_closings) ORDER BY offset",
        texts()
    );
    let rows = server.rows::<ClaimantRow>(&statement, &[log_id.to_string()]).await?;
    let claimant = |row: ClaimantRow| {
        Ok(Claimant {
            impression_id: row.impression_id,
            position: Position { log_id, partition, offset: row.offset },
            appended_at: Millis::new(row.appended_ms),
            version: row.version,
            minute: Millis::new(row.clicked_ms).minute(),
            dimensions: dimensions(row.texts).map_err(|why| server.error(&statement, why))?,
        })
    };
    rows.into_iter().map(claimant).collect()
}
