//! The routes, and the one handler of a click.

use crate::append::Appender;
use crate::block::Blocks;
use crate::catalog::{AdState, Catalog};
use crate::client;
use crate::country::Countries;
use crate::ip_hash::{IpHasher, Secret};
use crate::problem::Problem;
use crate::reload::Reloaded;
use crate::seen::SeenBefore;
use crate::settings::Settings;
use crate::signature::Keys;
use crate::spool::{Spool, SpoolCounters};
use crate::url::{CLICK_PATH, ClickUrl};
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use bytes::Bytes;
use click::{Click, ClickId, Clock, Country, Event, InvalidReason, Millis};
use serving::metrics::Histogram;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tally_log::partitioner::partition_of;
use tally_log::{Log, Topic};

/// Largest body of a POST, in bytes. Browsers bound beacons to as much.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// More than the event of a usual click has, in bytes.
const EVENT_BYTES: usize = 640;
/// How long the body of a POST may take to arrive once its click is recorded.
const BODY_WAIT: Duration = Duration::from_secs(1);
/// What a client is told to wait before it tries again, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Names the click in every answer to one.
const X_CLICK_ID: HeaderName = HeaderName::from_static("x-click-id");
/// What the lack of keys means, as the operators' `/readyz` says it.
const UNSIGNED: &str = "no keys are configured: every well-formed click counts";

/// The redirect. Clones are the same service.
#[derive(Clone)]
pub struct Service(Arc<Parts>);

/// What a service judges clicks by, and where it puts those that the log does not take.
pub struct With {
    /// What hashes of addresses are made with.
    pub secret: Secret,
    pub seen: Arc<dyn SeenBefore>,
    /// Without keys every well-formed click counts.
    pub keys: Keys,
    pub blocks: Arc<Reloaded<Blocks>>,
    pub countries: Option<Arc<Reloaded<Countries>>>,
    pub spool: Option<Spool>,
}

impl With {
    /// No keys, no rules, no country file and no spool.
    pub fn new(secret: Secret, seen: Arc<dyn SeenBefore>) -> With {
        // Without a file there is nothing that could fail.
        let blocks = Reloaded::fixed("block rules", Blocks::default());
        With { secret, seen, keys: Keys::default(), blocks, countries: None, spool: None }
    }
}

