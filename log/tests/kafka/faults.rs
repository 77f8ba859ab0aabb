//! A broker that dies and one that stands still, while records are appended and read.

use crate::conformance::read_all;
use crate::support::{LONG, Test, settings};
use bytes::Bytes;
use click::{Offsets, Partition};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;
use tally_log::kafka::Settings;
use tally_log::{Acknowledgement, Log, LogError, Record, Topic};

const APPENDERS: usize = 16;

/// What appenders were told: by value, the place where the record is, or that nobody knows.
pub type Told = HashMap<String, Option<(Partition, i64)>>;

/// Append until they are told to stop, many records in flight at each appender, and each in the order of its numbers.
pub struct Appenders {
    tasks: Vec<tokio::task::JoinHandle<Told>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
}

impl Appenders {
    pub fn start(log: &Arc<dyn Log>, topic: &Topic) -> Appenders {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = |i: usize| {
            let (log, topic, stop, acknowledged) = (log.clone(), topic.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut told = Told::new();
                let mut in_flight: Vec<(String, Acknowledgement)> = Vec::new();
                let partition = i as Partition % topic.partitions;
                for n in 0.. {
                    if in_flight.len() == 8 || stop.load(Ordering::Relaxed) {
                        for (value, answer) in in_flight.drain(..) {
                            let place = answer.await.ok().map(|appended| (appended.partition, appended.offset));
                            acknowledged.fetch_add(usize::from(place.is_some()), Ordering::Relaxed);
                            told.insert(value, place);
                        }
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let value = format!("{i} {n}");
                    match log.append(&topic, partition, Some(b"key"), Bytes::from(value.clone())).await {
                        Ok(answer) => in_flight.push((value, answer)),
                        Err(_) => _ = told.insert(value, None),
                    }
                }
                told
            })
        };
        Appenders { tasks: (0..APPENDERS).map(task).collect(), stop, acknowledged }
    }

    pub async fn until_acknowledged(&self, more: usize) {
        let until = self.acknowledged.load(Ordering::Relaxed) + more;
        while self.acknowledged.load(Ordering::Relaxed) < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Told::new();
        for task in self.tasks {
            told.extend(task.await.unwrap());
        }
        told
    }
}

/// Reads all partitions of a topic along, through whatever happens to its brokers.
pub struct Follower {
    task: tokio::task::JoinHandle<Vec<Vec<Record>>>,
    ended: Arc<AtomicBool>,
    /// By partition, the offset after the last record that was read.
    pub seen: Arc<Vec<AtomicI64>>,
}

