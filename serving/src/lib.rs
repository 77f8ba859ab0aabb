//! What every process of Tally has beside its work.
//!
//! # Layout
//!
//! * [`config`]: a TOML file, and environment variables that win over it
//! * [`process`]: log lines, and the signal to stop
//! * `connections`: [`serve`], HTTP/1.1 within [`Limits`], and a stop that drains
//! * [`admin`]: the port for operators, with [`metrics`] for Prometheus

#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
mod connections;
pub mod metrics;
pub mod process;

pub use connections::{Limits, bind, connections_max, serve};
