//! The runner on the real pipelines, against what the definitions say.
#![allow(clippy::unwrap_used)]

mod arroyo;
mod clicks;
mod keys;
mod memory_log;
mod refused;

use click::{Lateness, Offsets};
use clicks::{Entry, Expected, expected, generate, put, written};
use memory_log::{MemoryLog, PARTITIONS, log_id};
use runner::{PipelineFiles, Runner, RunnerSettings, VersionStart};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SQL: &str = include_str!("../../../pipelines/clicks.sql");

fn files() -> PipelineFiles {
    PipelineFiles::one("pipelines/clicks.sql", SQL)
}

/// A bot rule that an analyst added: every phone is a bot.
fn changed_files() -> PipelineFiles {
    let rule = r#"ELSE bot_reason("userAgent") END AS reason"#;
    assert!(SQL.contains(rule));
    let changed = r#"WHEN "userAgent" LIKE '%iPhone%' THEN 'bot' ELSE bot_reason("userAgent") END AS reason"#;
    PipelineFiles::one("pipelines/clicks.sql", &SQL.replace(rule, changed))
}

fn start(version: i64, offset: i64) -> VersionStart {
    let positions: Offsets = (0..PARTITIONS).map(|partition| (partition, offset)).collect();
    VersionStart { version, log_id: log_id(), positions }
}

async fn open(log: &MemoryLog, dir: &Path, files: &PipelineFiles, versions: Vec<VersionStart>) -> Runner {
    let log = Arc::new(log.clone());
    Runner::open(files, versions, log, dir, RunnerSettings::default(), None).await.unwrap()
}

#[track_caller]
fn check(log: &MemoryLog, expected: &Expected) {
    let written = written(log);
    for (key, answer) in &expected.raw {
        assert_eq!(written.raw.get(key), Some(answer), "record {key:?}");
    }
    assert_eq!(written.raw.len(), expected.raw.len());
    assert_eq!(written.minutes, expected.minutes);
}

#[tokio::test]
async fn every_record_gets_its_verdict_however_records_are_batched() {
    let entries = generate(1, 3_000, 12);
    let expected = expected(&entries, &[(0, false)]);
    for verdict in ["billable", "late", "duplicate", "bot", "prefetch", "bad_signature", "heartbeat"] {
        assert!(expected.raw.values().any(|(v, _)| v == verdict), "the log has no {verdict}");
    }
    for batch in [1, 7, 1_000, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let log = MemoryLog::new(batch);
        put(&log, &entries);
        let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
        runner.catch_up().await.unwrap();
        runner.checkpoint().await.unwrap();
        check(&log, &expected);
    }
}

#[tokio::test]
async fn a_sum_is_right_or_stops_the_pipeline() {
    let entries = generate(1, 3_000, 12);
    let sum = async |of: &str| {
        let count = "count(*) AS clicks";
        assert!(SQL.contains(count));
        let sql = SQL.replace(count, &format!("sum({of}) AS clicks"));
        let (dir, log) = (tempfile::tempdir().unwrap(), MemoryLog::new(1_000));
        put(&log, &entries);
        let files = PipelineFiles::one("pipelines/clicks.sql", &sql);
        let summed = open(&log, dir.path(), &files, vec![start(1, 0)]).await.catch_up().await;
        summed.map(|_| log)
    };
    check(&sum("1").await.unwrap(), &expected(&entries, &[(0, false)]));
    let error = sum(&i64::MAX.to_string()).await.err().unwrap().to_string();
    assert!(error.contains("Int64"), "{error}");
}

#[tokio::test]
async fn a_restart_from_any_checkpoint_writes_the_same_rows() {
    for seed in 2..6 {
        let entries = generate(seed, 1_500, 9);
        let dir = tempfile::tempdir().unwrap();
        let log = MemoryLog::new(1_000);
        for (number, part) in entries.chunks(entries.len() / 7 + 1).enumerate() {
            put(&log, part);
            let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
            runner.catch_up().await.unwrap();
            // Every other time it dies without one: the next goes on from the checkpoint before.
            if number % 2 == 0 {
                runner.checkpoint().await.unwrap();
            }
        }
        open(&log, dir.path(), &files(), vec![start(1, 0)]).await.catch_up().await.unwrap();
        check(&log, &expected(&entries, &[(0, false)]));
    }
}

