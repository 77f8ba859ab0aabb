//! Raw rows that come again after they became final: they say the same, or are refused.

use super::{Loader, Run};
use crate::error::Result;
use click::{Offset, Partition};
use std::collections::HashSet;
use std::ops::Range;

/// Offsets whose claims are asked for at once. Rows that come again come in a row: one answer serves many of them.
const OFFSETS: Offset = 1 << 16;

/// A row whose position is in the warehouse, and whether it says that its click claims the impression.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub partition: Partition,
    pub offset: Offset,
    pub claims: bool,
}

/// The offsets of one span whose clicks claim their impressions, as it is final.
#[derive(Debug)]
pub(super) struct FinalClaims {
    partition: Partition,
    offsets: Range<Offset>,
    claims: HashSet<Offset>,
}

impl Loader {
    /// Counts rows that came again. Whether a click claims its impression, and so is billed, is what can differ: all else
    /// is copied from the log by position.
    pub(super) async fn take_again(&mut self, rows: &[Again]) -> Result<()> {
        let (mut replayed, mut refused) = (0, Vec::new());
        for row in rows {
            match self.claims(row.partition, row.offset).await? == row.claims {
                true => replayed += 1,
                false => refused.push(row),
            }
        }
        if let Some(row) = refused.first() {
            tracing::warn!(rows = refused.len(), first = ?row, "refused raw rows that differ from what is final");
        }
        let mut status = self.warehouse.0.status();
        status.replayed += replayed;
        status.refused += refused.len() as u64;
        Ok(())
    }

    /// Whether the click at a position that is final claims its impression.
    async fn claims(&mut self, partition: Partition, offset: Offset) -> Result<bool> {
        let Run { last, deployment, final_claims, .. } = &mut self.run;
        let known = final_claims.iter().position(|known| known.partition == partition);
        if let Some(known) = known.and_then(|at| final_claims.get(at)).filter(|known| known.offsets.contains(&offset)) {
            return Ok(known.claims.contains(&offset));
        }
        let start = offset - offset.rem_euclid(OFFSETS);
        let offsets = start..last.positions.get(partition).min(start + OFFSETS);
        let backend = &self.warehouse.0.backend;
        let found = backend.claimants(deployment.log_id, partition, offsets.clone()).await?;
        let claims: HashSet<Offset> = found.into_iter().map(|claimant| claimant.position.offset).collect();
        let claimed = claims.contains(&offset);
        if let Some(known) = known {
            final_claims.swap_remove(known);
        }
        final_claims.push(FinalClaims { partition, offsets, claims });
        Ok(claimed)
    }
}
