//! The proof that every billable click which was answered is counted exactly once.
//!
//! # Layout, in the order of a run
//!
//! * [`generator`]: what browsers, bots and retries do, seeded
//! * [`browsers`]: sends it over HTTP and remembers the answers
//! * [`sign`]: good and bad signatures of URLs
//! * [`judge`]: what must be billed, from the answers alone; [`matching`], how sums are told apart
//! * [`reports`]: what is billed, as the reports say it, and [`tables`], as the warehouse's files do
//! * [`finality`]: what is final stays as it is
//! * [`slow_log`]: a redirect that stalls between clock and log
//! * [`fate`]: what happens to a process in a life, and [`site`], the process
//! * [`disk`]: what a power cut leaves of its files, and [`damage`], a disk that changes them
//! * [`mutation`]: lives that show whether an fsync is needed
//! * [`run`]: all of it, and the first thing that is wrong; [`census`], what happened in it
//!
//! The oracle shares no counting code with the product.

#![forbid(unsafe_code)]

pub mod browsers;
pub mod census;
pub mod damage;
pub mod disk;
pub mod fate;
pub mod finality;
pub mod generator;
pub mod judge;
mod matching;
pub mod mutation;
pub mod reports;
pub mod run;
pub mod sign;
pub mod site;
pub mod slow_log;
pub mod tables;
