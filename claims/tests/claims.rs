//! What an operator does with claims, on a real Redis. How `claim_click` answers is tested through its compiled library,
//! in `udfs/arroyo`.

#![allow(clippy::unwrap_used)]

use claims::{Billed, Claims, ClaimsError, Deployment, LogRecord};
use click::{LogId, Millis, Position};
use futures::stream;
use services::redis::{DURABLE, Redis};
use std::io::Error;

const HORIZON_MS: i64 = 86_400_000;
const T0_MS: i64 = 1_776_686_400_000;

fn log_id(number: u8) -> LogId {
    LogId::from_bytes([number; 16])
}

fn deployment(version: i64, log: u8, start: i64) -> Deployment {
    Deployment { version, log_id: log_id(log), positions: [(0, start), (1, start)].into_iter().collect() }
}

fn billed(impression: &str, partition: i32, offset: i64, version: i64) -> Billed {
    Billed {
        impression_id: impression.to_string(),
        position: Position { log_id: log_id(7), partition, offset },
        appended_at: Millis::new(T0_MS + offset),
        version,
    }
}

fn of_log(impression: Option<&str>, partition: i32, offset: i64) -> LogRecord {
    LogRecord { claim_key: impression.map(String::from), partition, offset, appended_at: Millis::new(T0_MS + offset) }
}

async fn rebuild(
    claims: &mut Claims,
    deployments: &[Deployment],
    rows: Vec<Result<Billed, Error>>,
    log: Vec<Result<LogRecord, Error>>,
) -> Result<claims::Rebuilt, ClaimsError> {
    claims
        .rebuild(deployments, HORIZON_MS, Millis::new(T0_MS - HORIZON_MS), stream::iter(rows), stream::iter(log))
        .await
}

fn through(first: i64, second: i64) -> std::collections::BTreeMap<i32, i64> {
    [(0, first), (1, second)].into_iter().collect()
}

#[tokio::test]
async fn deployments_are_told_once_and_claims_start_where_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let mut claims = Claims::connect(&redis.url()).await.unwrap();
    let first = deployment(3, 7, 1_000);
    claims.record(std::slice::from_ref(&first), HORIZON_MS).await.unwrap();
    // Nothing was counted before the first deployment, so nothing is missed there.
    assert_eq!(claims.through(log_id(7)).await.unwrap(), through(999, 999));
    let log = vec![Ok(of_log(Some("a"), 0, 1_000)), Ok(of_log(Some("b"), 1, 1_004))];
    rebuild(&mut claims, std::slice::from_ref(&first), vec![], log).await.unwrap();
    assert_eq!(claims.through(log_id(7)).await.unwrap(), through(1_000, 1_004));
    let second = [first.clone(), deployment(4, 7, 1_002)];
    for _ in 0..2 {
        claims.record(&second, HORIZON_MS).await.unwrap();
        assert_eq!(
            claims.through(log_id(7)).await.unwrap(),
            through(1_000, 1_001),
            "claims from the start on are void"
        );
    }
    // A topic that was made anew: nothing is claimed there yet.
    let third = [first.clone(), deployment(4, 7, 1_002), deployment(5, 8, 0)];
    claims.record(&third, HORIZON_MS).await.unwrap();
    assert_eq!(claims.through(log_id(8)).await.unwrap(), through(-1, -1));
    assert_eq!(claims.through(log_id(7)).await.unwrap(), through(1_000, 1_001));

    let mut check = async |deployments: &[Deployment], horizon_ms, expected: &str| {
        let error = claims.record(deployments, horizon_ms).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[], HORIZON_MS, "at least one deployment").await;
    check(&third, 0, "a dedup horizon of 0 ms is given, and must be above 0").await;
    check(&[deployment(2, 7, 0)], HORIZON_MS, "version 2 is given, and version 5 is deployed").await;
    check(&[deployment(3, 7, 900)], HORIZON_MS, "version 3 starts at offset 1000").await;
    check(&[deployment(3, 8, 1_000)], HORIZON_MS, "version 3 starts at offset none of log 08080808-").await;
}

