//! Rows whose minute is not final yet, one partition of topic `clicks` at a time: 24 bytes a row. The rows themselves
//! are read again from the result topic when a closing writes them.

use click::{Millis, Minute, Offset, Offsets, Partition, Verdict};
use std::collections::VecDeque;

/// What is kept of a raw row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub appended_at: Millis,
    pub minute: Minute,
    /// Index among the known dimensions; means something for billable and late rows only.
    pub dimensions: u32,
    pub verdict: Verdict,
}

/// What is known of one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No row yet, though there is one of a later offset.
    Missing,
    /// The record cannot be decoded: no row will come.
    Quarantined {
        appended_at: Millis,
    },
    Row(Row),
}

// At 10,000 clicks a second and seven minutes that are not final, 24 bytes are 100 MB.
const _: () = assert!(size_of::<Slot>() <= 24);

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// Counts from now on.
    New,
    /// A replay of what is known, or of what is final.
    Known,
    /// It takes the place of an undecided row, or of a hole that was taken for an undecodable record.
    Instead(Slot),
    /// It says something else than an earlier row of the same position.
    Conflict,
    /// So far ahead that it cannot be right.
    TooFar,
}

/// Rows of this many offsets share one note of where they stand in the result topic.
const CHUNK: Offset = 1024;

/// A row that is further ahead of the first open one than this is not believed. It bounds the memory that one wrong
/// offset can ask for.
const AHEAD_MAX: Offset = 1 << 25;

/// The open rows of a partition.
#[derive(Debug)]
pub(crate) struct OpenPartition {
    /// Every record before this is in the warehouse.
    first: Offset,
    slots: VecDeque<Slot>,
    /// Up to here, without a gap, every record has a decided row.
    frontier: Offset,
    /// The latest append time of a row before the frontier.
    reached: Option<Millis>,
    /// How far append times may go back: as much as the brokers' clocks may differ, in milliseconds.
    slack_ms: i64,
    /// The last offset before the frontier whose append time went back.
    went_back: Option<Offset>,
    /// For each chunk of offsets, from that of `first` on, the least offset of its rows in each partition of the
    /// result topic: where to read on after a restart.
    notes: VecDeque<Vec<(Partition, Offset)>>,
    /// Since when the frontier stands before a hole.
    pub hole_since: Option<Millis>,
    /// While the log has records past the frontier.
    pub behind: Option<Behind>,
}

/// A frontier that the log is ahead of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behind {
    pub frontier: Offset,
    /// When the frontier was first seen there.
    pub since: Millis,
    /// End of the log.
    pub end: Offset,
}

impl OpenPartition {
    pub fn new(first: Offset, slack_ms: i64) -> Self {
        OpenPartition {
            first,
            slots: VecDeque::new(),
            frontier: first,
            reached: None,
            slack_ms,
            went_back: None,
            notes: VecDeque::new(),
            hole_since: None,
            behind: None,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn frontier(&self) -> Offset {
        self.frontier
    }

    /// Append time up to which, without a gap, every record has a decided row.
    pub fn reached(&self) -> Option<Millis> {
        self.reached
    }

    fn index(&self, offset: Offset) -> Option<usize> {
        usize::try_from(offset.checked_sub(self.first)?).ok()
    }

    pub fn slot(&self, offset: Offset) -> Option<Slot> {
        self.slots.get(self.index(offset)?).copied()
    }

    /// Takes a slot in, which was read at `from` in the result topic. Only an undecided row and a quarantined hole
    /// can be replaced.
    pub fn insert(&mut self, offset: Offset, slot: Slot, from: Option<(Partition, Offset)>) -> Inserted {
        let Some(index) = self.index(offset) else { return Inserted::Known };
        if offset - self.first > AHEAD_MAX {
            return Inserted::TooFar;
        }
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::Missing);
        }
        let known = std::mem::replace(&mut self.slots[index], slot);
        let inserted = match (known, slot) {
            (Slot::Missing, _) => Inserted::New,
            (known, slot) if known == slot => return Inserted::Known,
            (Slot::Row(Row { verdict: Verdict::Undecided, .. }) | Slot::Quarantined { .. }, Slot::Row(_)) => {
                Inserted::Instead(known)
            }
            _ => {
                self.slots[index] = known;
                return Inserted::Conflict;
            }
        };
        if let Some((partition, at)) = from {
            self.note(offset, partition, at);
        }
        inserted
    }

