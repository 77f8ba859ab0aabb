//! The hint in a real Redis, which is stopped, paused and flushed in the middle of traffic: nothing but the hint changes.

use crate::app::{TestApp, TestLog, eventually};
use redirect::{RedisSettings, SeenInRedis, Settings};
use services::redis::Redis;
use std::sync::Arc;
use std::time::Duration;

/// A Redis and the hint in it. An answer that is late because the machine is busy must not look like one that never
/// comes, so clicks wait long, but where a test says otherwise.
fn start(dir: &std::path::Path, wait: Duration) -> Option<(Redis, Arc<SeenInRedis>)> {
    let redis = Redis::start(dir, &[])?;
    let seen = SeenInRedis::start(RedisSettings { wait, ..RedisSettings::new(redis.url()) }).unwrap();
    Some((redis, Arc::new(seen)))
}

async fn connected(seen: &SeenInRedis) {
    eventually("a connection to redis", || seen.is_connected()).await;
}

fn target(impression: usize) -> String {
    format!("/api/v1/click/imp_{impression}?ad_id=ad_9&campaign_id=cmp_7&publisher_id=pub_4")
}

/// One click: its answer with its id and time taken out, its record likewise, and the hint in it.
async fn click(app: &TestApp, number: usize, impression: usize) -> ((String, String), Option<bool>) {
    let lines = if number.is_multiple_of(7) { "Purpose: prefetch\r\n" } else { "User-Agent: Mozilla/5.0\r\n" };
    let method = if number.is_multiple_of(5) { "POST" } else { "GET" };
    let answer = app.send(method, &target(impression), lines).await;
    let id = answer.click_id();
    let mut click = app.log.clicks().pop().unwrap();
    assert_eq!(click.click_id.to_string(), id, "the answer names the record");
    let seen = click.seen_before.take();
    let record = serde_json::to_string(&click).unwrap().replace(&id, "id");
    let location = answer.header("location").unwrap_or("none").replace(&id, "id");
    ((format!("{} {location} {}", answer.status, answer.body.replace(&id, "id")), record), seen)
}

#[tokio::test]
async fn redirects_share_the_hint_and_it_ends_with_the_horizon() {
    let dir = tempfile::tempdir().unwrap();
    let Some((redis, seen)) = start(dir.path(), Duration::from_secs(30)) else { return };
    let other = Arc::new(SeenInRedis::start(RedisSettings::new(redis.url())).unwrap());
    connected(&seen).await;
    connected(&other).await;
    let one = TestApp::with_seen(TestLog::new(), Settings::default(), seen).await;
    let (_, first) = click(&one, 1, 1).await;
    assert_eq!(first, Some(false));
    assert_eq!(redis.call(&["GET", "click:imp_1"]), "$13\r\n1776686400123\r\n", "the time of the first click");
    assert_eq!(redis.call(&["TTL", "click:imp_1"]), ":86400\r\n");
    let two = TestApp::with_seen(TestLog::new(), Settings::default(), other).await;
    let head = two.send("HEAD", &target(2), "").await;
    assert_eq!((head.status, redis.call(&["EXISTS", "click:imp_2"])), (302, ":0\r\n".to_owned()), "a HEAD is no click");
    redis.call(&["DEL", "click:imp_1"]);
    assert_eq!(click(&one, 2, 1).await.1, Some(false), "it is over");
    assert_eq!(click(&one, 3, 1).await.1, Some(true));
}

/// What a click answers and logs while Redis is stopped, paused and flushed is what it answers and logs without one.
#[tokio::test]
async fn nothing_but_the_hint_changes_with_redis() {
    let dir = tempfile::tempdir().unwrap();
    let Some((mut redis, seen)) = start(dir.path(), Duration::from_secs(3)) else { return };
    connected(&seen).await;
    let without = TestApp::start().await;
    let with = TestApp::with_seen(TestLog::new(), Settings::default(), seen.clone()).await;
    let mut hints = Vec::new();
    for number in 0..140 {
        match number {
            20 => redis.pause(),
            40 => {
                redis.resume();
                connected(&seen).await;
            }
            60 => assert_eq!(redis.call(&["FLUSHALL"]), "+OK\r\n"),
            80 => redis.kill(),
            100 => {
                redis.start_again();
                connected(&seen).await;
            }
            120 => drop(redis.call(&["CLIENT", "KILL", "TYPE", "normal"])),
            _ => {}
        }
        // Ten impressions, over and over.
        let (expected, _) = click(&without, number, number % 10).await;
        let (given, hint) = click(&with, number, number % 10).await;
        assert_eq!(given, expected, "click {number}");
        hints.push(hint);
    }
    assert_eq!(hints[..10], [Some(false); 10]);
    assert_eq!(hints[10..20], [Some(true); 10]);
    assert_eq!(hints[20..40], [None; 20], "paused");
    assert_eq!(hints[60..70], [Some(false); 10], "flushed, and nobody noticed");
    assert_eq!(hints[70..80], [Some(true); 10]);
    assert_eq!(hints[80..100], [None; 20], "stopped");
    assert_eq!(hints[100..110], [Some(false); 10], "started again, empty");
    assert_eq!(with.service.counters(), without.service.counters());
}

/// The click that waited in vain is the last that waits: the others do not ask at all.
#[tokio::test]
async fn nobody_asks_a_redis_that_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let Some((redis, seen)) = start(dir.path(), Duration::from_secs(3)) else { return };
    connected(&seen).await;
    let app = TestApp::with_seen(TestLog::new(), Settings::default(), seen.clone()).await;
    assert_eq!(click(&app, 1, 1).await.1, Some(false));
    redis.pause();
    for number in 2..30 {
        assert_eq!(click(&app, number, 1).await.1, None);
    }
    let counters = seen.counters();
    assert_eq!((counters.asked, counters.unknown, counters.connections), (2, 28, 1));
    redis.resume();
    connected(&seen).await;
    assert_eq!(click(&app, 30, 1).await.1, Some(true), "the click that was not answered was carried out, or the first");
    assert_eq!(seen.counters().connections, 2);
}

#[tokio::test]
async fn clicks_that_wait_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &[]) else { return };
    let settings = RedisSettings { in_flight_max: 0, ..RedisSettings::new(redis.url()) };
    let seen = Arc::new(SeenInRedis::start(settings).unwrap());
    connected(&seen).await;
    let app = TestApp::with_seen(TestLog::new(), Settings::default(), seen.clone()).await;
    assert_eq!(click(&app, 1, 1).await.1, None);
    assert_eq!((seen.counters().asked, seen.counters().unknown), (0, 1));
    assert!(seen.is_connected(), "too many clicks are no failure of redis");
}

#[tokio::test]
async fn a_redirect_starts_without_redis_and_refuses_what_is_no_address() {
    let nobody = format!("redis://127.0.0.1:{}", services::free_port());
    let seen = Arc::new(SeenInRedis::start(RedisSettings::new(nobody)).unwrap());
    let app = TestApp::with_seen(TestLog::new(), Settings::default(), seen).await;
    let (answer, hint) = click(&app, 1, 1).await;
    assert_eq!((&answer.0[..3], hint), ("302", None));
    for bad in ["", "localhost", "http://localhost", "redis://", "rediss://localhost"] {
        assert!(SeenInRedis::start(RedisSettings::new(bad)).is_err(), "{bad:?}");
    }
}
