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
//! * [`config`]: of `tally-reporting`, the process of its own
//! * [`dashboard`]: one page, which reads the API and nothing else
//!
//! A report comes from whatever implements [`warehouse::report::Reports`]: nothing here knows how clicks are kept.

#![forbid(unsafe_code)]

mod answer;
mod api;
mod columns;
pub mod config;
mod dashboard;
mod problem;
mod query;

pub use api::{ready, router};