impl Follower {
    pub fn start(test: &Test) -> Follower {
        let (log, topic, ended) = (test.log.clone(), test.topic.clone(), Arc::new(AtomicBool::new(false)));
        let seen: Arc<Vec<AtomicI64>> = Arc::new((0..topic.partitions).map(|_| AtomicI64::new(0)).collect());
        let (is_over, reached) = (ended.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let start = Offsets::beginning(topic.partitions);
            let mut consumer = log.consumer(&topic, &start).await.unwrap();
            let mut read = vec![Vec::new(); topic.partitions as usize];
            loop {
                let last = is_over.load(Ordering::Acquire);
                let records = consumer.poll(1_000, Duration::from_secs(2)).await.unwrap();
                if records.is_empty() && last {
                    return read;
                }
                for record in records {
                    reached[record.partition as usize].store(record.offset + 1, Ordering::Relaxed);
                    read[record.partition as usize].push(record);
                }
            }
        });
        Follower { task, ended, seen }
    }

    /// All records, by partition, when nothing more is appended.
    pub async fn end(self) -> Vec<Vec<Record>> {
        self.ended.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

/// Every acknowledged record is where it was said to be, and nowhere else; no record is there that was not appended, and
/// none twice, since nobody sent one again; each appender's are in its order.
pub fn check(told: &Told, read: &[Vec<Record>]) {
    let mut seen = HashMap::new();
    let mut last = HashMap::new();
    for record in read.iter().flatten() {
        let value = String::from_utf8(record.value.to_vec()).unwrap();
        let (appender, number) = value.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        let before = last.insert(appender.to_owned(), number);
        assert!(before.is_none_or(|before| before < number), "{value} after {before:?}");
        assert!(told.contains_key(&value), "{value} was not appended");
        assert_eq!(seen.insert(value.clone(), (record.partition, record.offset)), None, "{value} is there twice");
    }
    for (value, place) in told {
        if let Some(place) = place {
            assert_eq!(seen.get(value), Some(place), "{value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_record_is_there_once_after_the_broker_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut broker) = services::kafka::Kafka::start(dir.path()) else { return };
    let test = Test::with(settings(broker.port())).await;
    let appenders = Appenders::start(&test.log, &test.topic);
    let follower = Follower::start(&test);
    for _ in 0..2 {
        appenders.until_acknowledged(2_000).await;
        broker.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        broker.restart();
    }
    appenders.until_acknowledged(2_000).await;
    let told = appenders.end().await;
    let read = read_all(&*test.log, &test.topic).await.unwrap();
    check(&told, &read);
    assert!(told.values().flatten().count() >= 6_000);
    assert_eq!(follower.end().await, read);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stands_still_delays_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(broker) = services::kafka::Kafka::start(dir.path()) else { return };
    let quick = Settings { request_timeout: Duration::from_secs(1), ..settings(broker.port()) };
    let test = Test::with(Settings { in_flight_bytes_max: 4 << 20, ..quick }).await;
    let appenders = Appenders::start(&test.log, &test.topic);
    appenders.until_acknowledged(1_000).await;
    let end = test.log.held(&test.topic, 0).await.unwrap().end;
    broker.signal("STOP");
    // Requests time out and are sent again meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One partition is full; another takes records all the same.
    let largest = Bytes::from(vec![0; 1 << 20]);
    let mut answers = Vec::new();
    let full = loop {
        let append = test.log.append(&test.topic, 0, None, largest.clone());
        match tokio::time::timeout(Duration::from_millis(500), append).await {
            Ok(answer) => answers.push(answer.unwrap()),
            Err(_) => break answers.len(),
        }
    };
    assert!((1..=4).contains(&full), "{full} MiB were taken");
    let other = tokio::time::timeout(LONG, test.log.append(&test.topic, 1, None, "0 999999999".into()));
    let other = other.await.expect("the other partition has room").unwrap();
    let asked = test.log.held(&test.topic, 0).await.unwrap_err();
    assert!(matches!(asked, LogError::Kafka { .. }), "{asked}");
    broker.signal("CONT");
    for answer in answers {
        answer.await.unwrap();
    }
    other.await.unwrap();
    appenders.until_acknowledged(1_000).await;
    let told = appenders.end().await;
    assert!(told.values().all(Option::is_some), "the broker came back before any record was given up");
    let mut read = read_all(&*test.log, &test.topic).await.unwrap();
    assert!(read[0].len() as i64 > end);
    for records in &mut read {
        records.retain(|record| record.value != largest && record.value != "0 999999999");
    }
    check(&told, &read);
}

/// The acknowledgement says that it was not delivered, as late as is set.
#[tokio::test]
async fn a_record_that_cannot_be_delivered_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut broker) = services::kafka::Kafka::start(dir.path()) else { return };
    let quick = Duration::from_millis(500);
    let test = Test::with(Settings { request_timeout: LONG, delivery_timeout: LONG, ..settings(broker.port()) }).await;
    let log = tally_log::kafka::KafkaLog::new(Settings {
        request_timeout: quick,
        delivery_timeout: quick,
        ..test.settings.clone()
    });
    let log = log.unwrap();
    let until_delivered = async |value: &'static str| loop {
        if let Ok(appended) = log.append(&test.topic, 0, None, value.into()).await.unwrap().await {
            return appended;
        }
    };
    until_delivered("delivered").await;
    broker.kill();
    let answer = log.append(&test.topic, 0, None, "given up".into()).await.unwrap();
    let error = answer.await.unwrap_err();
    assert!(error.to_string().starts_with("Kafka at 127.0.0.1:"), "{error}");
    broker.restart();
    // Once the broker is back, what follows is delivered, in its place.
    let next = until_delivered("next").await;
    let read = read_all(&*test.log, &test.topic).await.unwrap();
    assert_eq!(read[0][0].value, "delivered");
    assert_eq!((read[0].last().unwrap().offset, &read[0].last().unwrap().value[..]), (next.offset, &b"next"[..]));
}
