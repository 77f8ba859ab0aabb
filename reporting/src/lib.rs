//! Reports over HTTP, and the dashboard that reads them.
//!
//! # Layout
//!
//! The way of a request:
//!
//! * [`api`]: the routes, and how many reports are made at once
//! * [`query`]: what the parameters of a report mean; anything else is refused, never ignored
//! * [`columns`]: what the columns of a report are called in a URL and in an answer
//! * [`answer`]: a report as JSON
//! * [`problem`]: everything that is not an answer, as RFC 9457 problem details
//! * [`dashboard`]: one page, which reads the API and nothing else
//!
//! A report comes from whatever implements [`warehouse::report::Reports`]: nothing here knows how clicks are kept.

#![forbid(unsafe_code)]

mod answer;
mod api;
mod columns;
mod dashboard;
mod problem;
mod query;

pub use api::router;

use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};

/// What an operator sets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where API and dashboard are served. Neither asks who reads, so the default is this machine alone.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)) }
    }
}
