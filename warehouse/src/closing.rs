//! Writes a closing, once, whatever dies in between.
//!
//! A closing begins with an entry that fixes what it comprises: the minutes, the positions, the records that are taken
//! as undecodable, and by a digest the counts that the minutes come to. From there on it is only carried out, by this loader or by the next one after a crash. Each step
//! finds out by the closing's number that it was done; what it writes follows from the entry, the log and the steps
//! before it, so it is the same on every try. Nothing counts before the last step, the entry in `closings`.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::rows::{Correction, Count, Quarantined, RawRow};
use crate::sequence::Entry;
use crate::warehouse::Topics;
use click::{Clock, Dimensions, Millis, Minute, Offset, Offsets, Partition, Verdict};
use faults::Point;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use tally_log::{Log, Record, Topic, ends};

/// Final counts: of all minutes of a closing, by dimensions, in the order in which they are written.
pub(crate) type Totals = BTreeMap<(Minute, Dimensions), i64>;

/// Rows that are held before they are handed to the tables.
const ROWS: usize = 8192;

/// How long a poll may stay empty though the topic goes on, in polls of [`POLL`].
const EMPTY_POLLS_MAX: usize = 100;
const POLL: Duration = Duration::from_millis(100);

/// Where a closing reads and writes.
pub(crate) struct Closer<'a> {
    pub backend: &'a dyn Backend,
    /// Where the clicks are.
    pub log: &'a dyn Log,
    pub topics: &'a Topics,
    pub rows: RowsOf<'a>,
    pub clock: &'a dyn Clock,
}

/// Where raw rows are read: in topic `raw_clicks`, from here on.
#[derive(Clone, Copy)]
pub(crate) struct RowsOf<'a> {
    pub log: &'a dyn Log,
    pub from: &'a Offsets,
}

