//! Raw rows that come again after they became final: they say the same, or are refused.

use super::{Loader, Run};
use crate::backend::Claimant;
use crate::error::Result;
use click::{Dimensions, Minute, Offset, Partition};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

/// Offsets whose claims are asked for at once. Rows that come again come in a row: one answer serves many of them.
const OFFSETS: Offset = 1 << 16;

/// A row whose position is in the warehouse.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub partition: Partition,
    pub offset: Offset,
    /// What it counts in, if it says that its click claims the impression and so is billed.
    pub counts: Option<Counts>,
}

/// A digest of a minute and dimensions: of many thousand final rows, little more than this is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts(u64);

impl Counts {
    pub fn new(minute: Minute, dimensions: &Dimensions) -> Counts {
        let mut hasher = DefaultHasher::new();
        (minute, dimensions).hash(&mut hasher);
        Counts(hasher.finish())
    }
}

/// The offsets of one span whose clicks claim their impressions, as it is final.
#[derive(Debug)]
pub(super) struct FinalClaims {
    partition: Partition,
    offsets: Range<Offset>,
    claims: HashMap<Offset, Counts>,
}

impl Loader {
    /// Counts rows that came again. Whether a click claims its impression, and so is billed, and what it counts in, is what
    /// money depends on: a row that says otherwise than the final one is refused.
    pub(super) async fn take_again(&mut self, rows: &[Again]) -> Result<()> {
        let (mut replayed, mut refused) = (0, Vec::new());
        for row in rows {
            match self.counts(row.partition, row.offset).await? == row.counts {
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

    /// What the click at a position that is final counts in, if it claims its impression.
    async fn counts(&mut self, partition: Partition, offset: Offset) -> Result<Option<Counts>> {
        let Run { last, deployment, final_claims, .. } = &mut self.run;
        let known = final_claims.iter().position(|known| known.partition == partition);
        if let Some(known) = known.and_then(|at| final_claims.get(at)).filter(|known| known.offsets.contains(&offset)) {
            return Ok(known.claims.get(&offset).copied());
        }
        let start = offset - offset.rem_euclid(OFFSETS);
        let offsets = start..last.positions.get(partition).min(start + OFFSETS);
        let backend = &self.warehouse.0.backend;
        let found = backend.claimants(deployment.log_id, partition, offsets.clone()).await?;
        let of = |row: Claimant| (row.position.offset, Counts::new(row.minute, &row.dimensions));
        let claims: HashMap<Offset, Counts> = found.into_iter().map(of).collect();
        let claimed = claims.get(&offset).copied();
        if let Some(known) = known {
            final_claims.swap_remove(known);
        }
        final_claims.push(FinalClaims { partition, offsets, claims });
        Ok(claimed)
    }
}
