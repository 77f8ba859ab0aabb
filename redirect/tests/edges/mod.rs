//! The edges of HTTP: what is not a well-behaved browser's request. `docs/http.md` says what each of them gets.

use crate::app::{Answer, TestApp, TestLog, no_rules};
use redirect::Settings;
use services::nginx::Nginx;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// What must happen happens sooner, however busy the machine is.
const LONG: Duration = Duration::from_secs(60);
const CLICK: &str = "/api/v1/click/imp_1?ad_id=ad_9";

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let app = TestApp::start().await;
    let mut stream = app.connect().await;
    let mut requests = String::new();
    for number in 0..20 {
        let last = if number == 19 { "Connection: close\r\n" } else { "" };
        requests += &format!("GET /api/v1/click/imp_{number}?ad_id=ad_9 HTTP/1.1\r\nHost: t\r\n{last}\r\n");
    }
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let impressions: Vec<&str> = text.split("&i=imp_").skip(1).map(|rest| rest.split('&').next().unwrap()).collect();
    assert_eq!(impressions, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(app.log.clicks().len(), 20);
}

#[tokio::test]
async fn heads_of_any_size_are_taken_or_refused_and_never_more() {
    let app = TestApp::start().await;
    let mut statuses = Vec::new();
    for kilobytes in [0, 1, 4, 8, 15, 64, 600] {
        let header = format!("X-Padding: {}\r\n", "x".repeat(kilobytes * 1_024));
        let request = format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{header}\r\n");
        let mut stream = app.connect().await;
        // The service may have hung up before all of it was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        statuses.push(String::from_utf8_lossy(&bytes).split(' ').nth(1).unwrap_or("none").to_owned());
    }
    let taken = statuses.iter().take_while(|status| *status == "302").count();
    assert!(taken >= 5, "{statuses:?}");
    assert!(statuses[taken..].iter().all(|status| status == "431" || status == "none"), "{statuses:?}");
    assert!(taken < statuses.len(), "{statuses:?}");
    assert_eq!(app.log.clicks().len(), taken);
    // Very many headers, too.
    let many: String = (0..2_000).map(|number| format!("X-{number}: 1\r\n")).collect();
    let answer =
        Answer::read(sent(&app, &format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{many}\r\n")).await)
            .await;
    assert_eq!(answer.status, 431);
}

async fn sent(app: &TestApp, request: &str) -> tokio::net::TcpStream {
    let mut stream = app.connect().await;
    let _ = stream.write_all(request.as_bytes()).await;
    stream
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_records_nothing() {
    let app = TestApp::start().await;
    for request in [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "GET /api/v1/click/imp 1?ad_id=ad_9 HTTP/1.1\r\nHost: t\r\n\r\n",
        "GET /api/v1/click/i?ad_id=ad_9 HTTP/9.9\r\nHost: t\r\n\r\n",
        "GET /api/v1/click/i?ad_id=ad_9 HTTP/1.1\r\nHost t\r\n\r\n",
        "GET /api/v1/click/i?ad_id=ad_9 HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n",
        "POST /api/v1/click/i?ad_id=ad_9 HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = sent(&app, request).await;
        stream.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{request:?}: {text}");
    }
    assert_eq!(app.log.clicks().len(), 0);
    assert_eq!(app.get(CLICK).await.status, 302, "it goes on");
}

#[tokio::test]
async fn a_client_that_takes_its_time_holds_up_nobody_and_is_hung_up_on() {
    let settings = Settings { head_wait: Duration::from_millis(300), connections_max: 8, ..Settings::default() };
    let app = TestApp::with_all(TestLog::new(), settings, no_rules()).await;
    // A byte now and then, on as many connections as there may be.
    let mut slow = Vec::new();
    for _ in 0..8 {
        slow.push(sent(&app, "GET /api/v1/click/i?ad").await);
    }
    for stream in &mut slow {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        assert!(!String::from_utf8_lossy(&bytes).contains(" 302 "));
    }
    assert_eq!(app.get(CLICK).await.status, 302, "there is room again");
    // A beacon whose body never comes is counted, and answered.
    let head = "POST /api/v1/click/slow?ad_id=ad_9 HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n";
    let mut stream = sent(&app, head).await;
    let mut bytes = vec![0; 64];
    let read = stream.read(&mut bytes).await.unwrap();
    assert!(String::from_utf8_lossy(&bytes[..read]).starts_with("HTTP/1.1 204"));
    assert_eq!(app.log.clicks().len(), 2);
}

#[tokio::test]
async fn a_connection_that_is_idle_after_an_answer_is_closed() {
    let settings = Settings { head_wait: Duration::from_millis(300), ..Settings::default() };
    let app = TestApp::with_all(TestLog::new(), settings, no_rules()).await;
    let mut stream = sent(&app, &format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
    let mut text = String::new();
    // Ends with the connection, which the client leaves open.
    tokio::time::timeout(LONG, stream.read_to_string(&mut text)).await.expect("the service hangs up").unwrap();
    assert!(text.starts_with("HTTP/1.1 302"), "{text}");
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
}

#[tokio::test]
async fn old_and_odd_forms_of_a_request_are_clicks_too() {
    let app = TestApp::start().await;
    for (request, version) in [
        (format!("GET {CLICK} HTTP/1.0\r\n\r\n"), "HTTP/1.0"),
        (format!("GET http://t{CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"), "HTTP/1.1"),
        (format!("GET http://evil.example{CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"), "HTTP/1.1"),
        (format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"), "HTTP/1.1"),
    ] {
        let before = app.log.clicks().len();
        let mut stream = sent(&app, &request).await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with(&format!("{version} 302")), "{request:?}: {text}");
        assert!(text.contains("location: https://shop.example/ad_9?"), "{request:?}: {text}");
        assert_eq!(app.log.clicks().len(), before + 1, "{request:?}");
    }
    for method in ["GET", "HEAD", "POST"] {
        let before = app.log.clicks().len();
        assert_eq!(app.send(method, CLICK, "Content-Length: 65537\r\n").await.status, 413, "{method}");
        assert_eq!(app.log.clicks().len(), before);
    }
}

/// A proxy that goes by the other of the two sees another request behind this one. So the chunks count, and whatever comes
/// behind them is not answered (RFC 9112, section 6.1).
#[tokio::test]
async fn a_body_of_two_lengths_is_the_last_of_its_connection() {
    let app = TestApp::start().await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    let length = "Content-Length: 3\r\n";
    let mut recorded = 0;
    let (both, first) = (["204 No Content", "302 Found"], ["204 No Content"]);
    for (lines, expected) in [
        (chunked.to_string(), &both[..]),
        (format!("{chunked}{length}"), &first),
        (format!("{length}{chunked}"), &first),
    ] {
        let post = format!("POST {CLICK} HTTP/1.1\r\nHost: t\r\n{lines}\r\n5\r\nabcde\r\n0\r\n\r\n");
        let get = format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        let mut stream = sent(&app, &format!("{post}{get}")).await;
        let mut bytes = Vec::new();
        // What was not read resets the connection.
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let statuses: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).collect();
        assert_eq!(statuses, expected, "{lines:?}");
        recorded += statuses.len();
        assert_eq!(app.log.clicks().len(), recorded, "{lines:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_its_body_is_told_to() {
    let app = TestApp::start().await;
    let head = |length| {
        format!(
            "POST {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut stream = sent(&app, &head(3)).await;
    let mut told = [0; 25];
    tokio::time::timeout(LONG, stream.read_exact(&mut told)).await.expect("it is told").unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    assert_eq!(Answer::read(stream).await.status, 204);
    assert_eq!(Answer::read(sent(&app, &head(65_537)).await).await.status, 413, "without its being sent");
    assert_eq!(app.log.clicks().len(), 1);
}

/// hyper has no bound for it: see `serving`'s connections.
#[tokio::test]
async fn a_client_that_reads_no_answer_is_hung_up_on() {
    let settings = Settings { head_wait: Duration::from_millis(300), connections_max: 1, ..Settings::default() };
    let app = TestApp::with_all(TestLog::new(), settings, no_rules()).await;
    let socket = TcpSocket::new_v4().unwrap();
    // Full after a few answers, and so are the service's own buffers soon.
    socket.set_recv_buffer_size(1_024).unwrap();
    let mut deaf = socket.connect(app.address).await.unwrap();
    let requests = format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\n\r\n").repeat(100);
    let asking = async { while deaf.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(LONG, asking).await.expect("the service hangs up");
    let answer = tokio::time::timeout(LONG, app.get(CLICK)).await.expect("there is room again");
    assert_eq!(answer.status, 302);
}

#[tokio::test]
async fn behind_a_proxy_it_speaks_tls_and_http_2() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()], ..Settings::default() };
    let app = TestApp::with_all(TestLog::new(), settings, no_rules()).await;
    let Some(nginx) = Nginx::start(dir.path(), &app.address.to_string()) else { return };
    let url = format!("{}{CLICK}&campaign_id=cmp_7", nginx.url());
    let curl = move |more: &[&str]| {
        let mut curl = Command::new("curl");
        let format = "%{http_code} %{http_version} %{redirect_url}";
        curl.args(["-sk", "--http2", "-o", "/dev/null", "-w", format]).args(more).arg(&url);
        let output = curl.output().expect("curl runs");
        String::from_utf8(output.stdout).unwrap()
    };
    let (get, post) =
        tokio::task::spawn_blocking(move || (curl(&["-H", "X-Forwarded-For: 203.0.113.9"]), curl(&["-d", "x"])))
            .await
            .unwrap();
    assert!(get.starts_with("302 2 https://shop.example/ad_9?c="), "{get}");
    assert!(post.starts_with("204 2"), "{post}");
    let clicks = app.log.clicks();
    assert_eq!(clicks.len(), 2);
    // One is the address that the proxy before nginx named, since nginx, on a trusted address, vouches for it.
    assert_ne!(clicks[0].ip_hash, clicks[1].ip_hash);
}
