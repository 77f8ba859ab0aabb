//! The functions that pipelines call on a record: one file a function, the same file for both engines.
//!
//! # Layout
//!
//! - [`device_class()`], [`bot_reason()`]: what a user agent says.
//! - `claim_click.rs`: the first click of an impression, by claims in Redis. It is Arroyo's alone, and not linked here: on
//!   one machine the runner answers from its own store of claims. The crate `claims` links it, for operators.
//! - [`sources`]: the files as they are uploaded to Arroyo, and as they enter the digest of a deployment.
//! - `linked/`: the `#[udf]` that this crate uses, which changes nothing; so the functions link into a program.
//! - `arroyo/`: a workspace of its own, which builds the same files with Arroyo's `#[udf]` and compares the answers.
//!
//! A file must please Arroyo's compiler: it opens with its dependencies in TOML, has one `#[udf]`, no `//!` comments,
//! and compiles in edition 2021 as in 2024.

// The files say `use arroyo_udf_plugin::udf`.
extern crate udf_linked as arroyo_udf_plugin;

mod bot_reason;
mod device_class;

pub use bot_reason::bot_reason;
pub use device_class::device_class;

/// A file of this crate as it is uploaded to Arroyo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The function's name in SQL.
    pub name: &'static str,
    /// The whole file. Its dependencies are part of it, so another version of a list is another source.
    pub source: &'static str,
    /// Whether this crate has the function, for the runner.
    pub linked: bool,
}

/// Every function, ordered by name.
pub fn sources() -> &'static [Source] {
    const SOURCES: &[Source] = &[
        Source { name: "bot_reason", source: include_str!("bot_reason.rs"), linked: true },
        Source { name: "claim_click", source: include_str!("claim_click.rs"), linked: false },
        Source { name: "device_class", source: include_str!("device_class.rs"), linked: true },
    ];
    SOURCES
}
