//! Minutes that cannot agree, or that an engine cannot pass, become final by a recount from the log.
//!
//! Whoever recounts makes raw rows as an engine writes them, into a log of its own. They take the place of the engine's:
//! what is written of them, and how, is a closing's, marked as a repair. The engine's rows before its positions come to
//! nothing; those from there on go on.

use crate::closing::{Closer, RowsOf, Totals, digest, read_record};
use crate::error::{Error, Result};
use crate::live::Counts;
use crate::sequence::{Entry, Kind, Sequence};
use crate::warehouse::{Inner, Topics, Warehouse, check_log};
use click::{LogId, Minute, Offset, Offsets, Partition, Position};
use std::collections::BTreeMap;
use tally_log::Log;

/// What has to be recounted, so that minutes become final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// What the rows have to name: the log, and the version that is deployed.
    pub log_id: LogId,
    pub version: i64,
    /// The digest of that version.
    pub digest: String,
    /// A row is needed of every record from here…
    pub from: Offsets,
    /// …to here.
    pub to: Offsets,
    /// Minutes before this one become final.
    pub through: Minute,
}

impl Recount {
    /// The last minute of it.
    fn minute(&self) -> Minute {
        Minute::from_number(self.through.number() - 1)
    }
}

/// What a repair made final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    pub entry: Entry,
    /// Clicks of each minute, those of earlier versions included.
    pub clicks: BTreeMap<Minute, i64>,
}

impl Warehouse {
    /// What to recount so that all minutes up to this one become final, and it with them. A closing that was interrupted
    /// is carried out first.
    ///
    /// # Errors
    /// [`NoRepair`](Error::NoRepair) if the minute is final, or goes on in the log.
    pub async fn to_recount(&self, log: &dyn Log, topics: &Topics, minute: Minute) -> Result<Recount> {
        let mut sequence = self.0.sequence.lock().await;
        let clicks = log.topic(&topics.clicks).await?;
        check_log(sequence.as_ref().ok_or(Error::NotDeployed)?, &clicks)?;
        match self.finish_begun(&mut sequence, log, topics).await {
            // It is carried out by the same recount.
            Err(Error::RepairBegun { through, .. }) if through == minute.next() => {}
            finished => finished?,
        }
        let Sequence { last, deployment, .. } = sequence.as_ref().ok_or(Error::NotDeployed)?;
        if minute < last.through {
            let what = format!("it is final, as all minutes before {} are", last.through);
            return Err(Error::NoRepair { minute, what });
        }
        let at = minute.end().plus(self.0.settings.lateness.delay_ms());
        let mut to = Offsets::default();
        for partition in 0..clicks.partitions {
            let offset = log.offset_at(&clicks, partition, at).await?;
            if offset >= log.held(&clicks, partition).await?.end {
                let what = format!(
                    "its clicks may still come: partition {partition} of {} has no record that was appended at {at} or later",
                    clicks.name
                );
                return Err(Error::NoRepair { minute, what });
            }
            to.set(partition, offset.max(last.positions.get(partition)));
        }
        let (log_id, from, through) = (clicks.log_id, last.positions.clone(), minute.next());
        let (version, digest) = (deployment.version, deployment.digest.clone());
        Ok(Recount { log_id, version, digest, from, to, through })
    }

    /// Makes the minutes of a recount final. Its raw rows are in `results`, in the topic of that name; more rows than
    /// needed do no harm. Dies it, the same recount carries it out.
    ///
    /// # Errors
    /// [`NoRepair`](Error::NoRepair) if a record has no row though it can be decoded, or minutes became final since
    /// [`to_recount`](Warehouse::to_recount); [`Contradiction`](Error::Contradiction) if a repair of these minutes began and
    /// this recount is another one.
    pub async fn repair(
        &self,
        log: &dyn Log,
        topics: &Topics,
        recount: &Recount,
        results: &dyn Log,
    ) -> Result<Repaired> {
        let mut sequence = self.0.sequence.lock().await;
        let Sequence { last, deployment, begun } = sequence.as_mut().ok_or(Error::NotDeployed)?;
        if last.positions != recount.from || deployment.version != recount.version {
            let what = "minutes became final, or a pipeline was deployed, while it was recounted".to_string();
            return Err(Error::NoRepair { minute: recount.minute(), what });
        }
        let Inner { backend, clock, live, .. } = &*self.0;
        let rows = RowsOf { log: results, from: &Offsets::default() };
        let closer = Closer { backend: &**backend, log, topics, rows, clock: &**clock };
        let mut entry = Entry {
            number: last.number + 1,
            kind: Kind::RepairBegun,
            through: recount.through,
            positions: recount.to.clone(),
            // Rows that the engine wrote of later minutes can lie anywhere after these.
            result_positions: last.result_positions.clone(),
            quarantined: Vec::new(),
            finalized_at: clock.now().max(last.finalized_at),
            ..deployment.clone()
        };
        let carried = closer.carried(last, &entry).await?;
        let mut totals = carried.clone();
        let missing = closer.count_rows(last, &entry, &mut totals).await?;
        entry.quarantined = undecodable(log, topics, recount, missing).await?;
        entry.totals = digest(&totals);
        match begun {
            Some(begun) => {
                let same = Entry { finalized_at: begun.finalized_at, ..entry.clone() };
                if *begun != same {
                    let what = "a repair began, and this recount does not say the same".to_string();
                    return Err(Error::Contradiction { number: entry.number, what });
                }
                entry = same;
            }
            None => {
                backend.put_entry(&entry).await?;
                *begun = Some(entry.clone());
            }
        }
        let repair = closer.carry_out(last, &entry, Some(carried)).await?;
        let view = backend.view(repair.number).await?;
        {
            // Counts that are not final are the next loader's, which begins with none.
            let mut live = live.write();
            (live.current, live.older, live.late) = (Counts::new(), Counts::new(), Counts::new());
            live.go_on(repair.number, repair.through, view);
        }
        self.0.status().complete_through = repair.through.start();
        tracing::warn!(number = repair.number, through = %repair.through, "minutes are final by a recount from the log");
        let clicks = by_minute(totals, last.through, repair.through);
        (*last, *begun) = (repair.clone(), None);
        Ok(Repaired { entry: repair, clicks })
    }
}

/// Records that have no row because they are no clicks.
async fn undecodable(
    log: &dyn Log,
    topics: &Topics,
    recount: &Recount,
    missing: Vec<(Partition, Offset)>,
) -> Result<Vec<(Partition, Offset)>> {
    let topic = log.topic(&topics.clicks).await?;
    for (partition, offset) in &missing {
        let record = read_record(log, &topic, *partition, *offset).await?;
        if serde_json::from_slice::<click::Event>(&record.value).is_ok() {
            let position = Position { log_id: recount.log_id, partition: *partition, offset: *offset };
            let what = format!("the recount has no row of {position}, though it can be decoded");
            return Err(Error::NoRepair { minute: recount.minute(), what });
        }
    }
    Ok(missing)
}

fn by_minute(totals: Totals, from: Minute, through: Minute) -> BTreeMap<Minute, i64> {
    let mut clicks: BTreeMap<Minute, i64> =
        (from.number()..through.number()).map(|number| (Minute::from_number(number), 0)).collect();
    for ((minute, _), counted) in totals {
        *clicks.entry(minute).or_default() += counted;
    }
    clicks
}
