//! Claims that a version needs and an earlier one did not make durable: made again from final rows.
//!
//! A minute can be closed by rows that are durable while the claims that they rest on are not: those follow with the next
//! checkpoint, and a process that died before it would make them again from its log. A new version does not read those
//! records again, for it starts where minutes are final. So it takes over what was billed, and never judges it again.

use crate::claims::{Asked, Claims, VersionStart};
use crate::error::RunError;
use async_trait::async_trait;
use click::{LogId, Millis, Offset, Partition};
use std::ops::Range;

/// Offsets that are read at once.
const OFFSETS: Offset = 1 << 16;

/// A final row whose verdict is billable or late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalClaim {
    pub impression_id: String,
    pub offset: Offset,
    pub appended_at: Millis,
}

/// Where final rows are.
#[async_trait]
pub trait FinalRows: Send + Sync {
    /// Those of one partition that hold a claim, at these offsets, in their order.
    async fn claims(
        &self,
        log_id: LogId,
        partition: Partition,
        offsets: Range<Offset>,
    ) -> Result<Vec<FinalClaim>, String>;
}

/// Restores what is missing before a version's start. How many claims that were.
pub(crate) async fn restore(
    claims: &mut Claims,
    start: &VersionStart,
    rows: &dyn FinalRows,
) -> Result<usize, RunError> {
    let missing = claims.missing(start)?;
    if missing.is_empty() {
        return Ok(0);
    }
    let mut restored = 0;
    for (partition, offsets) in missing {
        let mut from = offsets.start;
        while from < offsets.end {
            let to = offsets.end.min(from.saturating_add(OFFSETS));
            let found = rows.claims(start.log_id, partition, from..to).await.map_err(RunError::FinalRows)?;
            let asked: Vec<Asked<'_>> = found
                .iter()
                .map(|row| Asked {
                    key: Some(row.impression_id.as_str()),
                    log_id: start.log_id,
                    partition,
                    offset: row.offset,
                    appended_at: row.appended_at,
                })
                .collect();
            restored += claims.claim(&asked)?.iter().filter(|answer| **answer == Some(1)).count();
            from = to;
        }
    }
    claims.persist(start.log_id, &start.positions)?;
    Ok(restored)
}
