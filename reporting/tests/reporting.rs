//! The reports API and the dashboard, over HTTP.

#![allow(clippy::unwrap_used)]

mod memory;

use async_trait::async_trait;
use click::{ManualClock, Millis};
use memory::MemoryReports;
use proptest::prelude::*;
use reqwest::{Client, Response, StatusCode, header};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use warehouse::report::{Report, ReportError, ReportQuery, Reports};

const CLICKS: &str = "/api/v1/reports/clicks";
const MOBILE: [&str; 5] = ["ad_9", "cmp_7", "pub_4", "DE", "mobile"];
const DESKTOP: [&str; 5] = ["ad_8", "cmp_7", "pub_4", "FR", "desktop"];
const OTHER: [&str; 5] = ["ad_1", "cmp_1", "pub_5", "DE", "mobile"];

fn at(text: &str) -> Millis {
    text.parse().unwrap()
}

/// The service on a port of its own.
struct TestApp {
    base: String,
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Duration>,
}

impl TestApp {
    /// Its clock stands at 12:40:10 on 20 April 2026.
    async fn start(reports: Arc<dyn Reports>) -> TestApp {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = reporting::router(reports, Arc::new(ManualClock::new(at("2026-04-20T12:40:10Z"))));
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serving::serve(listener, router, serving::Limits::default(), async move {
            stopped.await.ok();
        }));
        let client = Client::builder().no_proxy().build().unwrap();
        TestApp { base, client, stop: Some(stop), served }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    /// The answer to a report that is right.
    async fn report(&self, query: &str) -> Value {
        let response = self.get(&format!("{CLICKS}?{query}")).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{query}: {body}");
        body
    }
}

/// Clicks of two days, final until 12:34 of the second.
fn reports() -> Arc<MemoryReports> {
    let reports = MemoryReports::new(at("2026-04-20T12:34:00Z"), at("2026-04-20T12:40:09.5Z"));
    reports.count(at("2026-04-19T23:59:00Z"), MOBILE, 3);
    reports.count(at("2026-04-20T00:00:00Z"), MOBILE, 5);
    reports.count(at("2026-04-20T12:00:00Z"), MOBILE, 841);
    reports.count(at("2026-04-20T12:00:00Z"), OTHER, 7);
    reports.count(at("2026-04-20T12:34:00Z"), DESKTOP, 11);
    Arc::new(reports)
}

/// Checks the status and the form of a problem, and returns it.
async fn problem(response: Response, status: StatusCode) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["type"], "about:blank");
    assert_eq!(body["status"], status.as_u16());
    assert_eq!(body["title"], status.canonical_reason().unwrap());
    assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
    body
}

