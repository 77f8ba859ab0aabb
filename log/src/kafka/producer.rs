//! Appends records, many in flight, and makes itself anew when librdkafka can go on no longer.
//!
//! What a death of the process leaves, at each step of an append:
//! * before `send`: nothing;
//! * after it, before the broker's answer: the record may or may not be in the topic, and nobody was told;
//! * after the broker's answer, before the acknowledgement resolves: it is in the topic, and nobody was told;
//! * after the acknowledgement: it is in the topic, on every replica that is in sync.

use super::Context;
use super::statistics::Watch;
use crate::{Acknowledgement, Appended, LogError, RECORD_BYTES_MAX};
use click::{Millis, Partition};
use faults::Point;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message, Timestamp};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bytes that a record in flight counts for beside its key and value: what is around it in memory.
const RECORD_OVERHEAD: usize = 256;

/// How long what is in flight may still be acknowledged when the producer is dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long the thread of a producer sleeps at most, and so how soon it sees that it must end.
const POLL: Duration = Duration::from_millis(50);

/// How often an append tries again that librdkafka had no room for or whose producer had to be made anew.
const ATTEMPTS: usize = 100;
const ATTEMPT_WAIT: Duration = Duration::from_millis(10);

/// Where a record goes.
pub struct Target {
    pub topic: Arc<str>,
    pub partition: Partition,
    /// Bytes that may still be in flight to the partition.
    pub room: Arc<Semaphore>,
}

pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    context: Arc<Context>,
    current: RwLock<Arc<Running>>,
    /// Held while a producer is made anew, so that one loss makes one.
    making: Mutex<()>,
    closing: AtomicBool,
    /// The threads that poll producers. Each ends with its producer.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

type Running = BaseProducer<Deliveries>;

/// A record that librdkafka has.
pub struct InFlight {
    answer: oneshot::Sender<Result<Appended, LogError>>,
    topic: Arc<str>,
    /// Given back when the record is delivered or given up, also when nobody waits for the answer.
    _room: OwnedSemaphorePermit,
}

impl Producer {
    /// Starts a producer. Nothing is connected yet.
    pub fn new(context: Arc<Context>) -> Result<Self, LogError> {
        let running = start(&context)?;
        let shared = Arc::new(Shared {
            context,
            current: RwLock::new(running.clone()),
            making: Mutex::new(()),
            closing: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        shared.poll_in_a_thread(running)?;
        Ok(Producer { shared })
    }

    /// See [`crate::Log::append`].
    pub async fn append(&self, to: Target, key: Option<&[u8]>, value: &[u8]) -> Result<Acknowledgement, LogError> {
        let bytes = value.len() + key.map_or(0, <[u8]>::len);
        if bytes > RECORD_BYTES_MAX {
            return Err(LogError::TooLarge { bytes, bytes_max: RECORD_BYTES_MAX });
        }
        let closed = || LogError::Stopped("the log was closed".into());
        let room = (bytes + RECORD_OVERHEAD) as u32;
        let room = to.room.acquire_many_owned(room).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let mut in_flight = Box::new(InFlight { answer, topic: to.topic.clone(), _room: room });
        for _ in 0..ATTEMPTS {
            let running = self.shared.current();
            // In one statement, since a record holds pointers that may not be kept over an await.
            let sent = send(&running, &to.topic, to.partition, key, value, in_flight);
            let (error, back) = match sent {
                Ok(()) => return Ok(Box::pin(async move { answered.await.unwrap_or_else(|_| Err(closed())) })),
                Err(refused) => refused,
            };
            in_flight = back;
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => tokio::time::sleep(ATTEMPT_WAIT).await,
                Some(RDKafkaErrorCode::Fatal) => self.shared.make_anew(&running)?,
                _ => return Err(self.shared.context.failed("append", error)),
            }
        }
        Err(self.shared.context.failed("append", KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)))
    }
}

type Refused = (KafkaError, Box<InFlight>);

fn send(
    running: &Running,
    topic: &str,
    partition: Partition,
    key: Option<&[u8]>,
    value: &[u8],
    in_flight: Box<InFlight>,
) -> Result<(), Refused> {
    let mut record = BaseRecord::with_opaque_to(topic, in_flight).partition(partition).payload(value);
    record.key = key;
    running.send(record).map_err(|(error, record)| (error, record.delivery_opaque))
}

fn start(context: &Arc<Context>) -> Result<Arc<Running>, LogError> {
    let deliveries = Deliveries { context: context.clone(), watch: Watch::new(context.statistics.clone()) };
    let running = BaseProducer::from_config_and_context(&context.settings.producer(), deliveries);
    Ok(Arc::new(running.map_err(super::settings::refused)?))
}

