//! The `tally` command, and the whole system on one machine that `tally up` runs.
//!
//! # Layout
//!
//! * [`config`]: what can be set, by file and by flag
//! * [`machine`]: all parts, joined from the redirect to the report; tests run it in virtual time
//! * [`up`]: runs the parts until they are told to stop
//! * [`status`]: the status line; [`verdicts`], what became of the last clicks; [`sample`], the sample ads' pages
//! * [`demo`]: sends a believable stream of clicks
//! * [`sign_url`]: signs a click's URL
//! * [`site`]: log and warehouse, for an operator; [`spool`]: clicks that a redirect keeps aside; [`repair`]: minutes that
//!   cannot agree
//! * [`bench`]: measures parts on the machine it runs on
//! * [`prove`]: runs the machine through every fault, against the oracle of the crate of that name

#![forbid(unsafe_code)]

pub mod bench;
pub mod cluster;
pub mod config;
pub mod demo;
#[cfg(test)]
mod in_virtual_time;
pub mod machine;
pub mod prove;
pub mod repair;
pub mod sample;
pub mod sign_url;
pub mod site;
pub mod spool;
pub mod status;
pub mod supervise;
pub mod up;
pub mod verdicts;