#[tokio::test]
async fn an_answer_is_as_documented() {
    let app = TestApp::start(reports()).await;
    let response =
        app.get(&format!("{CLICKS}?campaign_id=cmp_7&from=2026-04-20&to=2026-04-20&groupBy=minute,ad_id")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    assert_eq!(
        response.text().await.unwrap(),
        concat!(
            r#"{"rows":[{"minute":"2026-04-20T00:00:00Z","adId":"ad_9","clicks":5,"provisional":false},"#,
            r#"{"minute":"2026-04-20T12:00:00Z","adId":"ad_9","clicks":841,"provisional":false},"#,
            r#"{"minute":"2026-04-20T12:34:00Z","adId":"ad_8","clicks":11,"provisional":true}],"#,
            r#""totals":{"clicks":857,"provisionalClicks":11},"truncated":false,"#,
            r#""completeThrough":"2026-04-20T12:34:00Z","dataLastRefreshed":"2026-04-20T12:40:09.500Z","#,
            r#""query":{"from":"2026-04-20T00:00:00Z","to":"2026-04-21T00:00:00Z","groupBy":["minute","ad_id"],"#,
            r#""filters":{"campaign_id":["cmp_7"]},"orderBy":"time","limit":10000},"nextCursor":null}"#,
        )
    );
}

#[tokio::test]
async fn rows_are_grouped_filtered_ordered_and_cut() {
    let app = TestApp::start(reports()).await;
    let check = async |query: &str, expected: Value| assert_eq!(app.report(query).await["rows"], expected, "{query}");
    let both = "from=2026-04-19&to=2026-04-20";
    check(
        &format!("{both}&groupBy=day"),
        json!([
            {"day": "2026-04-19", "clicks": 3, "provisional": false},
            {"day": "2026-04-20", "clicks": 864, "provisional": true}
        ]),
    )
    .await;
    check(
        "groupBy=hour,country&country=de",
        json!([
            {"hour": "2026-04-20T00:00:00Z", "country": "DE", "clicks": 5, "provisional": false},
            {"hour": "2026-04-20T12:00:00Z", "country": "DE", "clicks": 848, "provisional": false}
        ]),
    )
    .await;
    check(
        "groupBy=device,publisher_id,campaign_id&ad_id=ad_8",
        json!([{"device": "desktop", "publisherId": "pub_4", "campaignId": "cmp_7", "clicks": 11, "provisional": true}]),
    )
    .await;
    check(
        &format!("{both}&groupBy=ad_id&orderBy=-clicks&ad_id=ad_8&ad_id=ad_1&device=desktop&device=mobile"),
        json!([
            {"adId": "ad_8", "clicks": 11, "provisional": true},
            {"adId": "ad_1", "clicks": 7, "provisional": false}
        ]),
    )
    .await;
    check("publisher_id=pub_5", json!([{"clicks": 7, "provisional": false}])).await;
    // A report without columns is one row, also of nothing; a range that is final is so also when it is empty.
    check("ad_id=nothing", json!([{"clicks": 0, "provisional": true}])).await;
    check("ad_id=nothing&to=2026-04-20T12:34:00Z", json!([{"clicks": 0, "provisional": false}])).await;
    check("ad_id=nothing&groupBy=minute", json!([])).await;

    let cut = app.report("groupBy=ad_id&orderBy=-clicks&limit=1").await;
    assert_eq!(cut["rows"], json!([{"adId": "ad_9", "clicks": 846, "provisional": false}]));
    assert_eq!(cut["truncated"], true);
    assert_eq!(cut["totals"], json!({"clicks": 864, "provisionalClicks": 11}), "totals count what was cut too");
}

#[tokio::test]
async fn a_query_is_understood() {
    let app = TestApp::start(reports()).await;
    let check = async |query: &str, field: &str, expected: Value| {
        assert_eq!(app.report(query).await["query"][field], expected, "{query}: {field}");
    };
    // Today, by the clock.
    check("", "from", json!("2026-04-20T00:00:00Z")).await;
    check("", "to", json!("2026-04-21T00:00:00Z")).await;
    // A date in `to` includes its day, a time is left out.
    check("from=2026-02-28&to=2026-02-28", "to", json!("2026-03-01T00:00:00Z")).await;
    check("from=2024-02-29&to=2024-02-29", "to", json!("2024-03-01T00:00:00Z")).await;
    check("from=2025-12-31&to=2025-12-31", "to", json!("2026-01-01T00:00:00Z")).await;
    check("to=2026-04-20T12:34:00Z", "to", json!("2026-04-20T12:34:00Z")).await;
    check("from=2026-04-20T23:59:00Z", "from", json!("2026-04-20T23:59:00Z")).await;
    check("from=2026-04-20T00:30:00%2B02:00", "from", json!("2026-04-19T22:30:00Z")).await;
    check("from=2026-04-20T12:00:00.000Z", "from", json!("2026-04-20T12:00:00Z")).await;
    check("from=1969-12-31&to=1970-01-01", "from", json!("1969-12-31T00:00:00Z")).await;
    // The longest range.
    check("from=2025-01-01T00:00:00Z&to=2026-02-05T00:00:00Z", "from", json!("2025-01-01T00:00:00Z")).await;
    check("groupBy=", "groupBy", json!([])).await;
    check("groupBy=country,hour,ad_id", "groupBy", json!(["hour", "country", "ad_id"])).await;
    check("groupBy=day%2Cdevice", "groupBy", json!(["day", "device"])).await;
    check("orderBy=time", "orderBy", json!("time")).await;
    check("orderBy=-clicks", "orderBy", json!("-clicks")).await;
    check("limit=1", "limit", json!(1)).await;
    check("limit=100000", "limit", json!(100_000)).await;
    check(
        "device=smart%20tv&ad_id=a&ad_id=b&ad_id=a&country=fr&campaign_id=c&publisher_id=p",
        "filters",
        json!({"ad_id": ["a", "b"], "campaign_id": ["c"], "publisher_id": ["p"], "country": ["FR"], "device": ["smart tv"]}),
    )
    .await;
}

#[tokio::test]
async fn what_means_nothing_is_refused_with_its_field() {
    let app = TestApp::start(reports()).await;
    let check = async |query: &str, field: &str, given: &str, allowed: &str| {
        let body = problem(app.get(&format!("{CLICKS}?{query}")).await, StatusCode::BAD_REQUEST).await;
        assert_eq!(body["field"], field, "{query}: {body}");
        assert_eq!(body["given"], given, "{query}: {body}");
        assert!(body["allowed"].as_str().unwrap().contains(allowed), "{query}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(allowed), "{query}: {body}");
    };
    let known = "one of from, to, groupBy, orderBy, limit, ad_id, campaign_id, publisher_id, country, device";
    check("campain_id=cmp_7", "campain_id", "campain_id", known).await;
    check("group_by=minute", "group_by", "group_by", known).await;
    check("From=2026-04-20", "From", "From", known).await;
    check("=x", "", "", known).await;
    check(&format!("{}=1", "x".repeat(81)), &format!("{}…", "x".repeat(80)), &format!("{}…", "x".repeat(80)), known)
        .await;

    for field in ["from", "to"] {
        for wrong in [
            "",
            "today",
            "2026-4-1",
            "2026-02-30",
            "+2026-04-01",
            "20260401",
            " 2026-04-01",
            "2026-04-20T12:00:00",
            "2026-04-20T12:00Z",
            "2026-04-20T12:00:30Z",
            "2026-04-20T12:00:00.001Z",
            "2026-04-20T12:00:00.0000001Z",
            "2026-06-30T23:59:60Z",
            "1600-01-01",
            "2262-04-12",
            "9999-12-31",
            "1776686400",
        ] {
            let encoded = wrong.replace('+', "%2B").replace(' ', "%20");
            check(
                &format!("{field}={encoded}"),
                field,
                wrong,
                "a date (2026-04-20) or an RFC 3339 time of a whole minute",
            )
            .await;
        }
    }
    // A + that is not written %2B is a space.
    check("from=2026-04-20T00:30:00+02:00", "from", "2026-04-20T00:30:00 02:00", "a + in a URL is written %2B").await;
    check("from=2026-04-20&from=2026-04-20", "from", "2026-04-20", "given at most once").await;

    check("to=2026-04-19", "to", "2026-04-19", "after 2026-04-20T00:00:00Z").await;
    check("from=2026-04-21", "from", "2026-04-21", "before 2026-04-21T00:00:00Z").await;
    let noon = "2026-04-20T12:00:00Z";
    check(&format!("from={noon}&to={noon}"), "to", noon, "after 2026-04-20T12:00:00Z").await;
    check("from=2025-01-01&to=2026-02-05", "to", "2026-02-05", "at most 400 days after 2025-01-01T00:00:00Z").await;
    check("from=2020-01-01", "from", "2020-01-01", "at most 400 days before 2026-04-21T00:00:00Z").await;
    check("to=2030-01-01", "to", "2030-01-01", "at most 400 days after 2026-04-20T00:00:00Z").await;

    check("groupBy=minute,hour", "groupBy", "minute,hour", "at most one of minute, hour and day").await;
    check("groupBy=day,day", "groupBy", "day,day", "no name twice").await;
    check("groupBy=ad_id,ad_id", "groupBy", "ad_id,ad_id", "differ from each other").await;
    for wrong in ["adId", "ad_id,", ",", "minute,ip", "ad_id;day", "MINUTE"] {
        check(&format!("groupBy={wrong}"), "groupBy", wrong, "minute, hour, day, ad_id, campaign_id").await;
    }
    check("groupBy=day&groupBy=ad_id", "groupBy", "ad_id", "given at most once").await;
    for wrong in ["", "clicks", "-time", "-CLICKS"] {
        check(&format!("orderBy={wrong}"), "orderBy", wrong, "time or -clicks").await;
    }
    for wrong in ["", "0", "-1", "100001", "1e3", "10.0", "99999999999999999999999", "%2B5"] {
        check(&format!("limit={wrong}"), "limit", &wrong.replace("%2B", "+"), "a whole number from 1 to 100000").await;
    }

    for field in ["ad_id", "campaign_id", "publisher_id"] {
        for wrong in ["", "a b", "a,b", "ä", "a/b"] {
            let encoded = wrong.replace(' ', "%20");
            check(&format!("{field}={encoded}"), field, wrong, "repeat the parameter to name several").await;
        }
        check(&format!("{field}=%FF"), field, "\u{fffd}", "1 to 128 of the characters").await;
    }
    check("country=", "country", "", "two letters").await;
    check("country=DEU", "country", "DEU", "two letters").await;
    check("device=", "device", "", "1 to 128 bytes").await;
    check("device=a%0Ab", "device", "a\nb", "without control characters").await;
    let many = (0..1001).map(|i| format!("ad_id=a{i}")).collect::<Vec<_>>().join("&");
    check(&many, "ad_id", "a1000", "at most 1000 values of all filters").await;
}

#[tokio::test]
async fn a_failure_is_told_without_its_inside() {
    let reports = reports();
    let app = TestApp::start(reports.clone()).await;
    let ready = app.get("/readyz").await;
    assert_eq!(ready.status(), StatusCode::OK);
    assert_eq!(
        ready.json::<Value>().await.unwrap(),
        json!({
            "status": "ready",
            "completeThrough": "2026-04-20T12:34:00Z",
            "dataLastRefreshed": "2026-04-20T12:40:09.500Z"
        })
    );

    reports.0.lock().unwrap().failure = Some("cannot read /secret/part-0.parquet".into());
    for (path, status) in [(CLICKS, StatusCode::INTERNAL_SERVER_ERROR), ("/readyz", StatusCode::SERVICE_UNAVAILABLE)] {
        let body = problem(app.get(path).await, status).await;
        assert!(!body.to_string().contains("secret"), "{body}");
        assert_eq!(body.get("field"), None, "{body}");
    }
    let healthy = app.get("/healthz").await;
    assert_eq!(healthy.status(), StatusCode::OK, "the process runs, whatever the warehouse does");
    assert_eq!(healthy.json::<Value>().await.unwrap(), json!({"status": "ok"}));
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let app = TestApp::start(reports()).await;
    for path in ["/api", "/api/v1/reports", "/api/v1/reports/clicks/", "/dashboard.html", "/%00%FF", "//"] {
        problem(app.get(path).await, StatusCode::NOT_FOUND).await;
    }
    for path in [CLICKS, "/", "/readyz", "/dashboard.js"] {
        for method in [reqwest::Method::POST, reqwest::Method::DELETE, reqwest::Method::PUT] {
            let response = app.client.request(method, format!("{}{path}", app.base)).send().await.unwrap();
            assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
            problem(response, StatusCode::METHOD_NOT_ALLOWED).await;
        }
        let head = app.client.head(format!("{}{path}", app.base)).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_ne!(head.headers()[header::CONTENT_LENGTH], "0");
        assert_eq!(head.bytes().await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn the_dashboard_is_whole_and_lets_nothing_else_in() {
    let app = TestApp::start(reports()).await;
    let page = app.get("/").await;
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    let html = page.text().await.unwrap();
    for forbidden in ["<script>", "<style", "style=", "onclick=", "src=\"http", "href=\"http"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }

    // Every file and report that the page names is there.
    let named: Vec<&str> = html.split('"').filter(|text| text.starts_with('/') && !text.contains('>')).collect();
    assert!(named.contains(&"/dashboard.js") && named.contains(&"/dashboard.css"), "{named:?}");
    for path in named {
        assert_eq!(app.get(path).await.status(), StatusCode::OK, "{path}");
    }
    for (path, kind) in
        [("/dashboard.js", "text/javascript"), ("/chart.js", "text/javascript"), ("/dashboard.css", "text/css")]
    {
        let file = app.get(path).await;
        assert_eq!(file.headers()[header::CONTENT_TYPE], format!("{kind}; charset=utf-8"));
        let text = file.text().await.unwrap();
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "@import", "//cdn"]
        {
            assert!(!text.contains(forbidden), "{path}: {forbidden}");
        }
    }
}

/// Reports that are made when the test lets them.
struct Gate {
    entered: Notify,
    open: Semaphore,
    inner: Arc<MemoryReports>,
}

impl Gate {
    fn closed() -> Arc<Gate> {
        Arc::new(Gate { entered: Notify::new(), open: Semaphore::new(0), inner: reports() })
    }
}

#[async_trait]
impl Reports for Gate {
    async fn report(&self, query: &ReportQuery) -> Result<Report, ReportError> {
        self.entered.notify_one();
        let _open = self.open.acquire().await.unwrap();
        self.inner.report(query).await
    }
}

#[tokio::test]
async fn a_crowd_is_refused_at_once_and_those_inside_are_answered() {
    let gate = Gate::closed();
    let app = TestApp::start(gate.clone()).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..70 {
        let request = app.client.get(format!("{}{CLICKS}", app.base)).send();
        requests.spawn(async move { request.await.unwrap() });
    }
    // No report is made, so only refused ones can be answered: all that find no place.
    for _ in 0..6 {
        let refused = requests.join_next().await.unwrap().unwrap();
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
        problem(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    }
    gate.open.add_permits(1);
    let mut answered = 0;
    while let Some(response) = requests.join_next().await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
        answered += 1;
    }
    assert_eq!(answered, 64);
    assert_eq!(app.get(CLICKS).await.status(), StatusCode::OK, "places are free again");
}

#[tokio::test]
async fn a_stop_answers_what_runs_and_takes_no_more() {
    let gate = Gate::closed();
    let mut app = TestApp::start(gate.clone()).await;
    let mut running = tokio::spawn(app.client.get(format!("{}{CLICKS}", app.base)).send());
    tokio::select! {
        () = gate.entered.notified() => {}
        early = &mut running => panic!("no report was made: {early:?}"),
    }
    app.stop.take().unwrap().send(()).unwrap();
    gate.open.add_permits(1);
    assert_eq!(running.await.unwrap().unwrap().status(), StatusCode::OK);
    app.served.await.unwrap();
    let refused = Client::builder().no_proxy().build().unwrap().get(format!("{}/healthz", app.base)).send().await;
    assert!(refused.unwrap_err().is_connect());
}

fn parameter() -> impl Strategy<Value = (String, String)> {
    let name = prop_oneof![
        8 => proptest::sample::select(vec![
            "from", "to", "groupBy", "orderBy", "limit", "ad_id", "campaign_id", "publisher_id", "country", "device",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let value = prop_oneof![
        proptest::sample::select(vec![
            "2026-04-20",
            "2026-04-19",
            "2026-04-20T12:00:00Z",
            "1677-09-21",
            "2262-04-11",
            "2262-04-11T23:47:00Z",
            "+262142-12-31",
            "-262143-01-01",
            "0000-01-01T00:00:00-23:59",
            "minute,ad_id",
            "day",
            "-clicks",
            "1",
            "DE",
        ])
        .prop_map(str::to_owned),
        "[-+0-9TZ:.,]{0,30}",
        any::<String>(),
    ];
    (name, value)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A panic would end the connection without an answer.
    #[test]
    fn every_query_string_is_answered(
        pairs in proptest::collection::vec(parameter(), 0..4),
        raw in proptest::option::of("[ -~]{0,60}"),
    ) {
        thread_local! {
            static APP: (tokio::runtime::Runtime, TestApp) = {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
                let app = runtime.block_on(TestApp::start(reports()));
                (runtime, app)
            };
        }
        APP.with(|(runtime, app)| runtime.block_on(async {
            let mut url = reqwest::Url::parse(&format!("{}{CLICKS}", app.base)).unwrap();
            match &raw {
                Some(raw) => url.set_query(Some(raw)),
                None => drop(url.query_pairs_mut().extend_pairs(&pairs)),
            }
            let response = app.client.get(url).send().await.unwrap();
            if response.status() == StatusCode::OK {
                let body: Value = response.json().await.unwrap();
                assert!(body["query"]["from"].as_str() < body["query"]["to"].as_str(), "{body}");
            } else {
                let body = problem(response, StatusCode::BAD_REQUEST).await;
                assert!(body["field"].is_string() && body["given"].is_string() && body["allowed"].is_string(), "{body}");
            }
        }));
    }
}