/// A digest of counts: the same for the same ones, by whomever they were summed up.
pub(crate) fn digest(totals: &Totals) -> String {
    let mut digest = Sha256::new();
    // Absent is 0.
    for ((minute, dimensions), clicks) in totals.iter().filter(|(_, clicks)| **clicks != 0) {
        digest.update(minute.number().to_le_bytes());
        for value in dimensions.values() {
            digest.update((value.len() as u64).to_le_bytes());
            digest.update(value.as_bytes());
        }
        digest.update(clicks.to_le_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Closer<'_> {
    /// Carries out a closing that began, from wherever it was left. `last` is the entry before it. `carried` are the
    /// counts of its minutes from rows before its own, which are in the tables already; without them those rows are
    /// counted anew.
    pub async fn carry_out(&self, last: &Entry, begun: &Entry, carried: Option<Totals>) -> Result<Entry> {
        let number = begun.number;
        faults::at(Point::ClosingBegun);
        let mut totals = match carried {
            Some(carried) => carried,
            None => self.carried(last, begun).await?,
        };
        self.copy_rows(last, begun, &mut totals).await?;
        totals.retain(|_, clicks| *clicks != 0);
        if digest(&totals) != begun.totals {
            let what = "the raw rows say another count than when it began".to_string();
            return Err(Error::Contradiction { number, what });
        }
        if let Some(mut minutes) = self.backend.clicks_by_minute(number).await? {
            let rows: Vec<Count> =
                totals.into_iter().map(|((minute, dimensions), clicks)| Count { minute, dimensions, clicks }).collect();
            for rows in rows.chunks(ROWS) {
                minutes.write(rows).await?;
            }
            minutes.commit().await?;
        }
        faults::at(Point::ClosingMinutes);
        self.backend.roll_up(number, last.through, begun.through).await?;
        faults::at(Point::ClosingRollUps);
        let finalized_at = self.clock.now().max(last.finalized_at);
        let closing = Entry { kind: begun.kind.carried_out(), finalized_at, ..begun.clone() };
        self.backend.put_entry(&closing).await?;
        faults::at(Point::ClosingDone);
        Ok(closing)
    }

    /// What the closing's minutes come to in the rows that are in the tables already.
    pub async fn carried(&self, last: &Entry, begun: &Entry) -> Result<Totals> {
        let mut totals = Totals::new();
        let minutes = last.through..begun.through;
        for billable in self.backend.billable(minutes, Millis::new(i64::MAX), &last.positions).await? {
            let Count { minute, dimensions, clicks } = billable.count;
            *totals.entry((minute, dimensions)).or_default() += clicks;
        }
        Ok(totals)
    }

    /// Steps one to four: raw rows, quarantined records, corrections, and their sums. The rows are counted in any case.
    async fn copy_rows(&self, last: &Entry, begun: &Entry, totals: &mut Totals) -> Result<()> {
        let number = begun.number;
        let mut raw_clicks = self.backend.raw_clicks(number).await?;
        let mut corrections = self.backend.click_corrections(number).await?;
        let mut own = self.own_rows(last, begun).await?;
        loop {
            let rows = own.next().await?;
            if rows.is_empty() {
                break;
            }
            let late: Vec<Correction> =
                rows.iter().filter(|row| count(row, last, begun, totals)).map(correction).collect();
            if let Some(table) = &mut raw_clicks {
                table.write(&rows).await?;
            }
            if let Some(table) = &mut corrections {
                table.write(&late).await?;
            }
        }
        if let Some((partition, offset)) = own.wanted.missing().next() {
            let topic = self.topics.raw_clicks.clone();
            return Err(Error::RowGone { number, topic, partition, offset });
        }
        if let Some(table) = raw_clicks {
            table.commit().await?;
        }
        faults::at(Point::ClosingRaw);
        self.quarantine(begun).await?;
        if let Some(table) = corrections {
            table.commit().await?;
        }
        self.backend.sum_corrections(number).await?;
        faults::at(Point::ClosingCorrections);
        Ok(())
    }

    /// Counts the rows that a closing would write, and says of which positions there is none.
    pub async fn count_rows(
        &self,
        last: &Entry,
        begun: &Entry,
        totals: &mut Totals,
    ) -> Result<Vec<(Partition, Offset)>> {
        let mut own = self.own_rows(last, begun).await?;
        loop {
            let rows = own.next().await?;
            if rows.is_empty() {
                return Ok(own.wanted.missing().collect());
            }
            for row in &rows {
                count(row, last, begun, totals);
            }
        }
    }

    async fn own_rows<'a>(&self, last: &Entry, begun: &'a Entry) -> Result<OwnRows<'a>> {
        let RowsOf { log, from } = self.rows;
        let reader = Reader::open(log, log.topic(&self.topics.raw_clicks).await?, from).await?;
        Ok(OwnRows { reader, wanted: Wanted::new(last, begun), begun })
    }

    async fn quarantine(&self, begun: &Entry) -> Result<()> {
        let Some(mut table) = self.backend.quarantine(begun.number).await? else { return Ok(()) };
        let topic = self.log.topic(&self.topics.clicks).await?;
        for (partition, offset) in &begun.quarantined {
            let record = read_record(self.log, &topic, *partition, *offset).await?;
            let error = match serde_json::from_slice::<click::Event>(&record.value) {
                Ok(_) => "the engine could not decode it".to_string(),
                Err(error) => error.to_string(),
            };
            let Record { partition, offset, appended_at, value: bytes } = record;
            table.write(&[Quarantined { log_id: begun.log_id, partition, offset, appended_at, bytes, error }]).await?;
        }
        table.commit().await
    }
}

/// Adds a row of the closing to what its minutes come to. Whether it is a correction instead.
fn count(row: &RawRow, last: &Entry, begun: &Entry, totals: &mut Totals) -> bool {
    match row.verdict() {
        // On time by a lateness that was raised since its minute became final.
        Verdict::Billable if row.minute() < last.through => true,
        Verdict::Billable if row.minute() < begun.through => {
            *totals.entry((row.minute(), row.dimensions())).or_default() += 1;
            false
        }
        Verdict::Late => true,
        _ => false,
    }
}

/// A click whose minute is final when it comes is added to it after the fact.
fn correction(row: &RawRow) -> Correction {
    Correction {
        log_id: row.log_id,
        partition: row.log_partition,
        offset: row.log_offset,
        count: Count { minute: row.minute(), dimensions: row.dimensions(), clicks: 1 },
        kind: "late",
        reason: format!("appended at {}", row.appended_at),
    }
}

