//! The log on a real Kafka. A binary of its own, since it starts processes: see `kill.rs`.
#![allow(clippy::unwrap_used)]

mod appending;
#[allow(dead_code)]
#[path = "../log/conformance.rs"]
mod conformance;
mod faults;
mod groups;
mod leaderless;
mod passwords;
mod replaced;
mod support;
#[cfg(feature = "kafka-tls")]
mod tls;
mod topics;
