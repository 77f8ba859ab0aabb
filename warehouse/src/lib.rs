//! The warehouse: what is final, how it becomes final, and the reports over it.
//!
//! # Layout
//!
//! In the order in which a click gets here:
//!
//! * [`rows`]: the rows that a pipeline writes to its two result topics
//! * `open`: rows whose minute is not final yet, in a few bytes each
//! * [`sequence`]: the numbered entries, deployments and closings, that say what is final
//! * `loader`: [`Loader`] reads the result topics and decides when minutes are final
//! * `closing`: writes a closing, once, whatever dies in between
//! * `repair`: minutes that cannot agree become final by a recount from the log
//! * [`backend`]: the interface of the tables; the loader knows nothing else of them
//! * [`delta`]: the tables on Delta Lake, with `store`, files that are on disk when a call returns, and `query`
//! * [`clickhouse`]: the tables on ClickHouse, and reports from them in any number of processes
//! * `cover`: which tables answer a stretch of time
//! * `live`: the counts that are not final yet, published together with the tables they continue
//! * [`report`]: what a report asks and answers
//! * `warehouse`: [`Warehouse`], which ties them together

#![forbid(unsafe_code)]

pub mod backend;
pub mod clickhouse;
mod closing;
mod cover;
pub mod delta;
mod error;
mod live;
mod loader;
mod open;
mod repair;
pub mod report;
pub mod rows;
pub mod sequence;
mod warehouse;

pub use backend::{Claimant, Known};
pub use error::{Error, Result};
pub use loader::{Loader, Progress, Status, Step};
pub use repair::{Recount, Repaired};
pub use sequence::Deployment;
pub use warehouse::{Deploying, Needed, Settings, Topics, Warehouse};