/// Reads one record of the clicks log.
pub(crate) async fn read_record(log: &dyn Log, topic: &Topic, partition: Partition, offset: Offset) -> Result<Record> {
    let held = log.held(topic, partition).await?;
    if held.contains(&offset) {
        let mut consumer = log.consumer(topic, &Offsets::from_iter([(partition, offset)])).await?;
        for _ in 0..EMPTY_POLLS_MAX {
            if let Some(record) = consumer.poll(1, POLL).await?.into_iter().next() {
                return Ok(record);
            }
        }
    }
    Err(tally_log::LogError::OutOfRange { topic: topic.name.clone(), partition, offset, held }.into())
}

/// Reads a topic from one place to its end.
pub(crate) struct Reader {
    consumer: Box<dyn tally_log::Consumer>,
    end: Offsets,
}

impl Reader {
    pub async fn open(log: &dyn Log, topic: Topic, from: &Offsets) -> Result<Reader> {
        let start: Offsets = (0..topic.partitions).map(|partition| (partition, from.get(partition))).collect();
        let end = ends(log, &topic).await.map_err(Error::of_results)?;
        Ok(Reader { consumer: log.consumer(&topic, &start).await.map_err(Error::of_results)?, end })
    }

    /// The next records; none at the end.
    pub async fn next(&mut self) -> Result<Vec<Record>> {
        for _ in 0..EMPTY_POLLS_MAX {
            if reached(&self.consumer.next(), &self.end) {
                return Ok(Vec::new());
            }
            let records = self.consumer.poll(ROWS, POLL).await.map_err(Error::of_results)?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }
}

/// Whether a reader came to these ends.
pub(crate) fn reached(next: &Offsets, ends: &Offsets) -> bool {
    ends.iter().all(|(partition, end)| next.get(partition) >= end)
}

/// The rows that a closing writes, each once, in the order in which they are met.
struct OwnRows<'a> {
    reader: Reader,
    wanted: Wanted,
    begun: &'a Entry,
}

impl OwnRows<'_> {
    /// The next of them, [`ROWS`] or somewhat more; none when all were met or the topic is at its end.
    async fn next(&mut self) -> Result<Vec<RawRow>> {
        let mut rows: Vec<RawRow> = Vec::with_capacity(ROWS);
        while self.wanted.left > 0 && rows.len() < ROWS {
            let records = self.reader.next().await?;
            if records.is_empty() {
                break;
            }
            for record in records {
                // What cannot be read was counted as such when it came in, and is the row of nothing.
                let Ok(row) = serde_json::from_slice::<RawRow>(&record.value) else { continue };
                let ours = row.log_id == self.begun.log_id && row.version == self.begun.version;
                let decided = row.verdict() != Verdict::Undecided;
                if ours && decided && self.wanted.take(row.log_partition, row.log_offset) {
                    rows.push(row);
                }
            }
        }
        Ok(rows)
    }
}

/// The positions that a closing still needs a row of.
struct Wanted {
    /// For each partition its first offset, and whether each offset from there on is there.
    there: BTreeMap<Partition, (Offset, Vec<bool>)>,
    left: u64,
}

impl Wanted {
    fn new(last: &Entry, begun: &Entry) -> Self {
        let (mut there, mut left) = (BTreeMap::new(), 0);
        for (partition, end) in begun.positions.iter() {
            let first = last.positions.get(partition);
            let offsets = usize::try_from(end - first).unwrap_or(0);
            left += offsets as u64;
            there.insert(partition, (first, vec![false; offsets]));
        }
        let mut wanted = Wanted { there, left };
        for (partition, offset) in &begun.quarantined {
            wanted.take(*partition, *offset);
        }
        wanted
    }

    /// Takes a position, if it is wanted still.
    fn take(&mut self, partition: Partition, offset: Offset) -> bool {
        let Some((first, there)) = self.there.get_mut(&partition) else { return false };
        let index = offset.checked_sub(*first).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| there.get_mut(index)) {
            Some(there) if !*there => {
                (*there, self.left) = (true, self.left - 1);
                true
            }
            _ => false,
        }
    }

    fn missing(&self) -> impl Iterator<Item = (Partition, Offset)> + '_ {
        self.there.iter().flat_map(|(partition, (first, there))| {
            let missing = there.iter().enumerate().filter(|(_, there)| !**there);
            missing.map(move |(index, _)| (*partition, first + index as Offset))
        })
    }
}