/// Read as it grew over 30 hours, with restarts and claims that are dropped when they are over, or after all of it.
#[tokio::test]
async fn a_catch_up_of_30_hours_says_what_was_said_live() {
    let mut entries = generate(9, 12_000, 30 * 60);
    // A heartbeat every half minute is enough.
    entries.retain(|entry| entry.impression.is_some() || entry.appended / 1_000 % 30 == 0);
    let expected = expected(&entries, &[(0, false)]);
    let is_duplicate = |(verdict, _): &&(String, i64)| verdict == "duplicate";
    assert!(expected.raw.values().filter(is_duplicate).count() > 1_000);
    let tell = |runner: &Runner, at: i64| runner.counters().complete_through.store(at, Ordering::Relaxed);

    let (dir, live) = (tempfile::tempdir().unwrap(), MemoryLog::new(1_000));
    let mut runner = open(&live, dir.path(), &files(), vec![start(1, 0)]).await;
    for (number, part) in entries.chunks(331).enumerate() {
        put(&live, part);
        runner.catch_up().await.unwrap();
        tell(&runner, part.last().unwrap().appended - 7 * 60_000);
        if number % 3 == 0 {
            runner.checkpoint().await.unwrap();
        }
        if number % 13 == 0 {
            drop(runner);
            runner = open(&live, dir.path(), &files(), vec![start(1, 0)]).await;
        }
    }
    check(&live, &expected);

    let (dir, late) = (tempfile::tempdir().unwrap(), MemoryLog::new(usize::MAX));
    put(&late, &entries);
    let mut runner = open(&late, dir.path(), &files(), vec![start(1, 0)]).await;
    tell(&runner, entries.last().unwrap().appended);
    runner.catch_up().await.unwrap();
    runner.checkpoint().await.unwrap();
    check(&late, &expected);
}

#[tokio::test]
async fn a_new_version_judges_everything_from_its_start_anew() {
    for seed in 6..9 {
        let entries = generate(seed, 2_000, 9);
        let cut = 2_000 + seed as i64 * 100;
        let dir = tempfile::tempdir().unwrap();
        let log = MemoryLog::new(1_000);
        // The old version has gone further than the place where the new one starts.
        put(&log, &entries[..entries.len() * 3 / 4]);
        let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
        runner.catch_up().await.unwrap();
        runner.checkpoint().await.unwrap();
        drop(runner);
        put(&log, &entries[entries.len() * 3 / 4..]);
        let versions = vec![start(1, 0), start(2, cut)];
        open(&log, dir.path(), &changed_files(), versions).await.catch_up().await.unwrap();
        let expected = expected(&entries, &[(0, false), (cut, true)]);
        let mut written = written(&log);
        // Minute rows of the old version that it wrote before it ended are the loader's to judge.
        written.minutes.retain(|(version, ..), _| *version == 2);
        assert_eq!(written.raw, expected.raw);
        let new: Vec<_> = expected.minutes.iter().filter(|((version, ..), _)| *version == 2).collect();
        assert_eq!(written.minutes.iter().collect::<Vec<_>>(), new);
    }
}

#[tokio::test]
async fn what_is_no_json_is_left_out_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = MemoryLog::new(usize::MAX);
    let entries: Vec<Entry> = generate(9, 200, 2);
    put(&log, &entries);
    let bad = [
        &b"{\"kind\":\"cli"[..],
        b"",
        b"{}{}",
        b"\xff",
        b"[1]",
        b"{\"kind\":7,\"attempt\":\"x\"}",
        b"{\"kind\":\"heartbeat\"} x",
    ];
    let at = click::Millis::new(entries.last().unwrap().appended);
    let mut offsets = Vec::new();
    for value in bad {
        offsets.push(log.put("clicks", 2, at, value));
    }
    let after = log.put("clicks", 2, at, &br#"{"kind":"heartbeat","timestamp":"2026-04-20T12:00:00Z"}"#[..]);
    let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
    runner.catch_up().await.unwrap();
    let mut expected = expected(&entries, &[(0, false)]);
    expected.raw.insert((2, after), ("heartbeat".into(), 1));
    check(&log, &expected);
    assert_eq!(runner.counters().undecodable.load(std::sync::atomic::Ordering::Relaxed), bad.len() as u64);

    // One more at the very end of the log, which asks for no claim: a restart from there goes on.
    log.put("clicks", 2, at, &b"{"[..]);
    runner.catch_up().await.unwrap();
    runner.checkpoint().await.unwrap();
    drop(runner);
    open(&log, dir.path(), &files(), vec![start(1, 0)]).await.catch_up().await.unwrap();
    check(&log, &expected);
}

