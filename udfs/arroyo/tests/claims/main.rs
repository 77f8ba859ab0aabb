//! `claim_click` through its C interface, in a process of its own, on a real Redis: every record has the one answer that
//! the definition gives it, whatever happens to either; and where that cannot be, there is no answer.

#![allow(clippy::unwrap_used)]

mod cases;
mod log;
mod worker;

use claims::{Billed, Claims, ClaimsError, Deployment, LogRecord, Rebuilt};
use click::{LogId, Millis, Offsets, Position};
use log::{expected, log, Random, Record, HORIZON_MS, LOG_ID, PARTITIONS, T0_MS};
use services::redis::{Redis, DURABLE};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use worker::{Answers, Worker};

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn log_id() -> LogId {
    LOG_ID.parse().unwrap()
}

fn deployment(version: i64, start: i64) -> Deployment {
    Deployment { version, log_id: log_id(), positions: (0..PARTITIONS).map(|partition| (partition, start)).collect() }
}

pub fn record(redis: &Redis, deployments: &[Deployment], horizon_ms: i64) -> Result<(), ClaimsError> {
    wait(async { Claims::connect(&redis.url()).await?.record(deployments, horizon_ms).await })
}

/// What `tally claims rebuild` does: the rows that version 1 billed before `start_2`, and the log from there on.
fn rebuild(redis: &Redis, log: &[Vec<Record>], start_2: Option<i64>) -> Rebuilt {
    let start = start_2.unwrap_or(0);
    let newest = if start_2.is_some() { 2 } else { 1 };
    let mut deployments = vec![deployment(1, 0)];
    deployments.extend(start_2.map(|start| deployment(2, start)));
    let answers = expected(log, start_2.unwrap_or(i64::MAX));
    let billed = |record: &&Record| record.offset < start && answers[&(record.partition, record.offset)] == Some(1);
    let rows = log.iter().flatten().filter(billed).map(|record| Billed {
        impression_id: record.key(1).unwrap().to_string(),
        position: Position { log_id: log_id(), partition: record.partition, offset: record.offset },
        appended_at: Millis::new(record.appended_ms),
        version: 1,
    });
    let from_log = log.iter().flatten().filter(|record| record.offset >= start).map(|record| LogRecord {
        claim_key: record.key(newest).map(str::to_string),
        partition: record.partition,
        offset: record.offset,
        appended_at: Millis::new(record.appended_ms),
    });
    let (rows, from_log) = (rows.map(Ok::<_, std::io::Error>), from_log.map(Ok));
    wait(async {
        let mut claims = Claims::connect(&redis.url()).await.unwrap();
        let from = Millis::new(T0_MS - HORIZON_MS);
        let (rows, from_log) = (futures::stream::iter(rows), futures::stream::iter(from_log));
        claims.rebuild(&deployments, HORIZON_MS, from, rows, from_log).await.unwrap()
    })
}

/// Every answer that was given is the one that is expected.
fn check(answers: &Answers, expected: &BTreeMap<(i32, i64), Option<i64>>) {
    for (place, given) in answers {
        for answer in given {
            assert_eq!(*answer, expected[place], "partition {} offset {}", place.0, place.1);
        }
    }
}

