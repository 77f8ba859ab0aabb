#![allow(clippy::unwrap_used)]
//! The redirect over real HTTP.

mod app;
mod edges;
mod judged;
mod leaderless;
mod passwords;
mod process;
mod seen;
mod spool;

use app::{Answer, Mode, NOON, PARTITIONS, TestApp, TestLog, eventually};
use click::InvalidReason;
use redirect::{Counters, Settings};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLICK: &str = "/api/v1/click/imp_abc123?ad_id=ad_9&campaign_id=cmp_7&publisher_id=pub_4";

fn impatient() -> Settings {
    Settings { append_wait: Duration::from_millis(50), ..Settings::default() }
}

#[tokio::test]
async fn a_click_is_logged_and_goes_to_the_registered_page() {
    let app = TestApp::start().await;
    let answer = app.send("GET", CLICK, "User-Agent: Mozilla/5.0\r\n").await;
    assert_eq!(answer.status, 302);
    let id = answer.click_id();
    let page = format!("https://shop.example/ad_9?c={id}&i=imp_abc123&k=cmp_7&p=pub_4");
    assert_eq!(answer.header("location"), Some(&*page));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    // The hash is that of 127.0.0.1, computed with openssl.
    let json = format!(
        r#"{{"kind":"click","clickId":"{id}","impressionId":"imp_abc123","adId":"ad_9","campaignId":"cmp_7","publisherId":"pub_4","timestamp":"2026-04-20T12:00:00.123Z","ipHash":"2b42e2e05844817e6d4c7e79c8d6dab4","userAgent":"Mozilla/5.0","country":"ZZ","seenBefore":false,"attempt":1,"invalidReason":null}}"#
    );
    let partition = tally_log::partitioner::partition_of(b"imp_abc123", PARTITIONS);
    assert_eq!(app.log.click_texts(), [(partition, json)]);
    assert_eq!(id.parse::<click::ClickId>().unwrap().at(), NOON.parse().unwrap());
    assert_eq!(app.service.counters(), Counters { clicks_answered: 1, ..Counters::default() });
}

#[tokio::test]
async fn a_second_click_of_an_impression_is_logged_as_seen_and_still_redirected() {
    let app = TestApp::start().await;
    let (first, second) = (app.get(CLICK).await, app.get(CLICK).await);
    assert_eq!((first.status, second.status), (302, 302));
    assert_ne!(first.click_id(), second.click_id());
    let seen: Vec<_> = app.log.clicks().iter().map(|click| click.seen_before).collect();
    assert_eq!(seen, [Some(false), Some(true)]);
}

