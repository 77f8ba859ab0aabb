//! The routes, and the one handler of a click.

use crate::append::Appender;
use crate::catalog::{AdState, Catalog};
use crate::client;
use crate::ip_hash::{IpHasher, Secret};
use crate::problem::Problem;
use crate::seen::SeenBefore;
use crate::settings::Settings;
use crate::url::ClickUrl;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use bytes::Bytes;
use click::{Click, ClickId, Clock, Event, InvalidReason, Millis};
use serving::metrics::Histogram;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tally_log::partitioner::partition_of;
use tally_log::{Log, Topic};

/// Largest body of a POST, in bytes. Browsers bound beacons to as much.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long the body of a POST may take to arrive once its click is recorded.
const BODY_WAIT: Duration = Duration::from_secs(1);
/// What a client is told to wait before it tries again, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Names the click in every answer to one.
const X_CLICK_ID: HeaderName = HeaderName::from_static("x-click-id");
/// What the lack of keys means, as `/readyz` says it.
const UNSIGNED: &str = "no keys are configured: every well-formed click counts";

/// The redirect. Clones are the same service.
#[derive(Clone)]
pub struct Service(Arc<Parts>);

struct Parts {
    appender: Arc<Appender>,
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    ip_hasher: IpHasher,
    settings: Settings,
    seen: Arc<dyn SeenBefore>,
    /// Seconds from a click's arrival to its answer, if somebody asked for them.
    answer_seconds: OnceLock<Histogram>,
    clicks_answered: AtomicU64,
    prefetches: AtomicU64,
    refused: AtomicU64,
    failures: AtomicU64,
}

/// What a service has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Clicks that are durable and were answered with a redirect, or 204 for a POST.
    pub clicks_answered: u64,
    /// Prefetches that are durable and were answered 503.
    pub prefetches: u64,
    /// Requests that were answered with a 4xx.
    pub refused: u64,
    /// Clicks and prefetches that were answered 503 because the log did not take them in time. Some of them may be in
    /// the log.
    pub failures: u64,
}