struct Parts {
    appender: Arc<Appender>,
    catalog: Arc<Reloaded<Catalog>>,
    clock: Arc<dyn Clock>,
    ip_hasher: IpHasher,
    settings: Settings,
    seen: Arc<dyn SeenBefore>,
    keys: Keys,
    blocks: Arc<Reloaded<Blocks>>,
    countries: Option<Arc<Reloaded<Countries>>>,
    /// Seconds from a click's arrival to its answer, if somebody asked for them.
    answer_seconds: OnceLock<Histogram>,
    clicks_answered: AtomicU64,
    prefetches: AtomicU64,
    refused: AtomicU64,
    failures: AtomicU64,
    /// Clicks that were recorded with a reason, by [`InvalidReason::ALL`].
    invalid: [AtomicU64; InvalidReason::ALL.len()],
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
        catalog: Arc<Reloaded<Catalog>>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        with: With,
    ) -> Self {
        let With { secret, seen, keys, blocks, countries, spool } = with;
        if keys.is_empty() {
            tracing::warn!("{UNSIGNED}");
        }
        let appender = Appender::new(log, topic, settings.append_wait, settings.appends_in_flight_max, spool);
        let appender = Arc::new(appender);
        Service(Arc::new(Parts {
            appender,
            catalog,
            clock,
            ip_hasher: IpHasher::new(secret),
            settings,
            seen,
            keys,
            blocks,
            countries,
            answer_seconds: OnceLock::new(),
            clicks_answered: AtomicU64::new(0),
            prefetches: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            invalid: Default::default(),
        }))
    }

    /// The routes. They need the client's address as [`ConnectInfo<SocketAddr>`], which [`crate::serve`] gives them,
    /// and axum's `into_make_service_with_connect_info::<SocketAddr>()`.
    pub fn router(&self) -> Router {
        // Not a route of its own: axum would copy its parameters out of every path, and nobody reads them.
        Router::new()
            .route("/healthz", any(healthz))
            .route("/readyz", any(readyz))
            .fallback(click_or_unknown_path)
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
    pub fn ready(&self) -> Result<(), String> {
        match self.0.appender.spool() {
            Some(spool) => spool.ready(),
            None if self.0.appender.is_failing() => Err("the last append failed".into()),
            None => Ok(()),
        }
    }

    /// What operators may know beside that: which keys there are, and which files were refused.
    pub fn details(&self) -> serde_json::Value {
        let Parts { keys, catalog, blocks, countries, .. } = &*self.0;
        let signatures = if keys.is_empty() { UNSIGNED.to_string() } else { format!("needed; keys: {}", keys.ids()) };
        let countries = countries.as_ref().and_then(|countries| countries.refused());
        let refused: serde_json::Map<_, _> =
            [("catalog", catalog.refused()), ("block rules", blocks.refused()), ("country file", countries)]
                .into_iter()
                .filter_map(|(file, why)| Some((file.to_owned(), why?.into())))
                .collect();
        serde_json::json!({ "signatures": signatures, "refusedFiles": refused })
    }

    /// What the spool holds and did, if there is one.
    pub fn spool(&self) -> Option<SpoolCounters> {
        self.0.appender.spool().map(Spool::counters)
    }

    /// Clicks that were recorded with a reason for which they are not billed, by reason.
    pub fn invalid(&self) -> impl Iterator<Item = (InvalidReason, u64)> + '_ {
        InvalidReason::ALL.iter().zip(&self.0.invalid).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
    }

    /// Versions of files that were refused while it ran.
    pub fn reload_refusals(&self) -> u64 {
        let Parts { catalog, blocks, countries, .. } = &*self.0;
        catalog.refusals() + blocks.refusals() + countries.as_ref().map_or(0, |countries| countries.refusals())
    }

    /// What runs beside the answers, for ever: files are followed, and the spool is sent. [`crate::serve`] does it until it
    /// has drained.
    pub async fn beside(&self) {
        let Parts { catalog, blocks, countries, appender, .. } = &*self.0;
        let countries = async {
            match countries {
                Some(countries) => countries.clone().follow().await,
                None => std::future::pending().await,
            }
        };
        let spool = async {
            match appender.spool() {
                Some(spool) => spool.clone().resend(appender.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(catalog.clone().follow(), blocks.clone().follow(), countries, spool);
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
        (address, named): (IpAddr, Option<Country>),
        headers: &HeaderMap,
        invalid_reason: Option<InvalidReason>,
    ) -> Click {
        // The hint is worth a few milliseconds and no click: late is as good as unknown.
        let seen = self.0.seen.seen_before(&url.impression_id, at);
        let seen_before = tokio::time::timeout(self.0.settings.seen_wait, seen).await.ok().flatten();
        let countries = self.0.countries.as_ref().map(|countries| countries.current());
        let country = countries.and_then(|countries| countries.of(address)).or(named).unwrap_or(Country::UNKNOWN);
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
async fn click(service: Service, request: Request) -> Response {
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
    // This version of the catalog is the one that this click goes by.
    let catalog = service.0.catalog.current();
    let url = match ClickUrl::parse(&request.uri, &catalog, &service.0.keys, at) {
        Ok(url) => url,
        Err(problem) => return service.refuse(problem),
    };
    let client = client::address_and_country(&service.0.settings, peer.ip(), &request.headers);
    // The first of these that is so. Which one makes no difference to what is billed.
    let invalid_reason = if client::is_prefetch(&request.headers) {
        Some(InvalidReason::Prefetch)
    } else if service.0.blocks.current().block(client.0, &request.headers) {
        Some(InvalidReason::Blocked)
    } else if let Err(reason) = url.signature {
        Some(reason)
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
        let query = request.uri.query().unwrap_or_default();
        let location = url.ad.page().location(click_id, &url.impression_id, url.ad.parameters.as_deref(), query);
        (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
    };
    if request.method != Method::HEAD {
        let key = url.impression_id.clone();
        let partition = partition_of(key.as_str().as_bytes(), service.appender().topic.partitions);
        let event = service.event(click_id, at, url, client, &request.headers, invalid_reason).await;
        let mut json = Vec::with_capacity(EVENT_BYTES);
        serde_json::to_writer(&mut json, &Event::Click(event))
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
            let at = InvalidReason::ALL.iter().position(|reason| Some(*reason) == invalid_reason);
            if let Some(counter) = at.and_then(|at| service.0.invalid.get(at)) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
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

/// Ready while a click would be recorded, also if the log failed now. It says so before it is too late: when the spool is
/// nearly full, or cannot be written. Without a spool, when the last append failed; heartbeats go on meanwhile, so it is
/// ready again soon after the log is, also without clicks.
async fn readyz(State(service): State<Service>, method: Method) -> Response {
    if let Some(refused) = reads(&service, &method) {
        return refused;
    }
    // Why not, and with which keys, is for operators: this port is the public's.
    let ready = service.ready().is_ok();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, NO_STORE)], Json(serde_json::json!({ "ready": ready }))).into_response()
}

/// Refuses methods that change something.
fn reads(service: &Service, method: &Method) -> Option<Response> {
    let allowed = method == Method::GET || method == Method::HEAD;
    (!allowed).then(|| service.refuse(Problem::method(method.as_str(), "GET, HEAD")))
}

async fn click_or_unknown_path(State(service): State<Service>, request: Request) -> Response {
    let path = request.uri().path();
    match path.strip_prefix(CLICK_PATH) {
        Some(impression_id) if !impression_id.is_empty() && !impression_id.contains('/') => {
            click(service, request).await
        }
        _ => service.refuse(Problem::unknown_path(path)),
    }
}
