//! What waits in one partition of a spool, by offset. The clicks themselves are on disk.

use super::{Open, SENT_IS_NOT_NEEDED, SpoolError, from};
use click::{Millis, Offset, Partition};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tally_log::{Consumer, Log, LogError};

/// A first send that says nothing for so long is taken for lost.
const FIRST_SEND_WAIT: Duration = Duration::from_secs(30);
/// Records of one read at a start, and how long it may take.
const READ_MAX: usize = 4_096;
const READ_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u32,
    at: Millis,
    /// Since when its first send is under way; none if that is over.
    first_send: Option<Instant>,
    /// Sends so far, as far as this process knows.
    attempts: u32,
}

/// One partition.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Offset, Entry>,
    bytes: u64,
    /// Clicks on their way in, by the end that was known when they began: each gets an offset from there on.
    entering: BTreeMap<Offset, u32>,
    /// After the last offset that is known.
    end: Offset,
}

/// A click that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub offset: Offset,
    pub at: Millis,
    /// The number of this send.
    pub attempt: u32,
}

impl Queue {
    /// What a process before this one left, which wrote down in the file `sent` that everything before `next` was sent.
    pub(super) async fn read(
        open: &Open,
        sent: PathBuf,
        partition: Partition,
        next: Offset,
    ) -> Result<Queue, SpoolError> {
        let held = open.log.held(&open.topic, partition).await?;
        let mut queue = Queue { end: held.end, ..Queue::default() };
        // It is written down only of clicks that are durable. Taken for the end, it would hide those that come.
        if next > held.end {
            let what = format!(
                "it says that partition {partition} was sent up to offset {next}, and the spool ends at {}{SENT_IS_NOT_NEEDED}",
                held.end
            );
            return Err(SpoolError::Damaged { file: sent, what });
        }
        let held = next.max(held.start)..held.end;
        if held.is_empty() {
            return Ok(queue);
        }
        let mut consumer = open.log.consumer(&open.topic, &from(partition, held.start)).await?;
        match queue.fill(&mut *consumer, held.clone(), READ_WAIT).await? {
            at if at < held.end => {
                Err(SpoolError::Unread { dir: open.dir.clone(), partition, from: at, to: held.end, waited: READ_WAIT })
            }
            _ => Ok(queue),
        }
    }

