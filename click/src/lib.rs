//! The domain of Tally: what a click is, said in types that cannot hold a wrong value.
//!
//! # Layout
//!
//! The way of a click uses them in this order:
//!
//! * [`clock`]: where time comes from, so that a test can set it
//! * [`time`]: [`Millis`], an instant, and [`Minute`], the tumbling window that is billed
//! * [`id`]: [`ImpressionId`], [`AdId`], [`CampaignId`], [`PublisherId`], [`ClickId`], [`LogId`]
//! * `country`: [`Country`]
//! * [`event`]: [`Event`], the record of topic `clicks`, with its [`InvalidReason`]
//! * [`position`]: [`Position`], which names a record of the log for ever, and [`Offsets`], one place in every partition
//! * [`dimensions`]: [`Dimensions`], what clicks are counted by
//! * [`verdict`]: [`Verdict`], what the pipeline said of a record
//! * [`lateness`]: [`Lateness`], which records are on time, and how far the watermark stays behind
//!
//! Everything is parsed at the edge; past it a value that exists is right. No I/O happens here.

#![forbid(unsafe_code)]

pub mod clock;
pub mod country;
pub mod dimensions;
pub mod event;
pub mod id;
pub mod lateness;
pub mod position;
pub mod time;
pub mod verdict;

pub use clock::{Clock, ManualClock, SystemClock};
pub use country::Country;
pub use dimensions::Dimensions;
pub use event::{Click, Event, InvalidReason};
pub use id::{AdId, AdvertiserId, CampaignId, ClickId, ImpressionId, LogId, PublisherId};
pub use lateness::Lateness;
pub use position::{Offset, Offsets, Partition, Position};
pub use time::{Millis, Minute};
pub use verdict::Verdict;

/// A value from outside that is not what it should be: what was given, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {allowed}")]
pub struct Invalid {
    /// What kind of value it should have been, e.g. `impression id`.
    pub what: &'static str,
    /// What was given, shortened to a length that fits a message.
    pub given: String,
    /// What is allowed, as a phrase.
    pub allowed: &'static str,
}

impl Invalid {
    /// The given text is cut at this many characters: a message must not repeat a megabyte.
    const GIVEN_CHARS_MAX: usize = 80;

    pub fn new(what: &'static str, given: &str, allowed: &'static str) -> Self {
        let mut shown: String = given.chars().take(Self::GIVEN_CHARS_MAX).collect();
        if shown.len() < given.len() {
            shown.push('…');
        }
        Invalid { what, given: shown, allowed }
    }
}
