//! What a row changes.

use super::again::{Again, Counts};
use super::{DIMENSIONS_MAX, EngineMinute, FINAL_MINUTES, Loader, Run, Status};
use crate::error::Result;
use crate::live::{Interner, State, add};
use crate::open::{Inserted, Row, Slot};
use crate::rows::{CountedRow, EngineRow};
use click::{Dimensions, Minute, Verdict};
use std::collections::HashMap;
use tally_log::Record;

/// Verdicts that the status tells apart. They are the analyst's to name; more than these would be a mistake.
const VERDICTS_MAX: usize = 64;

impl Loader {
    /// Counts raw rows. A report sees all of them at once, or none.
    pub(super) async fn take_raw(&mut self, records: &[Record]) -> Result<()> {
        // Parsing is most of the work, and needs no lock.
        let rows: Vec<(&Record, serde_json::Result<CountedRow<'_>>)> =
            records.iter().map(|record| (record, serde_json::from_slice(&record.value))).collect();
        let lateness_ms = self.warehouse.0.settings.lateness.lateness_ms;
        let mut again = Vec::new();
        {
            let mut live = self.warehouse.0.live.write();
            let mut status = self.warehouse.0.status();
            for (record, row) in rows {
                match row {
                    Ok(row) => again.extend(self.run.take_row(record, &row, lateness_ms, &mut live, &mut status)),
                    Err(_) => status.unreadable += 1,
                }
            }
            for (partition, open) in &mut self.run.partitions {
                if let Err(error) = open.advance() {
                    self.run.broken = Some(format!("partition {partition}: {error}"));
                }
            }
        }
        self.take_again(&again).await
    }

    /// Takes the engine's counts in.
    pub(super) async fn take_minutes(&mut self, records: &[Record]) -> Result<()> {
        let mut of_final_minutes: Vec<(Minute, Dimensions, i64)> = Vec::new();
        {
            let mut live = self.warehouse.0.live.write();
            let mut status = self.warehouse.0.status();
            for record in records {
                let row = match serde_json::from_slice::<EngineRow<'_>>(&record.value) {
                    Ok(row) if row.clicks >= 0 => row,
                    _ => {
                        status.unreadable += 1;
                        continue;
                    }
                };
                if row.version != self.run.deployment.version {
                    status.refused += 1;
                } else if row.minute < self.run.last.through {
                    of_final_minutes.push((row.minute, row.dimensions(), row.clicks));
                } else {
                    let minute = self.run.engine.entry(row.minute).or_default();
                    minute.take(record, &row, &mut live.dimensions);
                }
            }
        }
        for (minute, dimensions, clicks) in of_final_minutes {
            let known = self.final_count(minute, &dimensions).await?;
            let mut status = self.warehouse.0.status();
            if known == clicks {
                status.replayed += 1;
            } else {
                status.refused += 1;
                drop(status);
                tracing::warn!(%minute, ?dimensions, known, clicks, "refused a row that differs from what is final");
            }
        }
        Ok(())
    }

    /// What the deployed version's rows of a final minute came to: its billable raw rows in the warehouse.
    async fn final_count(&mut self, minute: Minute, dimensions: &Dimensions) -> Result<i64> {
        let known = &mut self.run.final_minutes;
        if !known.iter().any(|(known, _)| *known == minute) {
            let before = &self.run.last.positions;
            // A billable row is on time.
            let late = minute.end().plus(self.warehouse.0.settings.lateness.lateness_ms + 1);
            let rows = self.warehouse.0.backend.billable(minute..minute.next(), late, before).await?;
            let version = self.run.deployment.version;
            let counts: HashMap<Dimensions, i64> = rows
                .into_iter()
                .filter(|row| row.version == version)
                .map(|row| (row.count.dimensions, row.count.clicks))
                .collect();
            if known.len() >= FINAL_MINUTES {
                known.pop_front();
            }
            known.push_back((minute, counts));
        }
        let counts = known.iter().find(|(known, _)| *known == minute);
        Ok(counts.and_then(|(_, counts)| counts.get(dimensions)).copied().unwrap_or(0))
    }
}

impl EngineMinute {
    fn take(&mut self, record: &Record, row: &EngineRow<'_>, dimensions: &mut Interner) {
        match self.note.iter_mut().find(|(partition, _)| *partition == record.partition) {
            Some((_, least)) => *least = record.offset.min(*least),
            None => self.note.push((record.partition, record.offset)),
        }
        // Absent is 0.
        if row.clicks == 0 {
            return;
        }
        let index = dimensions.index(row.dimensions());
        let known = *self.counts.entry(index).or_insert(row.clicks);
        if known != row.clicks {
            let (minute, dimensions) = (row.minute, dimensions.get(index));
            self.conflict =
                Some(format!("minute {minute}: the engine says {known} and {} for {dimensions:?}", row.clicks));
        }
    }
}

