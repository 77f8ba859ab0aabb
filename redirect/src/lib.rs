//! The redirect: sends a browser to the page behind an ad, and a click to the log, in that order of importance to the
//! browser and in the reverse order in time. It knows nothing of counting.
//!
//! # Layout, in the order of a click's way
//!
//! * `server`: [`serve`], connections with bounds, and a stop that drains
//! * `service`: [`Service`], the routes and the one handler of a click
//! * `url`: what a click's URL says, parsed, and `catalog`, what is true of the ad
//! * `client`: what headers and socket tell of the client; [`ip_hash`], what is kept of its address
//! * `seen`: [`SeenBefore`], a hint for operators, in memory or in a Redis that several redirects share
//! * [`signature`], [`block`]: reasons that the redirect alone can know; [`country`], where an address is
//! * `append`: hands the event to the log, and waits for it, but not for ever; [`spool`] takes it then
//! * `landing_page`: where the browser goes, with what [`pass`] lets through; `problem`, what it hears otherwise
//! * [`reload`]: files that change while it runs
//! * `heartbeat`: event time moves on when traffic does not; `for_ever`, what begins such parts again if they die
//!
//! # What a crash means
//!
//! A click is answered with a 302 only after the log acknowledged it, or the spool made it durable on this disk, so a process
//! that dies
//!
//! * before the append was handed over has neither recorded nor answered the click: the browser sees a broken
//!   connection, and its retry is a new click;
//! * between hand-over and acknowledgement may have recorded it, and has not answered: the log holds it whole or not
//!   at all, and the pipeline counts the impression at most once, whatever the retry adds;
//! * after the acknowledgement has recorded it, answered or not: it counts.
//!
//! Never is there an answer without a record.

#![forbid(unsafe_code)]

mod append;
pub mod block;
pub mod catalog;
mod client;
pub mod config;
pub mod country;
mod for_ever;
mod heartbeat;
pub mod ip_hash;
pub mod landing_page;
pub mod metrics;
pub mod networks;
pub mod pass;
mod problem;
pub mod reload;
pub mod seen;
mod server;
mod service;
mod settings;
pub mod signature;
pub mod spool;
mod url;

pub use catalog::{Ad, AdState, Catalog, CatalogError};
pub use ip_hash::Secret;
pub use seen::SeenBefore;
pub use seen::memory::SeenInMemory;
pub use seen::redis::{RedisCounters, RedisSettings, SeenInRedis};
pub use server::serve;
pub use service::{Counters, Service, With};
pub use settings::Settings;