impl Service {
    /// A service that writes to `topic` of `log`. Several may share one.
    pub fn new(
        log: Arc<dyn Log>,
        topic: Topic,
        catalog: Arc<Catalog>,
        clock: Arc<dyn Clock>,
        secret: Secret,
        settings: Settings,
        seen: Arc<dyn SeenBefore>,
    ) -> Self {
        tracing::warn!("{UNSIGNED}");
        let appender = Arc::new(Appender::new(log, topic, settings.append_wait, settings.appends_in_flight_max));
        Service(Arc::new(Parts {
            appender,
            catalog,
            clock,
            ip_hasher: IpHasher::new(secret),
            settings,
            seen,
            answer_seconds: OnceLock::new(),
            clicks_answered: AtomicU64::new(0),
            prefetches: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// The routes. They need the client's address as [`ConnectInfo<SocketAddr>`], which [`crate::serve`] gives them,
    /// and axum's `into_make_service_with_connect_info::<SocketAddr>()`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/api/v1/click/{impression_id}", any(click))
            .route("/healthz", any(healthz))
            .route("/readyz", any(readyz))
            .fallback(unknown_path)
            .with_state(self.clone())
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Parts { clicks_answered, prefetches, refused, failures, .. } = &*self.0;
        Counters {
            clicks_answered: read(clicks_answered),
            prefetches: read(prefetches),
            refused: read(refused),
            failures: read(failures),
        }
    }

    /// Observes the time of every answer to a click from now on. The first histogram stays.
    pub fn observe_answers(&self, seconds: Histogram) {
        let _ = self.0.answer_seconds.set(seconds);
    }

    /// Clicks that were handed to the log and have no answer of it yet.
    pub fn appends_in_flight(&self) -> u32 {
        self.0.appender.in_flight()
    }

    /// Whether clicks are recorded now; if not, why.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.0.appender.is_failing() { Err("the last append failed") } else { Ok(()) }
    }

    /// What it was configured with.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn appender(&self) -> &Arc<Appender> {
        &self.0.appender
    }

    pub(crate) fn now(&self) -> Millis {
        self.0.clock.now()
    }

    fn refuse(&self, problem: Problem) -> Response {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        problem.into_response()
    }

    /// The event of one click, as the log keeps it.
    async fn event(
        &self,
        click_id: ClickId,
        at: Millis,
        url: ClickUrl<'_>,
        peer: IpAddr,
        headers: &HeaderMap,
        invalid_reason: Option<InvalidReason>,
    ) -> Click {
        // The hint is worth a few milliseconds and no click: late is as good as unknown.
        let seen = self.0.seen.seen_before(&url.impression_id, at);
        let seen_before = tokio::time::timeout(self.0.settings.seen_wait, seen).await.ok().flatten();
        let (address, country) = client::address_and_country(&self.0.settings, peer, headers);
        Click {
            click_id,
            impression_id: url.impression_id,
            // From the catalog, which is the authority, whatever the URL says.
            ad_id: url.ad.ad_id.clone(),
            campaign_id: url.ad.campaign_id.clone(),
            publisher_id: url.ad.publisher_id.clone(),
            timestamp: at,
            ip_hash: self.0.ip_hasher.hash(address, at),
            user_agent: client::user_agent(headers),
            country,
            seen_before,
            attempt: 1,
            invalid_reason,
        }
    }
}

/// Answers a click: redirects a GET, acknowledges a POST, and tells a HEAD what a GET would hear.
async fn click(State(service): State<Service>, request: Request) -> Response {
    // The one and only time of the click. Nothing in the request is asked about it.
    let at = service.now();
    let arrived = service.0.answer_seconds.get().map(|seconds| (seconds, Instant::now()));
    let (request, body) = request.into_parts();
    let is_post = request.method == Method::POST;
    if !is_post && request.method != Method::GET && request.method != Method::HEAD {
        return service.refuse(Problem::method(request.method.as_str(), "GET, HEAD, POST"));
    }
    let Some(ConnectInfo(peer)) = request.extensions.get::<ConnectInfo<SocketAddr>>() else {
        tracing::error!("the server does not tell the client's address");
        return Problem::no_peer().into_response();
    };
    let body_bytes = body.size_hint().lower();
    if body_bytes > BODY_BYTES_MAX as u64 {
        return service.refuse(Problem::too_large(&body_bytes.to_string()));
    }
    let url = match ClickUrl::parse(&request.uri, &service.0.catalog) {
        Ok(url) => url,
        Err(problem) => return service.refuse(problem),
    };
    let invalid_reason = if client::is_prefetch(&request.headers) {
        Some(InvalidReason::Prefetch)
    } else if url.ad.state != AdState::Active {
        Some(InvalidReason::Inactive)
    } else if !url.agrees {
        Some(InvalidReason::Mismatch)
    } else {
        None
    };
    let is_prefetch = invalid_reason == Some(InvalidReason::Prefetch);
    let click_id = ClickId::new(at);
    let mut response = if is_prefetch {
        Problem::prefetch().into_response()
    } else if is_post {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let location = url.ad.landing_page.location(click_id, &url.impression_id);
        (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
    };
    if request.method != Method::HEAD {
        let key = url.impression_id.clone();
        let partition = partition_of(key.as_str().as_bytes(), service.appender().topic.partitions);
        let event = service.event(click_id, at, url, peer.ip(), &request.headers, invalid_reason).await;
        let json = serde_json::to_vec(&Event::Click(event))
            .expect("an event has string keys and no value that JSON cannot hold");
        // A crash before this line: the click is neither recorded nor answered. A crash within: it is recorded or
        // not, and not answered. In both cases the browser sees a failure, and a retry is another click of the same
        // impression, of which one is counted.
        if service.appender().click(partition, key, at, Bytes::from(json)).await.is_err() {
            service.0.failures.fetch_add(1, Ordering::Relaxed);
            response = Problem::not_recorded().into_response();
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        } else {
            // From here on the click counts, whether or not the answer arrives.
            let counter = if is_prefetch { &service.0.prefetches } else { &service.0.clicks_answered };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if is_post {
            drain(body).await;
        }
    }
    if let Some((seconds, arrived)) = arrived {
        seconds.observe(arrived.elapsed().as_secs_f64());
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(
        X_CLICK_ID,
        HeaderValue::try_from(click_id.to_string()).expect("a UUID is hexadecimal digits and hyphens"),
    );
    response
}

/// Reads the body of a POST and throws it away, as far as it is short and comes soon: a connection that is closed with
/// unread bytes is reset, and the answer can be lost with it. What is left over closes the connection.
async fn drain(body: Body) {
    let _ = tokio::time::timeout(BODY_WAIT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
}

async fn healthz(State(service): State<Service>, method: Method) -> Response {
    match reads(&service, &method) {
        Some(refused) => refused,
        None => ([(header::CACHE_CONTROL, NO_STORE)], "ok\n").into_response(),
    }
}

/// Ready unless the last append failed. Heartbeats go on meanwhile, so it is ready again soon after the log is, also
/// without clicks.
async fn readyz(State(service): State<Service>, method: Method) -> Response {
    if let Some(refused) = reads(&service, &method) {
        return refused;
    }
    let ready = service.ready();
    let status = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let (ready, log) = (ready.is_ok(), ready.err().unwrap_or("ok"));
    let body = Json(serde_json::json!({ "ready": ready, "log": log, "signatures": UNSIGNED }));
    (status, [(header::CACHE_CONTROL, NO_STORE)], body).into_response()
}

/// Refuses methods that change something.
fn reads(service: &Service, method: &Method) -> Option<Response> {
    let allowed = method == Method::GET || method == Method::HEAD;
    (!allowed).then(|| service.refuse(Problem::method(method.as_str(), "GET, HEAD")))
}

async fn unknown_path(State(service): State<Service>, request: Request) -> Response {
    service.refuse(Problem::unknown_path(request.uri().path()))
}
