//! What an operator does with pipelines on Arroyo: real Kafka, Redis and ClickHouse, and an Arroyo that answers as a real
//! one was recorded.
#![allow(clippy::unwrap_used)]

mod deploys;
mod engine;
#[allow(dead_code)]
#[path = "../../../deploy/tests/it/fake.rs"]
mod fake;
mod lost;
#[allow(dead_code)]
#[path = "../../../log/tests/kafka/support.rs"]
mod operator;
mod rebuild;
mod repaired;
mod site;
mod versions;