impl Shared {
    fn current(&self) -> Arc<Running> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new producer in the place of one that can go on no longer. What the old one has in flight fails, since
    /// nobody can say whether it was taken.
    fn make_anew(self: &Arc<Self>, old: &Arc<Running>) -> Result<(), LogError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&self.current(), old) {
            return Ok(());
        }
        let why = old.client().fatal_error().map_or_else(String::new, |(code, why)| format!("{code}: {why}"));
        tracing::error!(why, "the kafka producer lost its idempotence and is made anew");
        let new = start(&self.context)?;
        self.poll_in_a_thread(new.clone())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.context.statistics.producers_replaced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn poll_in_a_thread(self: &Arc<Self>, running: Arc<Running>) -> Result<(), LogError> {
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("kafka-producer".into()).spawn(move || shared.poll(running));
        let thread = thread.map_err(|error| self.context.failed("start the thread of a producer", error))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Takes delivery reports until the log is closed or another producer has taken over.
    fn poll(self: Arc<Self>, running: Arc<Running>) {
        while !self.closing.load(Ordering::Acquire) {
            running.poll(POLL);
            if running.client().fatal_error().is_some()
                && let Err(error) = self.make_anew(&running)
            {
                // The next append tries it again.
                tracing::error!(%error, "no producer could be made");
            }
            if !Arc::ptr_eq(&self.current(), &running) {
                break;
            }
        }
        // What is not acknowledged by now fails: its reports come through the same polls.
        if let Err(error) = running.flush(CLOSE_WAIT) {
            tracing::warn!(%error, "records in flight are given up");
        }
        running.purge(PurgeConfig::default().queue().inflight());
        if let Err(error) = running.flush(CLOSE_WAIT) {
            tracing::error!(%error, "not every record in flight was reported");
        }
    }
}

impl Drop for Producer {
    /// Waits until what is in flight is acknowledged, for at most a few seconds.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a kafka producer panicked");
            }
        }
    }
}

/// Takes what librdkafka reports.
struct Deliveries {
    context: Arc<Context>,
    watch: Watch,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.watch.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.watch.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let answer = match result {
            Ok(message) => match (message.offset(), message.timestamp()) {
                // An answer to a retry whose first try the broker has forgotten. It is in the topic, nobody knows where.
                (..0, _) => Err(self.context.failed("append", "it was taken, but its offset is not known")),
                (offset, Timestamp::LogAppendTime(at)) => {
                    faults::at(Point::KafkaAcknowledged);
                    Ok(Appended { partition: message.partition(), offset, appended_at: Millis::new(at) })
                }
                _ => Err(LogError::NotAppendTime { topic: in_flight.topic.to_string() }),
            },
            Err((error, _)) => Err(self.context.failed("append", error)),
        };
        // An answer that nobody waits for was a caller's to drop.
        let _ = in_flight.answer.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{KafkaLog, Settings, describe, topics};
    use crate::{Log, Topic};

    async fn append(log: &KafkaLog, topic: &Topic, value: &str) -> Result<Appended, LogError> {
        log.append(topic, 0, None, value.to_owned().into()).await?.await
    }

    /// Nobody can say whether it was taken, so its acknowledgement fails; what follows goes through the new producer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_in_flight_when_idempotence_is_lost_is_not_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let Some(broker) = services::kafka::Kafka::start(dir.path()) else { return };
        let brokers = vec![format!("127.0.0.1:{}", broker.port())];
        let settings = Settings { brokers, single_node: true, ..Settings::default() };
        topics::create_or_check(&settings, &["fatal"]).await.unwrap();
        let log = KafkaLog::new(settings).unwrap();
        let topic = log.topic("fatal").await.unwrap();
        append(&log, &topic, "before").await.unwrap();
        broker.signal("STOP");
        let in_flight = log.append(&topic, 0, None, "in flight".into()).await.unwrap();
        // Also with a record that waits behind the first one, in librdkafka's own queue.
        let waiting = log.append(&topic, 0, None, "waiting".into()).await.unwrap();
        describe::provoke_fatal_error(log.producer.shared.current().client());
        for answer in [in_flight, waiting] {
            assert!(matches!(answer.await.unwrap_err(), LogError::Kafka { .. }));
        }
        broker.signal("CONT");
        assert!(append(&log, &topic, "after").await.unwrap().offset >= 1);
    }

    /// What librdkafka does when it finds that it can no longer tell whether records were written once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_that_lost_its_idempotence_is_made_anew() {
        let Some(port) = services::kafka::shared() else { return };
        let settings =
            Settings { brokers: vec![format!("127.0.0.1:{port}")], single_node: true, ..Settings::default() };
        topics::create_or_check(&settings, &["fatal"]).await.unwrap();
        let log = KafkaLog::new(settings).unwrap();
        let topic = log.topic("fatal").await.unwrap();
        assert_eq!(append(&log, &topic, "before").await.unwrap().offset, 0);
        let shared = log.producer.shared.clone();
        let replaced = || shared.context.statistics.producers_replaced.load(Ordering::Relaxed);
        for round in 1..=3 {
            let old = shared.current();
            describe::provoke_fatal_error(old.client());
            // The append that meets it is handed to the new one.
            let appended = append(&log, &topic, "after").await.unwrap();
            assert_eq!(appended.offset, round);
            assert!(!Arc::ptr_eq(&old, &shared.current()));
            assert_eq!(replaced(), round as u64);
        }
        // Nobody appends: it is made anew all the same.
        describe::provoke_fatal_error(shared.current().client());
        while replaced() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(append(&log, &topic, "last").await.unwrap().offset, 4);
    }
}