fn ask(worker: &mut Worker, log: &[Vec<Record>], version: i64, offsets: std::ops::Range<i64>) {
    // A little of each partition at a time, so that all of them are in flight together.
    let mut from = offsets.start;
    while from < offsets.end {
        let to = (from + 50).min(offsets.end);
        for (operator, partition) in log.iter().enumerate() {
            let records: Vec<_> = partition[from as usize..to as usize].iter().map(|r| r.asked(version)).collect();
            worker.ask(operator, &records);
        }
        from = to;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Workers and Redis are killed, paused and started again, and workers go back behind what was answered.
#[test]
fn every_record_has_one_answer_whatever_is_restarted() {
    const RECORDS: i64 = 3_400;
    let seed: u64 = std::env::var("TALLY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("TALLY_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let Some(mut redis) = Redis::start(dir.path(), &DURABLE) else { return };
    // More than two days: claims end with their horizon, and old ones are dropped. A worker goes back by less than an hour.
    let log = log(seed, RECORDS, 60_000);
    let expected = expected(&log, i64::MAX);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut random = Random::new(seed + 1);
    let mut worker = Worker::start(&redis.url());
    let (mut from, mut answered) = (0, BTreeSet::new());
    while from < RECORDS {
        let to = (from + 1 + random.below(35) as i64).min(RECORDS);
        match random.below(6) {
            0 => {
                ask(&mut worker, &log, 1, from..to);
                redis.kill();
                redis.start_again();
            }
            1 => {
                redis.pause();
                ask(&mut worker, &log, 1, from..to);
                redis.resume();
            }
            2 => {
                // Killed with records in flight; the next one goes on from an older checkpoint.
                ask(&mut worker, &log, 1, from..to);
                check(&worker.answers(), &expected);
                worker = Worker::start(&redis.url());
                ask(&mut worker, &log, 1, (from - 8).max(0)..to);
            }
            3 => {
                // The same within one process, as after a failure of the pipeline.
                redis.pause();
                ask(&mut worker, &log, 1, from..to);
                worker.stop_operators(0..4);
                ask(&mut worker, &log, 1, (from - 8).max(0)..to);
                redis.resume();
            }
            _ => ask(&mut worker, &log, 1, from..to),
        }
        let answers = worker.all_answered();
        check(&answers, &expected);
        answered.extend(answers.into_keys());
        from = to;
    }
    assert!(answered.iter().eq(expected.keys()), "every record was answered");
    let dropped = redis.call(&["GET", "claims:dropped_ms"]);
    assert!(dropped.starts_with("$13"), "claims of the first day were dropped: {dropped}");
}

#[test]
fn flushed_claims_are_missed_until_they_are_restored() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(2, 1_600, 20_000);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..1_000);
    check(&worker.all_answered(), &expected(&log, i64::MAX));
    drop(worker);
    record(&redis, &[deployment(1, 0), deployment(2, 600)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 2, 600..1_200);
    worker.all_answered();
    assert_eq!(redis.call(&["FLUSHALL"]), "+OK\r\n");
    ask(&mut worker, &log, 2, 1_200..1_600);
    worker.says("MISSING");
    let answers = worker.answers();
    assert!(answers.keys().all(|(_, offset)| *offset < 1_200), "nothing is answered without the claims before it");

    let expected = expected(&log, 600);
    let billed = expected.iter().filter(|((_, offset), answer)| *offset < 600 && **answer == Some(1)).count() as u64;
    let rebuilt = rebuild(&redis, &log, Some(600));
    assert_eq!((rebuilt.restored, rebuilt.rows, rebuilt.records), (billed, billed, 4_000));
    check(&worker.all_answered(), &expected);
    let next: Offsets = (0..PARTITIONS).map(|partition| (partition, 1_600)).collect();
    assert_eq!(rebuilt.next, next);
    let again = rebuild(&redis, &log, Some(600));
    assert_eq!(again, Rebuilt { restored: 0, ..rebuilt }, "once more changes nothing");
    // A worker that starts anew gets the same answers.
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 2, 600..1_600);
    check(&worker.all_answered(), &expected);
}

#[test]
fn an_older_copy_is_noticed() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mut redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(3, 1_500, 20_000);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..500);
    worker.all_answered();
    copy_folder(&dir.path().join("appendonlydir"), copy.path());
    ask(&mut worker, &log, 1, 500..1_000);
    worker.all_answered();
    redis.kill();
    std::fs::remove_dir_all(dir.path().join("appendonlydir")).unwrap();
    copy_folder(copy.path(), &dir.path().join("appendonlydir"));
    redis.start_again();
    ask(&mut worker, &log, 1, 1_000..1_500);
    worker.says("MISSING");
    assert!(worker.answers().keys().all(|(_, offset)| *offset < 1_000));
    // A worker that starts anew misses them as well.
    let mut other = Worker::start(&redis.url());
    ask(&mut other, &log, 1, 900..1_000);
    other.says("MISSING");
    assert!(other.answers().is_empty());
    rebuild(&redis, &log, None);
    check(&worker.all_answered(), &expected(&log, i64::MAX));
    check(&other.all_answered(), &expected(&log, i64::MAX));
}