#[tokio::test]
async fn a_rebuild_says_what_is_wrong_and_can_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let mut claims = Claims::connect(&redis.url()).await.unwrap();
    let deployments = [deployment(1, 7, 0), deployment(2, 7, 10)];
    let away = || Error::other("the warehouse is away");
    let mut check = async |rows, log, expected: &str| {
        let error = rebuild(&mut claims, &deployments, rows, log).await.unwrap_err().to_string();
        assert_eq!(error, format!("claims cannot be restored: {expected}"));
    };
    check(vec![Ok(billed("a", 0, 1, 1)), Err(away())], vec![], "final rows: the warehouse is away").await;
    check(vec![], vec![Ok(of_log(None, 0, 10)), Err(away())], "the log: the warehouse is away").await;
    let late =
        "a final row at 07070707-0707-0707-0707-070707070707:1:10 is not before version 2, which starts at offset 10";
    check(vec![Ok(billed("a", 1, 10, 1))], vec![], late).await;
    check(vec![], vec![Ok(of_log(None, 0, 9))], "the log gives partition 0 offset 9, and version 2 goes on from 10")
        .await;
    let twice = vec![Ok(of_log(None, 0, 12)), Ok(of_log(None, 0, 12))];
    check(vec![], twice, "the log gives partition 0 offset 12, and version 2 goes on from 13").await;

    let rows = || vec![Ok(billed("a", 0, 1, 1)), Ok(billed("b", 1, 9, 1))];
    let log = || {
        let keys = [Some("a"), Some("c"), None, Some("c"), Some("b")];
        (10..).zip(keys).map(|(offset, key)| Ok(of_log(key, 0, offset))).collect()
    };
    let rebuilt = rebuild(&mut claims, &deployments, rows(), log()).await.unwrap();
    assert_eq!((rebuilt.restored, rebuilt.rows, rebuilt.claimed, rebuilt.records), (2, 2, 1, 5));
    assert_eq!(rebuilt.next, [(0, 15), (1, 10)].into_iter().collect());
    assert_eq!(claims.through(log_id(7)).await.unwrap(), through(14, 9));
    let again = rebuild(&mut claims, &deployments, rows(), log()).await.unwrap();
    assert_eq!((again.restored, again.rows, again.claimed, again.records), (0, 2, 1, 5));
}

/// Two rows that were billed under a shorter horizon stay two claims: rows are restored as they are.
#[tokio::test]
async fn rows_are_restored_and_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let mut claims = Claims::connect(&redis.url()).await.unwrap();
    let deployments = [deployment(1, 7, 0), deployment(2, 7, 10)];
    let rows = vec![Ok(billed("a", 0, 1, 1)), Ok(billed("a", 0, 3, 1)), Ok(billed("a", 1, 2, 1))];
    let rebuilt = rebuild(&mut claims, &deployments, rows, vec![]).await.unwrap();
    assert_eq!((rebuilt.restored, rebuilt.rows), (3, 3));
}

#[tokio::test]
async fn what_cannot_be_asked_is_an_error() {
    let nobody = format!("redis://127.0.0.1:{}", services::free_port());
    for url in ["", "localhost:6379", &nobody] {
        let error = Claims::connect(url).await.err().unwrap().to_string();
        assert!(error.starts_with("claims in Redis: "), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let mut claims = Claims::connect(&redis.url()).await.unwrap();
    redis.call(&["HSET", "claims:through", &format!("{}:0", log_id(7)), "nonsense"]);
    let error = claims.through(log_id(7)).await.unwrap_err().to_string();
    assert_eq!(error, r#"claims in Redis: claims:through has "nonsense" for partition "0""#);
    let kept = redis.call(&["CONFIG", "SET", "appendfsync", "everysec"]);
    assert_eq!(kept, "+OK\r\n");
    let error = Claims::connect(&redis.url()).await.err().unwrap().to_string();
    assert!(error.contains("appendfsync is everysec, and must be always"), "{error}");
}
