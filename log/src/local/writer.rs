//! The thread that writes a topic: all that waits becomes one group, one write and one fsync.

use super::frame::{self, Builder, Kind};
use super::recover::INDEX_STEP;
use super::segment::{self, Place};
use super::topic::{LocalTopic, Waiting, lock};
use crate::durable::{self, File};
use crate::{Appended, LogError};
use click::{Offset, Partition};
use faults::Point;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Writes one topic.
pub struct Writer {
    topic: Arc<LocalTopic>,
    file: File,
    builder: Builder,
    /// Where the next frame goes. The same as the topic's end, which readers see, between two groups.
    end: Place,
    segment: u64,
    /// Up to here the file has bytes: after the last frame they are zeros, room for the next ones.
    room: u64,
    /// Where the newest entry of the index is.
    indexed_at: u64,
    /// The offsets of the group that is being written, in its order.
    offsets: Vec<Offset>,
    /// How many records were being written or waiting when the last commit ended, and how long it took.
    crowd: usize,
    took: Duration,
}

/// The part of a commit's time that the next one may wait for company, and the most that it waits.
const LINGER_PART: u32 = 4;
const LINGER_MAX: Duration = Duration::from_millis(1);

/// How much room is made at once. An fsync of a file that has grown waits for the file system's journal as well, which
/// takes twice as long as one of bytes that have their place; so one in many grows it. It is small, so that no click
/// waits for more than a moment of zeros.
const ROOM_STEP: u64 = 256 << 10;

impl Writer {
    /// Goes on at the topic's end, in the file of its last segment.
    pub fn new(topic: Arc<LocalTopic>, file: File) -> Writer {
        let end = topic.end.borrow().clone();
        let indexed_at = topic.segments().index.last().map_or(0, |entry| entry.at);
        Writer {
            topic,
            file,
            builder: Builder::new(),
            end: end.place,
            segment: end.segment,
            room: 0,
            indexed_at,
            offsets: Vec::new(),
            crowd: 0,
            took: Duration::ZERO,
        }
    }