/// Old and new version in one process: the old one is not answered, and does not hold back the new one.
#[test]
fn an_older_version_is_refused_and_its_claims_from_the_start_on_are_void() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(4, 1_600, 20_000);
    let (of_1, of_2) = (expected(&log, i64::MAX), expected(&log, 600));
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..1_000);
    check(&worker.all_answered(), &of_1);
    record(&redis, &[deployment(1, 0), deployment(2, 600)], HORIZON_MS).unwrap();
    ask(&mut worker, &log, 1, 1_000..1_050);
    worker.says("STALE");
    for (operator, partition) in log.iter().enumerate() {
        let records: Vec<_> = partition[600..].iter().map(|record| record.asked(2)).collect();
        worker.ask(operator + 4, &records);
    }
    let answers = worker.answered(8_000);
    for (place, given) in &answers {
        let both = [of_1[place], of_2[place]];
        let which = (place.1 >= 1_000, place.1 >= 600);
        let expected = match which {
            (true, _) => &both[1..],
            (_, true) => &both[..],
            _ => &both[..1],
        };
        assert_eq!(given, expected, "{place:?}");
    }
    assert!(of_1.iter().any(|(place, answer)| place.1 >= 600 && *answer == Some(0) && of_2[place] == Some(1)));
    let mut old = Worker::start(&redis.url());
    ask(&mut old, &log, 1, 500..600);
    old.says("STALE");
    assert!(old.answers().is_empty());
    let refused = record(&redis, &[deployment(1, 0)], HORIZON_MS);
    assert!(refused.is_ok(), "what is known may be told again");
    let refused = record(&redis, &[deployment(2, 700)], HORIZON_MS).unwrap_err().to_string();
    assert!(refused.contains("version 2 starts at offset 600") && refused.contains("700"), "{refused}");
}

#[test]
fn a_version_that_is_not_deployed_waits() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(5, 100, 20_000);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 2, 0..100);
    worker.says("UNDEPLOYED");
    assert!(worker.answers().is_empty());
    record(&redis, &[deployment(1, 0), deployment(2, 0)], HORIZON_MS).unwrap();
    check(&worker.all_answered(), &expected(&log, 0));
}

#[test]
fn skipped_records_are_missed_at_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(6, 400, 20_000);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..200);
    worker.all_answered();
    worker.stop_operators(2..3);
    worker.ask(2, &log[2][201..].iter().map(|record| record.asked(1)).collect::<Vec<_>>());
    worker.says("MISSING");
    assert_eq!(worker.answers().len(), 800);
    drop(worker);
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 201..400);
    worker.says("MISSING");
    assert!(worker.answers().is_empty());
    rebuild(&redis, &log, None);
    check(&worker.all_answered(), &expected(&log, i64::MAX));
}

/// An engine that goes back further than claims are kept is not told that a duplicate is the first.
#[test]
fn claims_that_were_dropped_are_missed_until_they_are_restored() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let mut log = log(9, 200, 20_000);
    // Four days of silence.
    log.iter_mut().flat_map(|partition| &mut partition[100..]).for_each(|record| record.appended_ms += 4 * HORIZON_MS);
    let expected = expected(&log, i64::MAX);
    record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..200);
    check(&worker.all_answered(), &expected);
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 50..200);
    worker.says("DROPPED");
    assert!(worker.answers().is_empty());
    rebuild(&redis, &log, None);
    check(&worker.all_answered(), &expected);
}

#[test]
fn a_redis_that_can_lose_claims_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = [("maxmemory-policy", "allkeys-lru"), ("no-appendfsync-on-rewrite", "yes")];
    let Some(redis) = Redis::start(dir.path(), &options) else { return };
    let log = log(7, 10, 20_000);
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..10);
    for (setting, is, must) in [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ] {
        let why = format!("{setting} is {is}, and must be {must}");
        worker.says(&why);
        assert!(record(&redis, &[deployment(1, 0)], HORIZON_MS).unwrap_err().to_string().contains(&why));
        assert!(worker.answers().is_empty(), "nothing is answered while {why}");
        assert_eq!(redis.call(&["CONFIG", "SET", setting, must]), "+OK\r\n");
    }
    check(&worker.all_answered(), &expected(&log, i64::MAX));
}

#[test]
fn a_worker_waits_for_a_redis_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let log = log(8, 100, 20_000);
    redis.kill();
    let mut worker = Worker::start(&redis.url());
    ask(&mut worker, &log, 1, 0..100);
    worker.says("nothing is answered since 0 s");
    assert!(worker.answers().is_empty());
    redis.start_again();
    check(&worker.all_answered(), &expected(&log, i64::MAX));
    worker.says("answers again after");
    let mut unset = Worker::start("");
    ask(&mut unset, &log, 1, 0..1);
    unset.says("nothing is answered");
}
