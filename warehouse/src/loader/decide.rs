//! Which minutes can close, and what holds them up.

use super::{Loader, SILENT_MS};
use crate::closing::{Totals, digest};
use crate::live::{Counts, State, add};
use crate::open::Slot;
use crate::sequence::Entry;
use click::{Minute, Offsets, Verdict};
use std::collections::BTreeSet;

impl Loader {
    /// The next closing: as many minutes as are complete and agree, one after the other. With it what its minutes come
    /// to in rows before its own.
    pub(super) fn closable(&self) -> Option<(Entry, Totals)> {
        if self.stopped().is_some() {
            return None;
        }
        let live = self.warehouse.0.live.read();
        let mut through = self.run.last.through;
        for _ in 0..self.warehouse.0.settings.minutes_max {
            if !self.is_complete(through) || self.disagreement(through, &live).is_some() {
                break;
            }
            through = through.next();
        }
        if through == self.run.last.through {
            return None;
        }
        let positions = self.positions(through)?;
        let begun = self.run.begun(self.warehouse.0.clock.now(), through, positions);
        let (carried, totals) = self.counted(&begun, &live);
        Some((Entry { totals: digest(&totals), ..begun }, carried))
    }

    /// Why no minute closes, though its time has come.
    pub(super) fn waiting(&self) -> Option<String> {
        if let Some(reason) = self.stopped() {
            return Some(reason.to_string());
        }
        if let Some(reason) = self.undecided() {
            return Some(reason);
        }
        let minute = self.run.last.through;
        // While a closing is written its minutes are not compared again.
        if self.closing.is_some() {
            return None;
        }
        // Without its rows nothing tells that the minute's time has come.
        if !self.is_complete(minute) {
            return self.silent();
        }
        self.disagreement(minute, &self.warehouse.0.live.read())
    }

    /// Minutes with clicks that are not final.
    pub(super) fn open_minutes(&self) -> u64 {
        let live = self.warehouse.0.live.read();
        let through = self.run.last.through..;
        let minutes = live.current.range(through.clone()).chain(live.older.range(through));
        minutes.map(|(minute, _)| minute).collect::<BTreeSet<_>>().len() as u64
    }

    /// Complete minutes that may not close. While a closing is written none is: its minutes agreed.
    pub(super) fn refused_minutes(&self) -> u64 {
        if self.closing.is_some() {
            return 0;
        }
        let live = self.warehouse.0.live.read();
        let all = self.stopped().is_some();
        let due = std::iter::successors(Some(self.run.last.through), |minute| Some(minute.next()))
            .take(self.warehouse.0.settings.minutes_max as usize)
            .take_while(|minute| self.is_complete(*minute));
        due.filter(|minute| all || self.disagreement(*minute, &live).is_some()).count() as u64
    }

    /// What an operator can do about it, if it stays so.
    pub(super) fn mend(&self) -> &'static str {
        match self.undecided() {
            Some(_) => "`tally claims rebuild` restores claims that Redis lost",
            None => {
                "`tally deploy --again` (with `tally run`: `tally run --again`; on one machine: `tally up --again`) has the rows made \
                 again; where that does not help, `tally repair`"
            }
        }
    }

    fn stopped(&self) -> Option<&str> {
        self.run.broken.as_deref().or(self.run.skipped.as_deref())
    }

    fn undecided(&self) -> Option<String> {
        self.run.partitions.iter().find_map(|(partition, open)| match open.slot(open.frontier()) {
            Some(Slot::Row(row)) if row.verdict == Verdict::Undecided => {
                Some(format!("no answer about the claim of partition {partition} offset {}", open.frontier()))
            }
            _ => None,
        })
    }

    /// A partition whose rows stopped, though its records go on.
    fn silent(&self) -> Option<String> {
        let now = self.warehouse.0.clock.now().get();
        self.run.partitions.iter().find_map(|(partition, open)| {
            let behind = open.behind.filter(|behind| behind.frontier == open.frontier())?;
            (now - behind.since.get() >= SILENT_MS).then(|| {
                let (from, since, end) = (behind.frontier, behind.since, behind.end);
                format!(
                    "no raw row of partition {partition} from offset {from} on since {since}, and the log goes to {end}"
                )
            })
        })
    }

    /// Raw rows are there, without a gap, up to an append time at which no row of the minute can come any more.
    fn is_complete(&self, minute: Minute) -> bool {
        let at = minute.end().plus(self.warehouse.0.settings.lateness.delay_ms());
        self.run.partitions.values().all(|open| open.reached().is_some_and(|reached| reached >= at))
    }

    /// The first offset of every partition that was appended when the last minute before `through` was complete.
    /// They follow from the log alone, so they are the same on every try.
    fn positions(&self, through: Minute) -> Option<Offsets> {
        let at = through.start().plus(self.warehouse.0.settings.lateness.delay_ms());
        self.run.partitions.iter().map(|(partition, open)| Some((*partition, open.first_at(at)?))).collect()
    }

    /// Where the two ways to count a minute differ: the engine's rows, and its billable raw rows of the same version.
    fn disagreement(&self, minute: Minute, live: &State) -> Option<String> {
        let engine = self.run.engine.get(&minute);
        if let Some(conflict) = engine.and_then(|engine| engine.conflict.as_ref()) {
            return Some(conflict.clone());
        }
        let empty = std::collections::HashMap::new();
        let engine = engine.map_or(&empty, |engine| &engine.counts);
        let raw = live.current.get(&minute).unwrap_or(&empty);
        if engine == raw {
            return None;
        }
        let differs = |index: &&u32| engine.get(*index) != raw.get(*index);
        let index = engine.keys().chain(raw.keys()).filter(differs).min_by_key(|index| live.dimensions.get(**index))?;
        let count = |counts: &std::collections::HashMap<u32, i64>| counts.get(index).copied().unwrap_or(0);
        Some(format!(
            "minute {minute}: the engine says {}, raw rows say {} for {:?}",
            count(engine),
            count(raw),
            live.dimensions.get(*index)
        ))
    }

    /// What was counted of a closing's minutes, without the rows that the closing itself will write, and in all.
    fn counted(&self, begun: &Entry, live: &State) -> (Totals, Totals) {
        let mut own = Counts::new();
        for (partition, open) in &self.run.partitions {
            for (_, slot) in open.before(begun.positions.get(*partition)) {
                if let Slot::Row(row) = slot
                    && row.verdict == Verdict::Billable
                {
                    add(&mut own, row.minute, row.dimensions, 1);
                }
            }
        }
        let (mut carried, mut totals) = (Totals::new(), Totals::new());
        for (counts, written_now) in [(&live.current, true), (&live.older, false)] {
            for (minute, counts) in counts.range(..begun.through) {
                let own = own.get(minute).filter(|_| written_now);
                for (index, clicks) in counts {
                    let own = own.and_then(|own| own.get(index)).copied().unwrap_or(0);
                    let key = (*minute, live.dimensions.get(*index).clone());
                    *carried.entry(key.clone()).or_default() += clicks - own;
                    *totals.entry(key).or_default() += clicks;
                }
            }
        }
        (carried, totals)
    }
}