impl Run {
    /// Counts a row, unless it is of a position that is final: that one is the answer.
    fn take_row(
        &mut self,
        record: &Record,
        row: &CountedRow<'_>,
        lateness_ms: i64,
        live: &mut State,
        status: &mut Status,
    ) -> Option<Again> {
        let Some(open) = self.partitions.get_mut(&row.log_partition) else {
            status.refused += 1;
            return None;
        };
        let deployed_at = self.deployment.positions.get(row.log_partition);
        let ours = row.log_id == self.deployment.log_id && row.version == self.deployment.version;
        if !ours || row.log_offset < deployed_at {
            status.refused += 1;
            return None;
        }
        if row.log_offset < self.last.positions.get(row.log_partition) {
            let counts = match Verdict::of(&row.verdict) {
                Verdict::Billable | Verdict::Late => Some(Counts::new(row.minute(), &row.dimensions())),
                Verdict::NotBilled => None,
                // It was decided since.
                Verdict::Undecided => {
                    status.replayed += 1;
                    return None;
                }
            };
            return Some(Again { partition: row.log_partition, offset: row.log_offset, counts });
        }
        let minute = row.minute();
        let verdict = match Verdict::of(&row.verdict) {
            // Its minute became final before it was written, when the lateness was shorter: a correction, as the closing
            // that writes it will find too.
            Verdict::Billable if minute < self.last.through => Verdict::Late,
            verdict => verdict,
        };
        let dimensions = match verdict {
            Verdict::Billable | Verdict::Late => live.dimensions.index(row.dimensions()),
            Verdict::Undecided | Verdict::NotBilled => 0,
        };
        let slot = Slot::Row(Row { appended_at: row.appended_at, minute, dimensions, verdict });
        match open.insert(row.log_offset, slot, Some((record.partition, record.offset))) {
            Inserted::New | Inserted::Instead(_) => {}
            Inserted::Known => {
                status.replayed += 1;
                return None;
            }
            Inserted::TooFar => {
                status.refused += 1;
                return None;
            }
            Inserted::Conflict => {
                status.refused += 1;
                let at = format!("{}:{}:{}", row.log_id, row.log_partition, row.log_offset);
                self.broken = Some(format!("two raw rows of {at} differ"));
                return None;
            }
        }
        // No rule lets this be: the pipeline's lateness is not the loader's, or the row is wrong.
        let clicked_at = row.timestamp.unwrap_or(row.appended_at).min(row.appended_at);
        if row.verdict == "billable" && clicked_at < row.appended_at.plus(-lateness_ms) {
            let at = format!("{}:{}:{}", row.log_id, row.log_partition, row.log_offset);
            self.broken = Some(format!("{at} is billable, though it came too late for minute {minute}"));
        }
        status.rows += 1;
        if let Some(count) = status.verdicts.get_mut(&*row.verdict) {
            *count += 1;
        } else if status.verdicts.len() < VERDICTS_MAX {
            status.verdicts.insert(row.verdict.to_string(), 1);
        }
        match verdict {
            Verdict::Billable => {
                add(&mut live.current, minute, dimensions, 1);
                live.raised(minute, dimensions);
            }
            Verdict::Late => {
                add(&mut live.late, minute, dimensions, 1);
                live.raised(minute, dimensions);
            }
            Verdict::Undecided | Verdict::NotBilled => {}
        }
        None
    }

    /// Forgets dimensions that nothing open uses, once there are many.
    pub(super) fn forget_dimensions(&mut self, live: &mut State) {
        if live.dimensions.len() < DIMENSIONS_MAX {
            return;
        }
        let old = std::mem::take(&mut live.dimensions);
        let mut new_index: HashMap<u32, u32> = HashMap::new();
        let mut keep =
            |index: u32| *new_index.entry(index).or_insert_with(|| live.dimensions.index(old.get(index).clone()));
        let counts = [&mut live.current, &mut live.older, &mut live.late];
        let of_minutes = counts.into_iter().flat_map(|counts| counts.values_mut());
        for of_minute in of_minutes.chain(self.engine.values_mut().map(|minute| &mut minute.counts)) {
            *of_minute = of_minute.drain().map(|(index, clicks)| (keep(index), clicks)).collect();
        }
        for open in self.partitions.values_mut() {
            // Open rows of billable and late clicks are all in the counts above.
            open.reindex(|index| new_index.get(&index).copied().unwrap_or(index));
        }
    }
}