#[tokio::test]
async fn a_head_hears_the_same_and_is_not_a_click() {
    let app = TestApp::start().await;
    let answer = app.send("HEAD", CLICK, "").await;
    assert_eq!(answer.status, 302);
    assert!(answer.header("location").unwrap().starts_with("https://shop.example/ad_9?c=0"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(app.send("HEAD", "/api/v1/click/i?ad_id=nobody", "").await.status, 404);
    assert_eq!(app.get(CLICK).await.status, 302);
    let clicks = app.log.clicks();
    assert_eq!(clicks.len(), 1, "only the GET");
    assert_eq!(clicks[0].seen_before, Some(false), "a HEAD is not remembered");
}

#[tokio::test]
async fn a_beacon_is_counted_whatever_its_body() {
    let app = TestApp::start().await;
    let bodies = [
        "\r\n".to_owned(),
        "Content-Length: 0\r\n\r\n".to_owned(),
        "Content-Length: 29\r\n\r\n{\"timestamp\":\"1999-01-01T00Z\"}".to_owned(),
        format!("Content-Length: 65536\r\n\r\n{}", "x".repeat(65_536)),
        // Never sent whole: the click was made all the same.
        "Content-Length: 10\r\n\r\nabc".to_owned(),
        format!("Transfer-Encoding: chunked\r\n\r\n14000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x14000)),
    ];
    for (number, body) in (1..).zip(&bodies) {
        let answer =
            app.send_bytes(format!("POST {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{body}").as_bytes()).await;
        assert_eq!((answer.status, &*answer.body), (204, ""), "{number}");
        assert_eq!(answer.header("location"), None);
        let clicks = app.log.clicks();
        assert_eq!((clicks.len(), clicks[number - 1].click_id.to_string()), (number, answer.click_id()));
        assert_eq!(clicks[number - 1].timestamp, NOON.parse().unwrap());
    }
    let answer = app.send("POST", CLICK, "Content-Length: 65537\r\n").await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.problem().0, "content-length");
    assert_eq!(app.log.clicks().len(), bodies.len());
}

#[tokio::test]
async fn a_prefetch_is_logged_and_not_redirected() {
    let app = TestApp::start().await;
    for line in ["Sec-Purpose: prefetch;prerender", "Purpose: prefetch", "X-Purpose: preview", "X-Moz: prefetch"] {
        let answer = app.send("GET", CLICK, &format!("{line}\r\n")).await;
        assert_eq!((answer.status, answer.header("cache-control")), (503, Some("no-store")), "{line}");
        assert_eq!(answer.header("location"), None);
        let click = app.log.clicks().pop().unwrap();
        assert_eq!(
            (click.click_id.to_string(), click.invalid_reason),
            (answer.click_id(), Some(InvalidReason::Prefetch))
        );
    }
    assert_eq!(app.service.counters(), Counters { prefetches: 4, ..Counters::default() });
    assert_eq!(app.get(CLICK).await.status, 302, "the person's click after it");
}

#[tokio::test]
async fn the_catalog_is_the_authority() {
    let app = TestApp::start().await;
    let checks = [
        ("ad_id=ad_9", "https://shop.example/ad_9", None),
        ("ad_id=ad_9&campaign_id=cmp_7", "https://shop.example/ad_9", None),
        ("ad%5Fid=ad%5f9", "https://shop.example/ad_9", None),
        ("ad_id=ad_9&campaign_id=cmp_8", "https://shop.example/ad_9", Some(InvalidReason::Mismatch)),
        ("ad_id=ad_9&publisher_id=pub_1", "https://shop.example/ad_9", Some(InvalidReason::Mismatch)),
        ("ad_id=ad_paused", "https://shop.example/paused", Some(InvalidReason::Inactive)),
        ("ad_id=ad_ended&campaign_id=cmp_8", "https://shop.example/ended", Some(InvalidReason::Inactive)),
        ("ad_id=ad_9&cb=%%CACHEBUSTER%%&%E4=%zz&x=%E4", "https://shop.example/ad_9", None),
        ("ad_id=ad_9&url=https://evil.example/&redirect=x&utm_source=a+b%20c", "https://shop.example/ad_9", None),
    ];
    for (query, page, reason) in checks {
        let answer = app.get(&format!("/api/v1/click/imp_1?{query}")).await;
        assert_eq!(answer.status, 302, "{query}");
        assert!(answer.header("location").unwrap().starts_with(page), "{query}");
        let click = app.log.clicks().pop().unwrap();
        assert_eq!(click.click_id.to_string(), answer.click_id());
        assert_eq!(
            (click.campaign_id.as_str(), click.publisher_id.as_str(), click.invalid_reason),
            ("cmp_7", "pub_4", reason),
            "{query}"
        );
    }
    assert_eq!(app.service.counters().clicks_answered, checks.len() as u64);
}

#[tokio::test]
async fn what_is_not_a_click_is_refused_with_a_reason() {
    let app = TestApp::start().await;
    let long = "x".repeat(129);
    let cut = format!("{}…", "x".repeat(80));
    let id = "1 to 128 of the characters A-Z a-z 0-9 _ - . ~ :";
    let escapes = "UTF-8, percent-encoded";
    let ad = "the id of an ad in the catalog";
    let path = "/api/v1/click/{impressionId}, /healthz or /readyz";
    let click = |rest: &str| format!("/api/v1/click/{rest}");
    let checks = [
        (click("imp%201?ad_id=ad_9"), 400, "impressionId", "imp 1", id),
        (click("imp%2F1?ad_id=ad_9"), 400, "impressionId", "imp/1", id),
        (click("imp+1?ad_id=ad_9"), 400, "impressionId", "imp+1", id),
        (click("%00?ad_id=ad_9"), 400, "impressionId", "\0", id),
        (click("ü?ad_id=ad_9"), 400, "impressionId", "ü", id),
        (click(&format!("{long}?ad_id=ad_9")), 400, "impressionId", &cut, id),
        (click("%FF?ad_id=ad_9"), 400, "impressionId", "%FF", escapes),
        (click("a%2?ad_id=ad_9"), 400, "impressionId", "a%2", escapes),
        (click("imp_1"), 400, "ad_id", "(none)", ad),
        (click("imp_1?"), 400, "ad_id", "(none)", ad),
        (click("imp_1?campaign_id=cmp_7"), 400, "ad_id", "(none)", ad),
        (click("imp_1?ad_id"), 400, "ad_id", "", id),
        (click("imp_1?ad_id=a+d"), 400, "ad_id", "a d", id),
        (click("imp_1?ad_id=%zz"), 400, "ad_id", "%zz", escapes),
        (click("imp_1?ad_id=ad_9&ad_id=ad_9"), 400, "ad_id", "ad_9", "one value"),
        (click("imp_1?ad_id=ad_9&campaign_id=c/1"), 400, "campaign_id", "c/1", id),
        (click("imp_1?ad_id=ad_9&campaign_id=cmp_7&campaign_id=c"), 400, "campaign_id", "c", "one value"),
        (click("imp_1?ad_id=ad_9&publisher_id="), 400, "publisher_id", "", id),
        (click("imp_1?ad_id=ad_1"), 404, "ad_id", "ad_1", ad),
        (click(""), 404, "path", "/api/v1/click/", path),
        (click("imp_1/x?ad_id=ad_9"), 404, "path", "/api/v1/click/imp_1/x", path),
        ("/".to_owned(), 404, "path", "/", path),
        ("/API/v1/click/imp_1?ad_id=ad_9".to_owned(), 404, "path", "/API/v1/click/imp_1", path),
    ];
    for (target, status, field, given, allowed) in &checks {
        let answer = app.get(target).await;
        assert_eq!(answer.status, *status, "{target}");
        assert_eq!(answer.problem(), (field.to_string(), given.to_string(), allowed.to_string()), "{target}");
        assert_eq!((answer.header("location"), answer.header("x-click-id")), (None, None));
    }
    assert_eq!(app.service.counters(), Counters { refused: checks.len() as u64, ..Counters::default() });
    assert!(app.log.clicks().is_empty());
}

#[tokio::test]
async fn other_methods_are_refused_with_those_that_are_allowed() {
    let app = TestApp::start().await;
    for (method, target, allow) in [
        ("PUT", CLICK, "GET, HEAD, POST"),
        ("DELETE", CLICK, "GET, HEAD, POST"),
        ("OPTIONS", CLICK, "GET, HEAD, POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ] {
        let answer = app.send(method, target, "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {target}");
        assert_eq!(answer.problem(), ("method".to_owned(), method.to_owned(), allow.to_owned()));
    }
    assert!(app.log.clicks().is_empty());
}

#[tokio::test]
async fn a_request_is_bounded() {
    let app = TestApp::start().await;
    let long = "x".repeat(20_000);
    let many: String = (0..101).map(|i| format!("X-{i}: 1\r\n")).collect();
    assert_eq!(app.send("GET", CLICK, &format!("X-Long: {long}\r\n")).await.status, 431);
    assert_eq!(app.send("GET", CLICK, &many).await.status, 431);
    assert_eq!(app.get(&format!("{CLICK}&x={long}")).await.status, 431);
    assert_eq!(app.send_bytes(b"GET /\xff HTTP/1.1\r\nHost: t\r\n\r\n").await.status, 400);
    assert_eq!(app.send_bytes(b"nonsense\r\n\r\n").await.status, 400);
    assert!(app.log.clicks().is_empty());
    let near = "x".repeat(15_000);
    assert_eq!(app.send("GET", CLICK, &format!("User-Agent: {near}\r\n")).await.status, 302);
    assert_eq!(app.log.clicks()[0].user_agent, "x".repeat(1_024));
}

#[tokio::test]
async fn any_user_agent_makes_a_valid_record() {
    let app = TestApp::start().await;
    let request = [
        b"GET ",
        CLICK.as_bytes(),
        b" HTTP/1.1\r\nHost: t\r\nConnection: close\r\nUser-Agent: \"\\\xff\t\xc3\xa9\r\n\r\n",
    ];
    assert_eq!(app.send_bytes(&request.concat()).await.status, 302);
    assert_eq!(app.log.clicks()[0].user_agent, "\"\\\u{fffd}\té");
}

#[tokio::test]
async fn nothing_in_a_request_sets_the_time() {
    let app = TestApp::start().await;
    let target =
        format!("{CLICK}&timestamp=1999-01-01T00:00:00Z&ts=1&time=2&t=3&clickId=018f0000-0000-7000-8000-000000000000");
    let lines =
        "Date: Fri, 01 Jan 1999 00:00:00 GMT\r\nX-Timestamp: 1\r\nX-Click-Id: 018f0000-0000-7000-8000-000000000000\r\n";
    let answer = app.send("GET", &target, lines).await;
    assert_eq!(answer.status, 302);
    let click = app.log.clicks().pop().unwrap();
    assert_eq!((click.timestamp, click.click_id.at()), (NOON.parse().unwrap(), NOON.parse().unwrap()));
    assert_eq!(click.click_id.to_string(), answer.click_id());
}

#[tokio::test]
async fn only_a_trusted_proxy_speaks_for_a_client() {
    let lines = "X-Forwarded-For: 1.1.1.1, 203.0.113.7\r\nX-Country: DE\r\n";
    let app = TestApp::start().await;
    app.get(CLICK).await;
    app.send("GET", CLICK, lines).await;
    let clicks = app.log.clicks();
    assert_eq!((&clicks[1].ip_hash, clicks[1].country.as_str()), (&clicks[0].ip_hash, "ZZ"));

    let trusting = Settings {
        trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        country_header: Some("x-country".parse().unwrap()),
        ..Settings::default()
    };
    let app = TestApp::with(TestLog::new(), trusting).await;
    app.send("GET", CLICK, lines).await;
    let click = app.log.clicks().pop().unwrap();
    // The hash is that of 203.0.113.7, computed with openssl.
    assert_eq!((&*click.ip_hash, click.country.as_str()), ("a4f688aded296ff1784e73c641a99404", "DE"));
    let json = &app.log.click_texts()[0].1;
    assert!(!json.contains("203.0.113.7") && !json.contains("127.0.0.1"), "{json}");
}

/// Never is there a redirect without a record, and readiness says what is wrong.
#[tokio::test]
async fn a_log_that_fails_means_503() {
    for mode in [Mode::Fails, Mode::FailsLater, Mode::Holds] {
        let app = TestApp::with(TestLog::new(), impatient()).await;
        assert_eq!(app.get("/readyz").await.status, 200);
        app.log.mode.send_replace(mode);
        for (method, line) in [("GET", ""), ("POST", ""), ("GET", "Purpose: prefetch\r\n")] {
            let answer = app.send(method, CLICK, line).await;
            assert_eq!((answer.status, answer.header("location")), (503, None), "{mode:?} {method}");
            assert_eq!((answer.header("retry-after"), answer.header("cache-control")), (Some("1"), Some("no-store")));
            answer.problem();
            answer.click_id();
        }
        // It asks for nothing that the log would have to take.
        assert_eq!(app.send("HEAD", CLICK, "").await.status, 302);
        assert_eq!(app.service.counters(), Counters { failures: 3, ..Counters::default() });
        let ready = app.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (503, r#"{"ready":false}"#));
        assert_eq!(app.service.ready(), Err("the last append failed".into()));
        assert_eq!(app.get("/healthz").await.status, 200);
        // Heartbeats find out that the log is back, also when nobody sends clicks any more.
        app.log.mode.send_replace(Mode::Works);
        app.clock.set("2026-04-20T12:00:05Z".parse().unwrap());
        assert_eq!(app.service.heartbeat_once().await, PARTITIONS as usize);
        let ready = app.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (200, r#"{"ready":true}"#));
        assert_eq!(app.service.details()["signatures"], "no keys are configured: every well-formed click counts");
        assert_eq!(app.get(CLICK).await.status, 302);
    }
}

#[tokio::test]
async fn a_late_answer_of_the_log_is_not_lost() {
    let app = TestApp::with(TestLog::new(), impatient()).await;
    app.log.mode.send_replace(Mode::Holds);
    let answer = app.get(CLICK).await;
    assert_eq!(answer.status, 503);
    app.log.mode.send_replace(Mode::Works);
    eventually("the record", || !app.log.clicks().is_empty()).await;
    assert_eq!(app.log.clicks()[0].click_id.to_string(), answer.click_id());
}

#[tokio::test]
async fn clicks_in_flight_are_bounded() {
    let log = TestLog::new();
    let app = TestApp::with(log.clone(), Settings { appends_in_flight_max: 2, ..impatient() }).await;
    log.mode.send_replace(Mode::Holds);
    let before = *log.asked.borrow();
    for _ in 0..5 {
        assert_eq!(app.get(CLICK).await.status, 503);
    }
    assert_eq!(*log.asked.borrow() - before, 2, "the log is asked for no more than it holds");
    log.mode.send_replace(Mode::Works);
    eventually("both records", || log.clicks().len() == 2).await;
    assert_eq!(app.get(CLICK).await.status, 302, "there is room again");
}

#[tokio::test]
async fn a_click_counts_when_its_client_has_gone() {
    let app = TestApp::start().await;
    app.log.mode.send_replace(Mode::Holds);
    let mut stream = app.begin(CLICK).await;
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "the service saw that the client has gone, and closed");
    app.log.mode.send_replace(Mode::Works);
    eventually("the record", || app.log.clicks().len() == 1).await;
}

#[tokio::test]
async fn a_stop_waits_for_the_log_also_when_the_client_has_gone() {
    let app = TestApp::start().await;
    let log = app.log.clone();
    log.mode.send_replace(Mode::Holds);
    let mut stream = app.begin(CLICK).await;
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    let mut served = app.stop();
    // Long enough for a stop that does not wait, which needs no time at all.
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut served).await.is_err(), "the log has not answered");
    log.mode.send_replace(Mode::Works);
    served.await.unwrap();
    assert_eq!(log.clicks().len(), 1);
}

#[tokio::test]
async fn a_stop_finishes_what_was_begun() {
    let app = TestApp::start().await;
    let (log, address) = (app.log.clone(), app.address);
    let mut idle = app.connect().await;
    log.mode.send_replace(Mode::Holds);
    let stream = app.begin(CLICK).await;
    let served = app.stop();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection is closed at once");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
    assert!(!served.is_finished());
    log.mode.send_replace(Mode::Works);
    assert_eq!(Answer::read(stream).await.status, 302);
    served.await.unwrap();
    assert_eq!(log.clicks().len(), 1);
}

#[tokio::test]
async fn a_stop_waits_only_so_long() {
    let settings = Settings { drain_wait: Duration::from_millis(50), ..Settings::default() };
    let app = TestApp::with(TestLog::new(), settings).await;
    let log = app.log.clone();
    log.mode.send_replace(Mode::Holds);
    let mut stream = app.begin(CLICK).await;
    app.stop().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "what may not be recorded is not answered");
}

#[tokio::test]
async fn partitions_that_were_silent_get_a_heartbeat() {
    // An hour of the clock, which stands still; the background task looks every quarter of an hour of real time.
    let settings = Settings { heartbeat_interval: Duration::from_secs(3_600), ..Settings::default() };
    let app = TestApp::with(TestLog::new(), settings).await;
    let noon: click::Millis = NOON.parse().unwrap();
    let beat = r#"{"kind":"heartbeat","timestamp":"2026-04-20T12:00:00.123Z"}"#;
    let mut first = app.log.heartbeats();
    first.sort();
    assert_eq!(first, (0..PARTITIONS).map(|partition| (partition, beat.to_owned())).collect::<Vec<_>>());

    app.clock.set(noon.plus(3_599_999));
    assert_eq!(app.service.heartbeat_once().await, 0);
    app.get(CLICK).await;
    app.clock.set(noon.plus(3_600_000));
    assert_eq!(app.service.heartbeat_once().await, PARTITIONS as usize - 1, "the click moves its partition on");
    let clicked = app.log.click_texts()[0].0;
    let second = &app.log.heartbeats()[PARTITIONS as usize..];
    assert!(
        second.iter().all(|(partition, text)| *partition != clicked && text.contains("13:00:00.123Z")),
        "{second:?}"
    );
    assert_eq!(app.service.heartbeat_once().await, 0);

    app.clock.set(noon);
    assert_eq!(
        app.service.heartbeat_once().await,
        PARTITIONS as usize,
        "a clock that was set back does not silence it"
    );
}

#[tokio::test]
async fn heartbeats_go_on_when_the_log_stands_still() {
    let app = TestApp::with(TestLog::new(), impatient()).await;
    app.log.mode.send_replace(Mode::Holds);
    app.clock.set("2026-04-20T13:00:00Z".parse().unwrap());
    assert_eq!(app.service.heartbeat_once().await, 0);
    app.log.mode.send_replace(Mode::Fails);
    assert_eq!(app.service.heartbeat_once().await, 0);
    app.log.mode.send_replace(Mode::Works);
    app.clock.set("2026-04-20T14:00:00Z".parse().unwrap());
    eventually("all partitions", || {
        let beats = app.log.heartbeats();
        (0..PARTITIONS).all(|p| beats.iter().any(|(partition, text)| *partition == p && text.contains("T14:00")))
    })
    .await;
}

#[tokio::test]
async fn heartbeats_begin_again_after_a_panic() {
    let settings = Settings { heartbeat_interval: Duration::from_millis(40), ..Settings::default() };
    let app = TestApp::with(TestLog::new(), settings).await;
    let asked = *app.log.asked.borrow();
    app.log.mode.send_replace(Mode::Panics);
    app.clock.set("2026-04-20T13:00:00Z".parse().unwrap());
    // All of them, so that the panic has reached who sends them.
    eventually("the panics", || *app.log.asked.borrow() >= asked + PARTITIONS as usize).await;
    app.log.mode.send_replace(Mode::Works);
    app.clock.set("2026-04-20T14:00:00Z".parse().unwrap());
    eventually("heartbeats", || app.log.heartbeats().iter().any(|(_, text)| text.contains("T14:00"))).await;
    assert_eq!(app.get(CLICK).await.status, 302);
}

#[tokio::test]
async fn redirects_with_different_clocks_share_a_log() {
    let log = TestLog::new();
    let (one, other) =
        (TestApp::with(log.clone(), Settings::default()).await, TestApp::with(log.clone(), Settings::default()).await);
    other.clock.set("2026-04-20T12:00:30Z".parse().unwrap());
    one.get(CLICK).await;
    other.get(CLICK).await;
    let times: Vec<_> = log.clicks().iter().map(|click| click.timestamp.to_string()).collect();
    assert_eq!(times, [NOON, "2026-04-20T12:00:30.000Z"]);
}

#[tokio::test]
async fn a_connection_serves_many_clicks() {
    let app = TestApp::start().await;
    let mut stream = app.connect().await;
    let get = format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\n");
    let post = format!("POST {CLICK} HTTP/1.1\r\nHost: t\r\nContent-Length: 65536\r\n\r\n{}", "x".repeat(65_536));
    let three = format!("{get}\r\n{post}{get}Connection: close\r\n\r\n");
    stream.write_all(three.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let statuses: Vec<_> = answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).collect();
    assert_eq!(statuses, ["302 Found", "204 No Content", "302 Found"]);
    assert_eq!(app.log.clicks().len(), 3);
}
