//! What an operator can set.

use axum::http::HeaderName;
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// What an operator can set. The default trusts nobody and suits one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long an answer waits for the log. After it the answer is 503: a click that may not be recorded is never
    /// redirected.
    pub append_wait: Duration,
    /// Clicks that may be on their way to the log at once, those whose client has gone or was answered 503 included.
    /// One more is answered 503 at once, so a log that stands still costs bounded memory.
    pub appends_in_flight_max: u32,
    /// How long a click waits for the seen-before hint, which is `null` after it.
    pub seen_wait: Duration,
    /// How long a partition may be silent before it gets a heartbeat.
    pub heartbeat_interval: Duration,
    /// Peers that may speak for a client with [`Self::forwarded_header`] and [`Self::country_header`].
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which trusted proxies name whom they speak for: `X-Forwarded-For`, or `Forwarded` (RFC 7239).
    pub forwarded_header: HeaderName,
    /// The header in which a trusted proxy names the client's country, e.g. `X-Country`.
    pub country_header: Option<HeaderName>,
    /// Connections that may be open at once. Others wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a request's head may take to arrive, and so how long a connection may be idle.
    pub head_wait: Duration,
    /// How long a stop waits for answers under way and for the log.
    pub drain_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            append_wait: Duration::from_secs(5),
            appends_in_flight_max: 16_384,
            seen_wait: Duration::from_millis(5),
            heartbeat_interval: Duration::from_secs(1),
            trusted_proxies: Vec::new(),
            forwarded_header: HeaderName::from_static("x-forwarded-for"),
            country_header: None,
            connections_max: 10_000,
            head_wait: Duration::from_secs(30),
            drain_wait: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Whether headers of this peer are believed.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|proxies| proxies.contains(&peer))
    }
}