    /// Writes until the log is closed or something fails.
    pub fn run(mut self) {
        let mut group = Vec::new();
        while self.wait(&mut group) {
            let begun = Instant::now();
            // If the process dies before the sync, nobody was told; after it, the records are found at the next open.
            if let Err(error) = self.commit(&group) {
                for waiting in group.drain(..) {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
                return self.stop(error.to_string());
            }
            self.took = begun.elapsed();
            self.crowd = group.len() + lock(&self.topic.queue).waiting.len();
            self.acknowledge(&mut group);
            if self.end.at >= self.topic.segment_bytes_max
                && let Err(error) = self.roll()
            {
                return self.stop(error.to_string());
            }
        }
        // Both only make the next open quicker, and more certain of the last group.
        if let Err(error) = self.file.set_len(self.end.at) {
            tracing::warn!(topic = self.topic.topic.name, %error, "the room after the log's end stays");
        }
        let mut manifest = lock(&self.topic.manifest);
        manifest.durable_bytes = self.end.at;
        if let Err(error) = manifest.write(&self.topic.dir) {
            tracing::warn!(topic = self.topic.topic.name, %error, "the end of the log could not be noted");
        }
        drop(manifest);
        self.stop("the log was closed".into());
    }

    /// Takes all that waits; `false` when there is nothing and will be nothing.
    ///
    /// Callers that were just answered tend to come back at once. A commit that begins without them halves what shares
    /// an fsync, so it waits for as many as came last time, but only for a small part of what a commit takes.
    fn wait(&self, group: &mut Vec<Waiting>) -> bool {
        let mut queue = lock(&self.topic.queue);
        queue.wake_at = 1;
        while queue.waiting.is_empty() && !queue.closing {
            queue = self.topic.came.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.wake_at = self.crowd;
        let until = Instant::now() + (self.took / LINGER_PART).min(LINGER_MAX);
        while queue.waiting.len() < self.crowd && !queue.closing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.topic.came.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut queue.waiting, group);
        !group.is_empty()
    }

    /// Makes a group durable and shows it to readers.
    fn commit(&mut self, group: &[Waiting]) -> Result<(), LogError> {
        // Never below the group before, whatever the clock does.
        let time = self.topic.clock.now().max(self.end.time);
        let mut next = self.end.next.clone();
        self.offsets.clear();
        let body = self.builder.begin();
        for Waiting { partition, value, .. } in group {
            let offset = next[*partition];
            next[*partition] += 1;
            self.offsets.push(offset);
            frame::push_record(body, *partition, offset, value);
        }
        let frame = self.builder.end(self.topic.seed, Kind::Group, self.end.number, time, group.len());
        faults::at(Point::AppendBefore);
        let at = self.end.at + frame.len() as u64;
        self.file.write_all_at(frame, self.end.at)?;
        if at > self.room {
            self.room = at.next_multiple_of(ROOM_STEP);
            self.file.write_all_at(&vec![0; (self.room - at) as usize], at)?;
        }
        self.file.sync()?;
        faults::at(Point::AppendAfter);
        let end = Place { at, number: self.end.number + 1, time, next };
        let before = std::mem::replace(&mut self.end, end);
        if before.at - self.indexed_at >= INDEX_STEP {
            self.indexed_at = before.at;
            self.topic.segments.write().unwrap_or_else(PoisonError::into_inner).index.push(before);
        }
        self.topic.end.send_modify(|end| end.place.clone_from(&self.end));
        Ok(())
    }

    fn acknowledge(&self, group: &mut Vec<Waiting>) {
        for (waiting, offset) in group.drain(..).zip(&self.offsets) {
            let partition = waiting.partition as Partition;
            // An answer that nobody waits for was a caller's to drop.
            let _ = waiting.answer.send(Ok(Appended { partition, offset: *offset, appended_at: self.end.time }));
        }
    }

    /// Seals the segment and goes on in a new one. Every step is durable before the next: a process that dies after
    /// one of them leaves a topic that the next open completes.
    fn roll(&mut self) -> Result<(), LogError> {
        let topic = &self.topic;
        let index = topic.segments().index.clone();
        let seal = segment::seal(&mut self.builder, topic.seed, &self.end, &index);
        // A seal is found from the end of its file. The room goes first: what is in the file stays whole in between.
        self.file.set_len(self.end.at)?;
        self.file.write_all_at(seal, self.end.at)?;
        self.file.sync()?;
        faults::at(Point::SegmentSealed);
        let before = Place { number: self.end.number + 1, ..self.end.clone() };
        let new = segment::create(&topic.dir, &topic.topic, self.segment + 1, &before)?;
        durable::sync_dir(&topic.dir)?;
        faults::at(Point::SegmentCreated);
        {
            let mut manifest = lock(&topic.manifest);
            manifest.last_segment = new.number;
            manifest.durable_bytes = new.start.at;
            manifest.write(&topic.dir)?;
        }
        self.file = File::open_to_write(&new.path)?;
        self.room = 0;
        let sealed = std::mem::replace(&mut self.end, new.start.clone());
        (self.segment, self.indexed_at) = (new.number, new.start.at);
        let mut segments = topic.segments.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = segments.held.last_mut() {
            last.sealed = Some(sealed);
        }
        segments.index = vec![new.start.clone()];
        segments.held.push(new);
        drop(segments);
        topic.end.send_modify(|end| {
            end.segment = self.segment;
            end.place.clone_from(&self.end);
        });
        Ok(())
    }

    /// Takes nothing more, and says so to all that wait.
    fn stop(&self, why: String) {
        let waiting = {
            let mut queue = lock(&self.topic.queue);
            queue.stopped.get_or_insert(why.clone());
            std::mem::take(&mut queue.waiting)
        };
        for waiting in waiting {
            let _ = waiting.answer.send(Err(LogError::Stopped(why.clone())));
        }
    }
}

impl Drop for Writer {
    /// Also when it ends by a panic, nobody may wait for ever.
    fn drop(&mut self) {
        self.stop("its writer ended".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{LocalLog, Settings, recover};
    use crate::{Acknowledgement, Consumer};
    use click::{Offsets, SystemClock};
    use std::future::poll_fn;
    use std::path::Path;
    use std::task::Poll;

    /// A topic whose writer is not running yet, and whose segment is this file, if one is given.
    async fn topic(dir: &Path, file: Option<&str>) -> (Arc<LocalTopic>, Writer) {
        let (log, _) = LocalLog::open(dir, Settings::default(), Arc::new(SystemClock)).unwrap();
        log.create_topic("clicks", 1).await.unwrap();
        drop(log);
        let dir = dir.join("topics/clicks");
        let mut found = recover::open(&dir, "clicks", &mut Vec::new()).unwrap();
        if let Some(file) = file {
            found.file = File::open_to_write(Path::new(file)).unwrap();
        }
        LocalTopic::new(found, dir, Arc::new(SystemClock), 1 << 20)
    }

    async fn append(topic: &LocalTopic, bytes: usize) -> Acknowledgement {
        topic.append(0, vec![0; bytes].into()).await.unwrap()
    }

    /// The null device takes every write and refuses the fsync; the full one refuses the write.
    #[tokio::test]
    async fn what_could_not_be_made_durable_is_not_acknowledged_and_never_seen() {
        for device in ["/dev/null", "/dev/full"] {
            let dir = tempfile::tempdir().unwrap();
            let (topic, writer) = topic(dir.path(), Some(device)).await;
            let mut consumer = topic.clone().consumer(&Offsets::beginning(1)).unwrap();
            let answers = [append(&topic, 10).await, append(&topic, 10).await];
            let waits = tokio::spawn(async move {
                let polled = consumer.poll(10, Duration::from_secs(1)).await.unwrap();
                (consumer, polled)
            });
            std::thread::spawn(|| writer.run()).join().unwrap();
            for answer in answers {
                match answer.await.unwrap_err() {
                    LogError::Io { path, .. } => assert_eq!(path, Path::new(device)),
                    other => panic!("{other}"),
                }
            }
            assert_eq!(topic.held(0).unwrap(), 0..0);
            let (mut consumer, polled) = waits.await.unwrap();
            assert_eq!(polled, []);
            // Nothing is tried again, and what comes later is refused at once.
            let refused = topic.append(0, "x".into()).await.err().unwrap().to_string();
            assert!(refused.starts_with("the log takes nothing more since an earlier failure: /dev/"), "{refused}");
            assert_eq!(consumer.poll(10, Duration::ZERO).await.unwrap(), []);
        }
    }

    #[tokio::test]
    async fn appends_wait_for_room_and_what_waits_is_written_when_the_log_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (topic, writer) = topic(dir.path(), None).await;
        let mut answers = Vec::new();
        for _ in 0..7 {
            answers.push(append(&topic, 1 << 20).await);
        }
        let mut eighth = Box::pin(append(&topic, 1 << 20));
        let waits = poll_fn(|context| Poll::Ready(eighth.as_mut().poll(context).is_pending())).await;
        assert!(waits, "more is in flight than one group can hold");
        let writer = std::thread::spawn(|| writer.run());
        answers.push(eighth.await);
        for (offset, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap().offset, offset as i64);
        }
        let last = append(&topic, 5).await;
        lock(&topic.queue).closing = true;
        topic.came.notify_one();
        writer.join().unwrap();
        assert_eq!(last.await.unwrap().offset, 8);
        assert!(matches!(topic.append(0, "x".into()).await, Err(LogError::Stopped(_))));
    }
}