    /// Takes what is held up from `consumer`, as far as the answer says: a disk that gives nothing in time ends it. One that
    /// hangs does so in the middle of a read, which itself waits for ever.
    async fn fill(
        &mut self,
        consumer: &mut dyn Consumer,
        held: Range<Offset>,
        wait: Duration,
    ) -> Result<Offset, LogError> {
        let mut at = held.start;
        while at < held.end {
            let read = tokio::time::timeout(wait, consumer.poll(READ_MAX, wait)).await;
            let records = read.unwrap_or_else(|_| Ok(Vec::new()))?;
            if records.is_empty() {
                break;
            }
            for record in records {
                at = record.offset + 1;
                self.bytes += record.value.len() as u64;
                let bytes = record.value.len() as u32;
                let entry = Entry { bytes, at: record.appended_at, first_send: None, attempts: 1 };
                self.waiting.insert(record.offset, entry);
            }
        }
        Ok(at)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the oldest was put in.
    pub fn oldest(&self) -> Option<Millis> {
        self.waiting.values().next().map(|entry| entry.at)
    }

    /// A click is on its way in. The answer is the offset from which on it will be.
    pub fn enter(&mut self, bytes: u64) -> Offset {
        *self.entering.entry(self.end).or_default() += 1;
        self.bytes += bytes;
        self.end
    }

    /// A click that was on its way in, since `enter` answered `began`, is there, or will not be.
    pub fn entered(&mut self, began: Offset, bytes: u64, entered: Option<(Offset, Millis)>) {
        if let Some(others) = self.entering.get_mut(&began) {
            *others = others.saturating_sub(1);
            if *others == 0 {
                self.entering.remove(&began);
            }
        }
        match entered {
            Some((offset, at)) => {
                let first_send = Some(Instant::now());
                self.waiting.insert(offset, Entry { bytes: bytes as u32, at, first_send, attempts: 1 });
                self.end = self.end.max(offset + 1);
            }
            None => self.bytes = self.bytes.saturating_sub(bytes),
        }
    }

    /// It is in the log, or aside.
    pub fn done(&mut self, offset: Offset) {
        if let Some(entry) = self.waiting.remove(&offset) {
            self.bytes = self.bytes.saturating_sub(u64::from(entry.bytes));
        }
    }

    /// Its first send failed, or there was none.
    pub fn ready(&mut self, offset: Offset) {
        if let Some(entry) = self.waiting.get_mut(&offset) {
            entry.first_send = None;
        }
    }

    /// What is to be done: clicks that were put in before `too_old`, which are not sent any more, and those that are to be
    /// sent. The oldest of either, at most so many, in order. One whose first send is under way holds back those after it,
    /// which would overtake it.
    pub fn due(&self, most: usize, too_old: Millis) -> [Vec<Due>; 2] {
        let is_due = |entry: &Entry| entry.first_send.is_none_or(|since| since.elapsed() >= FIRST_SEND_WAIT);
        let [mut old, mut young] = [Vec::new(), Vec::new()];
        for (offset, entry) in self.waiting.iter().take_while(|(_, entry)| is_due(entry)) {
            let of_its_age = if entry.at < too_old { &mut old } else { &mut young };
            if of_its_age.len() < most {
                let attempt = entry.attempts.saturating_add(1);
                of_its_age.push(Due { offset: *offset, at: entry.at, attempt });
            }
            if young.len() == most {
                break;
            }
        }
        [old, young]
    }

    /// It was sent once more, and not acknowledged.
    pub fn tried(&mut self, offset: Offset) {
        if let Some(entry) = self.waiting.get_mut(&offset) {
            (entry.attempts, entry.first_send) = (entry.attempts.saturating_add(1), None);
        }
    }

    /// Everything before this was sent: neither a click that waits, nor one that may be there already and is not known, lies
    /// before it. It goes on however many are on their way in.
    pub fn next(&self) -> Offset {
        let firsts = self.waiting.keys().next().into_iter().chain(self.entering.keys().next());
        firsts.copied().min().unwrap_or(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use click::Offsets;
    use tally_log::Record;

    #[test]
    fn nothing_is_forgotten_while_something_is_on_its_way_in() {
        let mut queue = Queue::default();
        assert_eq!((queue.enter(10), queue.enter(20)), (0, 0));
        queue.entered(0, 20, Some((1, Millis::new(7))));
        assert_eq!((queue.next(), queue.len(), queue.bytes()), (0, 1, 30));
        queue.done(1);
        assert_eq!(queue.next(), 0, "offset 0 may be there");
        // What comes later holds back nothing before it.
        assert_eq!(queue.enter(5), 2);
        assert_eq!(queue.next(), 0);
        queue.entered(0, 10, Some((0, Millis::new(6))));
        assert_eq!((queue.next(), queue.oldest()), (0, Some(Millis::new(6))));
        queue.done(0);
        assert_eq!((queue.next(), queue.len(), queue.bytes()), (2, 0, 5), "while one is on its way in");
        queue.entered(2, 5, None);
        assert_eq!((queue.next(), queue.bytes()), (2, 0));
        // One that was there and is not known, as its caller has gone, was not answered.
        assert_eq!(queue.enter(1), 2);
        queue.entered(2, 1, Some((3, Millis::new(8))));
        assert_eq!((queue.next(), queue.enter(1)), (3, 4));
        queue.done(3);
        assert_eq!(queue.next(), 4);
    }

    #[test]
    fn what_is_due_is_in_order_and_waits_for_first_sends() {
        let mut queue = Queue::default();
        for offset in 0..3 {
            let began = queue.enter(1);
            queue.entered(began, 1, Some((offset, Millis::new(offset))));
        }
        let none_is_old = Millis::new(0);
        queue.ready(1);
        assert_eq!(queue.due(9, none_is_old), [[], []], "the first send of 0 is under way");
        queue.ready(0);
        let due = |offset, attempt| Due { offset, at: Millis::new(offset), attempt };
        assert_eq!(queue.due(9, none_is_old), [vec![], vec![due(0, 2), due(1, 2)]]);
        queue.tried(0);
        assert_eq!(queue.due(1, none_is_old), [vec![], vec![due(0, 3)]]);
    }

    #[test]
    fn what_is_too_old_takes_no_room_from_what_is_sent() {
        let mut queue = Queue::default();
        for offset in 0..7 {
            let began = queue.enter(1);
            queue.entered(began, 1, Some((offset, Millis::new(offset))));
            queue.ready(offset);
        }
        let check = |too_old, expected: [&[Offset]; 2]| {
            let due = queue.due(2, Millis::new(too_old));
            assert_eq!(due.map(|due| due.iter().map(|due| due.offset).collect::<Vec<_>>()), expected, "{too_old}");
        };
        check(0, [&[], &[0, 1]]);
        check(1, [&[0], &[1, 2]]);
        check(4, [&[0, 1], &[4, 5]]);
        check(9, [&[0, 1], &[]]);
    }

    /// A disk that gives so many records, and then nothing: at once, or without an answer.
    struct Silent {
        records: i64,
        hangs: bool,
    }

    #[async_trait::async_trait]
    impl Consumer for Silent {
        async fn poll(&mut self, _: usize, _: Duration) -> Result<Vec<Record>, LogError> {
            if self.records == 0 && self.hangs {
                std::future::pending::<()>().await;
            }
            let records = 0..std::mem::take(&mut self.records);
            let record = |offset| Record { partition: 0, offset, appended_at: Millis::new(7), value: "click".into() };
            Ok(records.map(record).collect())
        }

        fn next(&self) -> Offsets {
            Offsets::default()
        }
    }

    #[tokio::test]
    async fn a_disk_that_gives_nothing_at_a_start_is_not_waited_for_without_end() {
        for hangs in [false, true] {
            let mut queue = Queue::default();
            let filled = queue.fill(&mut Silent { records: 3, hangs }, 0..5, Duration::from_millis(20)).await;
            assert_eq!((filled.unwrap(), queue.len(), queue.bytes()), (3, 3, 15), "two are missing, and that is said");
            let mut queue = Queue::default();
            let filled = queue.fill(&mut Silent { records: 5, hangs }, 0..5, Duration::from_millis(20)).await;
            assert_eq!(filled.unwrap(), 5);
        }
        let unread = SpoolError::Unread {
            dir: "data/spool/log".into(),
            partition: 2,
            from: 3,
            to: 5,
            waited: Duration::from_secs(10),
        };
        assert_eq!(
            unread.to_string(),
            "data/spool/log: the clicks of partition 2 from offset 3 to 5 wait there, and the disk gives none of them within 10s"
        );
    }
}
