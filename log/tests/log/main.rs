//! The log through its real interface and real files.
#![allow(clippy::unwrap_used)]

mod conformance;
mod crash;
mod damage;
mod reading;
mod support;
