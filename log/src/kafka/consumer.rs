//! Reads a topic from given offsets on, and follows it.
//!
//! A thread polls librdkafka and hands batches over. librdkafka goes on in a topic that was made anew as if it were the
//! old one, at the same offsets. So before a batch is handed over, a broker is asked for the topic's id: it was fetched
//! by then, and an id never comes back, so a batch before the answer "still the same" is of the topic that was asked for.

use super::Context;
use super::query::{Query, same};
use super::statistics::Watch;
use crate::{Consumer, LogError, Record, Topic};
use async_trait::async_trait;
use bytes::BytesMut;
use click::{Millis, Offset, Offsets, Partition};
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Most records and bytes of a batch.
const BATCH_RECORDS_MAX: usize = 8_192;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Batches that may wait to be polled. With the queue of librdkafka they bound what a consumer holds.
const BATCHES_MAX: usize = 2;

/// How long the thread sleeps at most, and so how soon it sees that it must end.
const POLL: Duration = Duration::from_millis(100);

/// At most so often is a broker asked for the topic's id. A record waits for up to as long.
const LOOK_SPACING: Duration = Duration::from_millis(20);

/// How long it is waited after a broker did not answer that question.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

pub struct KafkaConsumer {
    batches: mpsc::Receiver<Result<Vec<Record>, LogError>>,
    /// What was received and not polled yet.
    ready: std::vec::IntoIter<Record>,
    next: Offsets,
    /// Nothing comes after an error, and it stays the answer.
    failed: Option<LogError>,
}

impl KafkaConsumer {
    /// Blocks until a broker has said what the topic holds.
    pub fn new(context: Arc<Context>, query: Arc<Query>, topic: Topic, start: Offsets) -> Result<Self, LogError> {
        query.same(&topic, || {
            for (partition, offset) in start.iter() {
                in_range(&topic, partition, offset, query.held(&topic, partition)?)?;
            }
            Ok(())
        })?;
        let watch = Watch::new(context.statistics.clone());
        let client = BaseConsumer::from_config_and_context(&context.settings.consumer(), watch);
        let client: BaseConsumer<Watch> = client.map_err(super::settings::refused)?;
        let assigned = assign(&client, &topic, &start);
        assigned.map_err(|error| context.failed(format!("read topic {:?}", topic.name), error))?;
        let (sender, batches) = mpsc::channel(BATCHES_MAX);
        let next = start.iter().collect();
        let looked = Instant::now();
        let reader = Reader { context: context.clone(), client, query, topic, next, batches: sender, looked };
        // It ends by itself when this consumer is dropped.
        let thread = std::thread::Builder::new().name("kafka-consumer".into()).spawn(move || reader.run());
        thread.map_err(|error| context.failed("start the thread of a consumer", error))?;
        Ok(KafkaConsumer { batches, ready: Vec::new().into_iter(), next: start, failed: None })
    }
}

fn assign(client: &BaseConsumer<Watch>, topic: &Topic, start: &Offsets) -> Result<(), KafkaError> {
    let mut partitions = TopicPartitionList::new();
    for (partition, offset) in start.iter() {
        partitions.add_partition_offset(&topic.name, partition, rdkafka::Offset::Offset(offset))?;
    }
    client.assign(&partitions)
}