    fn note(&mut self, offset: Offset, partition: Partition, at: Offset) {
        let chunk = usize::try_from(offset / CHUNK - self.first / CHUNK).unwrap_or(0);
        if chunk >= self.notes.len() {
            self.notes.resize_with(chunk + 1, Vec::new);
        }
        match self.notes[chunk].iter_mut().find(|(known, _)| *known == partition) {
            Some((_, least)) => *least = at.min(*least),
            None => self.notes[chunk].push((partition, at)),
        }
    }

    /// Moves the frontier up to the next hole or undecided row.
    ///
    /// Closings are cut by append time, and a minute is complete the slack after its last record on time can come. On Kafka
    /// append time goes back when a new leader's clock is behind the old one's. By no more than the slack that is harmless:
    /// the record is still too late for every minute that is complete. By more, an engine's watermark has passed the record,
    /// and it is in none of its windows: an error.
    pub fn advance(&mut self) -> Result<(), String> {
        while let Some(slot) = self.slot(self.frontier) {
            let appended_at = match slot {
                Slot::Missing | Slot::Row(Row { verdict: Verdict::Undecided, .. }) => break,
                Slot::Quarantined { appended_at } | Slot::Row(Row { appended_at, .. }) => appended_at,
            };
            let reached = self.reached.unwrap_or(appended_at);
            if appended_at < reached {
                if appended_at < reached.plus(-self.slack_ms) {
                    return Err(format!(
                        "offset {} was appended at {appended_at}, and an earlier one at {reached}, which is more apart than the \
                         slack of {} ms: the clock of one of the log's machines is wrong",
                        self.frontier, self.slack_ms
                    ));
                }
                self.went_back = Some(self.frontier);
            }
            (self.reached, self.frontier) = (Some(reached.max(appended_at)), self.frontier + 1);
            self.hole_since = None;
        }
        Ok(())
    }

    /// The offset that the frontier waits for, if a later one is there.
    pub fn hole(&self) -> Option<Offset> {
        (self.slot(self.frontier) == Some(Slot::Missing)).then_some(self.frontier)
    }

    /// Notes how far the log goes.
    pub fn look(&mut self, now: Millis, end: Offset) {
        let frontier = self.frontier;
        let since = self.behind.filter(|behind| behind.frontier == frontier).map_or(now, |behind| behind.since);
        self.behind = (frontier < end).then_some(Behind { frontier, since, end });
    }

    /// The first offset before the frontier that was appended at or after `at`.
    pub fn first_at(&self, at: Millis) -> Option<Offset> {
        let (mut low, mut high) = (0, self.index(self.frontier)?);
        let end = high;
        if self.went_back.is_some_and(|offset| offset >= self.first) {
            let appended = |slot: &Slot| match slot {
                Slot::Missing => None,
                Slot::Quarantined { appended_at } | Slot::Row(Row { appended_at, .. }) => Some(*appended_at),
            };
            let index = self.slots.iter().take(end).position(|slot| appended(slot).is_some_and(|found| found >= at))?;
            return Some(self.first + index as Offset);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            match self.slots[middle] {
                Slot::Quarantined { appended_at } | Slot::Row(Row { appended_at, .. }) if appended_at >= at => {
                    high = middle;
                }
                _ => low = middle + 1,
            }
        }
        (low < end).then(|| self.first + low as Offset)
    }