#[tokio::test]
async fn a_field_that_is_missing_makes_a_record_malformed() {
    let dir = tempfile::tempdir().unwrap();
    let log = MemoryLog::new(usize::MAX);
    let at = click::Millis::new(1_776_686_400_000);
    for value in [r#"{}"#, r#"{"kind":"click"}"#, r#"{"kind":"click","clickId":"x","impressionId":"i","adId":"a"}"#] {
        log.put("clicks", 0, at, value);
    }
    open(&log, dir.path(), &files(), vec![start(1, 0)]).await.catch_up().await.unwrap();
    let verdicts: Vec<String> = written(&log).raw.into_values().map(|(verdict, _)| verdict).collect();
    assert_eq!(verdicts, ["malformed", "malformed", "malformed"]);
}

#[tokio::test]
async fn a_damaged_checkpoint_or_lost_claims_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = MemoryLog::new(usize::MAX);
    put(&log, &generate(10, 100, 2));
    let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
    runner.catch_up().await.unwrap();
    runner.checkpoint().await.unwrap();
    drop(runner);
    let (path, sql) = (dir.path().join("clicks.checkpoint"), files());
    let good = std::fs::read(&path).unwrap();
    for at in [0, 9, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let opened = Runner::open(&sql, vec![start(1, 0)], Arc::new(log.clone()), dir.path(), Default::default(), None);
        let error = opened.await.err().unwrap().to_string();
        assert!(error.contains("clicks.checkpoint") && error.contains("damaged"), "{error}");
    }
    std::fs::write(&path, good).unwrap();
    std::fs::remove_dir_all(dir.path().join("claims")).unwrap();
    let opened = Runner::open(&sql, vec![start(1, 0)], Arc::new(log.clone()), dir.path(), Default::default(), None);
    let error = opened.await.err().unwrap().to_string();
    assert!(error.contains("claims were lost"), "{error}");
}

/// Where it does not decode, the store's journal ends without a word. A checkpoint says how far claims go.
#[tokio::test]
async fn a_journal_of_claims_that_ends_early_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = MemoryLog::new(usize::MAX);
    let mut runner = open(&log, dir.path(), &files(), vec![start(1, 0)]).await;
    for round in 0..5 {
        put(&log, &generate(20 + round, 40, 2));
        runner.catch_up().await.unwrap();
    }
    runner.checkpoint().await.unwrap();
    drop(runner);
    let journals = std::fs::read_dir(dir.path().join("claims")).unwrap().map(|entry| entry.unwrap().path());
    let journals: Vec<_> = journals.filter(|path| path.extension().is_some_and(|name| name == "jnl")).collect();
    let [journal] = &journals[..] else { panic!("{journals:?}") };
    let whole = std::fs::read(journal).unwrap();
    // Behind what was written it is zeros.
    let length = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert!(length > 4_000, "{length}");
    let sql = files();
    let opened = async || {
        let log = Arc::new(log.clone());
        Runner::open(&sql, vec![start(1, 0)], log, dir.path(), Default::default(), None).await
    };
    for at in (0..20).map(|part| length * part / 20).chain([length - 1]) {
        std::fs::write(journal, &whole[..at]).unwrap();
        let error = opened().await.err().unwrap_or_else(|| panic!("cut at {at} of {length}")).to_string();
        assert!(error.contains("claims"), "cut at {at} of {length}: {error}");
    }
    std::fs::write(journal, &whole).unwrap();
    assert!(opened().await.is_ok());
}

#[test]
fn a_digest_is_of_what_is_counted() {
    let of = |files: &PipelineFiles, lateness| runner::digest(files, lateness, 86_400_000).unwrap();
    let same = of(&files(), Lateness::DEFAULT);
    assert_eq!(same, of(&PipelineFiles::one("elsewhere/clicks.sql", SQL), Lateness::DEFAULT));
    assert_ne!(same, of(&changed_files(), Lateness::DEFAULT));
    assert_ne!(same, of(&files(), Lateness { lateness_ms: 1, slack_ms: 1 }));
    assert_ne!(same, runner::digest(&files(), Lateness::DEFAULT, 1).unwrap());
}