fn in_range(topic: &Topic, partition: Partition, offset: Offset, held: Range<Offset>) -> Result<(), LogError> {
    if (held.start..=held.end).contains(&offset) {
        return Ok(());
    }
    Err(LogError::OutOfRange { topic: topic.name.clone(), partition, offset, held })
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<Record>, LogError> {
        if self.ready.len() == 0 && records_max > 0 {
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            // If this future is dropped here, the batch stays in the channel.
            match tokio::time::timeout(wait, self.batches.recv()).await {
                Err(_) => {}
                Ok(Some(Ok(batch))) => self.ready = batch.into_iter(),
                Ok(ended) => {
                    let stopped = || LogError::Stopped("the thread of a Kafka consumer ended".into());
                    let error = ended.and_then(Result::err).unwrap_or_else(stopped);
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
        let records: Vec<Record> = self.ready.by_ref().take(records_max).collect();
        for record in &records {
            self.next.set(record.partition, record.offset + 1);
        }
        Ok(records)
    }

    fn next(&self) -> Offsets {
        self.next.clone()
    }
}

/// What the thread of a consumer works with.
struct Reader {
    context: Arc<Context>,
    client: BaseConsumer<Watch>,
    /// Has connections of its own: on those that fetch, a question waits until the fetch before it is answered, which
    /// takes half a second where nothing is appended.
    query: Arc<Query>,
    topic: Topic,
    /// The next offset of every partition that is read.
    next: BTreeMap<Partition, Offset>,
    batches: mpsc::Sender<Result<Vec<Record>, LogError>>,
    /// When the topic's id was last asked for.
    looked: Instant,
}

impl Reader {
    fn run(mut self) {
        while !self.batches.is_closed() {
            let mut batch = Batch::default();
            let filled = self.fill(&mut batch);
            // What came before an error is handed over before it.
            let handed_over = self.hand_over(batch).and(filled);
            if let Err(error) = handed_over {
                let _ = self.batches.blocking_send(Err(error));
                return;
            }
        }
    }

    /// Takes what is there, and waits a little for the first record.
    fn fill(&mut self, batch: &mut Batch) -> Result<(), LogError> {
        let mut wait = POLL;
        while !batch.is_full() {
            match self.client.poll(wait) {
                Some(Ok(message)) => take(&message, &self.topic, &mut self.next, batch)?,
                Some(Err(error)) => self.judge(error)?,
                None if batch.is_empty() || wait.is_zero() => break,
                None => {}
            }
            wait = if batch.is_empty() { POLL } else { LOOK_SPACING.saturating_sub(self.looked.elapsed()) };
        }
        Ok(())
    }

    /// Hands a batch over when it is certain which topic it came from.
    fn hand_over(&mut self, batch: Batch) -> Result<(), LogError> {
        if batch.is_empty() && self.looked.elapsed() < self.context.settings.check_every {
            return Ok(());
        }
        self.look()?;
        if !batch.is_empty() {
            // Waits while enough is waiting to be polled. A consumer that was dropped is seen by the caller.
            let _ = self.batches.blocking_send(Ok(batch.into_records()));
        }
        Ok(())
    }

    /// Asks whether the topic is still the same one, again and again while no broker answers: nothing is read then
    /// either.
    fn look(&mut self) -> Result<(), LogError> {
        loop {
            let now = self.query.topic(&self.topic.name);
            self.looked = Instant::now();
            match now {
                Ok(now) => return same(&self.topic, &now),
                Err(LogError::Kafka { error, .. }) if !self.batches.is_closed() => {
                    tracing::warn!(
                        topic = self.topic.name,
                        error,
                        "records wait until a broker has told the topic's id"
                    );
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether an error of librdkafka's ends the reading. Others it gets over by itself, and a record that it left out
    /// would be missed by its offset.
    fn judge(&mut self, error: KafkaError) -> Result<(), LogError> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset) => {
                // In a topic that was made anew the offset is out of range, too.
                self.look()?;
                Err(self.out_of_range(error))
            }
            Some(
                Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId,
            ) => self.look(),
            Some(
                Code::BadMessage
                | Code::BadCompression
                | Code::InvalidMessage
                | Code::InvalidMessageSize
                | Code::MessageSizeTooLarge
                | Code::LogTruncation
                | Code::NotImplemented
                | Code::UnsupportedFeature
                | Code::TopicAuthorizationFailed
                | Code::Fatal,
            ) => Err(self.context.failed(format!("read topic {:?}", self.topic.name), error)),
            _ => {
                tracing::debug!(topic = self.topic.name, %error, "kafka consumer");
                Ok(())
            }
        }
    }

    /// Finds the partition whose offset a broker refused.
    fn out_of_range(&self, error: KafkaError) -> LogError {
        for (partition, offset) in &self.next {
            let Ok(held) = self.query.held(&self.topic, *partition) else { continue };
            if let Err(error) = in_range(&self.topic, *partition, *offset, held) {
                return error;
            }
        }
        self.context.failed(format!("read topic {:?}", self.topic.name), error)
    }
}

/// Copies a record, if it is the one that should follow.
fn take(
    message: &BorrowedMessage<'_>,
    topic: &Topic,
    next: &mut BTreeMap<Partition, Offset>,
    batch: &mut Batch,
) -> Result<(), LogError> {
    let (partition, offset) = (message.partition(), message.offset());
    let Some(next) = next.get_mut(&partition).filter(|next| **next <= offset) else { return Ok(()) };
    if *next != offset {
        return Err(LogError::Missing { topic: topic.name.clone(), partition, expected: *next, found: offset });
    }
    let Timestamp::LogAppendTime(at) = message.timestamp() else {
        return Err(LogError::NotAppendTime { topic: topic.name.clone() });
    };
    *next += 1;
    batch.push(partition, offset, Millis::new(at), message.payload().unwrap_or_default());
    Ok(())
}

/// Records whose values lie in one piece of memory.
#[derive(Default)]
struct Batch {
    values: BytesMut,
    records: Vec<(Partition, Offset, Millis, Range<usize>)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn is_full(&self) -> bool {
        self.records.len() >= BATCH_RECORDS_MAX || self.values.len() >= BATCH_BYTES_MAX
    }

    fn push(&mut self, partition: Partition, offset: Offset, appended_at: Millis, value: &[u8]) {
        let begin = self.values.len();
        self.values.extend_from_slice(value);
        self.records.push((partition, offset, appended_at, begin..self.values.len()));
    }

    fn into_records(self) -> Vec<Record> {
        let values = self.values.freeze();
        let record = |(partition, offset, appended_at, value)| Record {
            partition,
            offset,
            appended_at,
            value: values.slice(value),
        };
        self.records.into_iter().map(record).collect()
    }
}