    /// The slots before `end`, with their offsets.
    pub fn before(&self, end: Offset) -> impl Iterator<Item = (Offset, Slot)> + '_ {
        let slots = self.index(end).unwrap_or(0).min(self.slots.len());
        (self.first..).zip(self.slots.range(..slots).copied())
    }

    /// Forgets what is before `end`.
    pub fn drop_before(&mut self, end: Offset) {
        let Some(gone) = self.index(end) else { return };
        let chunks = usize::try_from(end / CHUNK - self.first / CHUNK).unwrap_or(0);
        self.slots.drain(..gone.min(self.slots.len()));
        self.notes.drain(..chunks.min(self.notes.len()));
        self.first = end;
        self.frontier = self.frontier.max(end);
        if self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Lowers `floor` to where rows at or after `offset` stand in the result topic.
    pub fn lower(&self, floor: &mut Offsets, offset: Offset) {
        let skip = usize::try_from(offset / CHUNK - self.first / CHUNK).unwrap_or(0);
        for (partition, at) in self.notes.iter().skip(skip).flatten() {
            if *at < floor.get(*partition) {
                floor.set(*partition, *at);
            }
        }
    }

    /// Changes the index of every row's dimensions.
    pub fn reindex(&mut self, to: impl Fn(u32) -> u32) {
        for slot in &mut self.slots {
            if let Slot::Row(row) = slot
                && matches!(row.verdict, Verdict::Billable | Verdict::Late)
            {
                row.dimensions = to(row.dimensions);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ms: i64, verdict: Verdict) -> Slot {
        let at = Millis::new(ms);
        Slot::Row(Row { appended_at: at, minute: at.minute(), dimensions: 0, verdict })
    }

    #[test]
    fn the_frontier_stops_at_holes_and_undecided_rows() {
        let mut open = OpenPartition::new(10, 0);
        assert_eq!(open.insert(9, row(0, Verdict::Billable), None), Inserted::Known);
        assert_eq!(open.insert(11, row(2, Verdict::Undecided), Some((0, 5))), Inserted::New);
        open.advance().unwrap();
        assert_eq!((open.frontier(), open.hole(), open.reached()), (10, Some(10), None));
        open.insert(10, row(1, Verdict::Billable), Some((0, 6)));
        open.insert(12, row(3, Verdict::Billable), Some((1, 2)));
        open.advance().unwrap();
        assert_eq!((open.frontier(), open.hole()), (11, None));
        let undecided = row(2, Verdict::Undecided);
        assert_eq!(open.insert(11, row(2, Verdict::Billable), Some((0, 7))), Inserted::Instead(undecided));
        open.advance().unwrap();
        assert_eq!((open.frontier(), open.reached()), (13, Some(Millis::new(3))));
        assert_eq!(open.insert(12, row(3, Verdict::Late), None), Inserted::Conflict);
        assert_eq!(open.insert(12, row(3, Verdict::Billable), None), Inserted::Known);
        let first_at = |ms| open.first_at(Millis::new(ms));
        assert_eq!([first_at(0), first_at(2), first_at(3), first_at(4)], [Some(10), Some(11), Some(12), None]);
    }

    #[test]
    fn the_result_positions_reach_back_to_every_open_row() {
        let mut open = OpenPartition::new(1000, 0);
        for offset in 1000..5000 {
            let (partition, at) = ((offset % 2) as Partition, 4000 - offset / 2);
            open.insert(offset, row(offset, Verdict::Billable), Some((partition, at)));
        }
        open.advance().unwrap();
        open.drop_before(3000);
        let mut floor = Offsets::from_iter([(0, 3900), (1, 3900)]);
        open.lower(&mut floor, 3000);
        assert!(floor.get(0) <= 4000 - 4998 / 2 && floor.get(1) <= 4000 - 4999 / 2);
        assert_eq!(open.before(3002).count(), 2);
        assert!(open.insert(3000 + AHEAD_MAX + 1, row(9999, Verdict::Billable), None) == Inserted::TooFar);
    }

    #[test]
    fn append_times_may_go_back_by_the_slack_and_no_further() {
        let mut open = OpenPartition::new(0, 10);
        for (offset, ms) in [(0, 100), (1, 95), (2, 90), (3, 120), (4, 111), (5, 130)] {
            open.insert(offset, row(ms, Verdict::Billable), None);
        }
        open.advance().unwrap();
        assert_eq!((open.frontier(), open.reached()), (6, Some(Millis::new(130))));
        // What is before a time is all that came before the first record of that time, whatever came behind it.
        let first_at = |ms| open.first_at(Millis::new(ms));
        assert_eq!(
            [90, 95, 100, 101, 111, 120, 121, 130, 131].map(first_at),
            [0, 0, 0, 3, 3, 3, 5, 5, 9].map(|offset| (offset < 6).then_some(offset))
        );
        open.insert(6, row(119, Verdict::Billable), None);
        let error = open.advance().unwrap_err();
        let expected = "offset 6 was appended at 1970-01-01T00:00:00.119Z, and an earlier one at 1970-01-01T00:00:00.130Z, which is";
        assert!(error.starts_with(expected), "{error}");
    }
}
