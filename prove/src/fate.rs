//! What happens to a process in one of its lives, and between two of them.

use crate::browsers::AHEAD_MS;
use crate::disk::Cut;
use crate::site::Word;
use faults::Point;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::fmt;

/// How a life ends, or what it goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing but the end that comes to all.
    None,
    /// It dies at the n-th pass of a commit point.
    At(Point, u64),
    /// It dies at its n-th change of a file or folder, in the middle of it if that is a write.
    Change(u64),
    /// From a change on, so many find the disk full.
    Full(u64, u64),
    /// The n-th fsync fails of those whose kind begins so.
    SyncFails(u64, &'static str),
    /// It dies so many changes after the n-th fsync of the kind that a mutation is about; with none, before that is done.
    AfterSync(u64, u64),
    /// It dies one change after the first fsync of this kind.
    AfterSyncOf(&'static str),
    /// It dies before the n-th fsync of what that kind is of that something was done to.
    BeforeSync(u64),
    /// It stands still for so many milliseconds while requests are under way, and so much time goes by meanwhile.
    Stands { ms: u64, passes_ms: i64 },
}

impl Fault {
    /// Whether nothing keeps a process from doing what it is told, and from answering.
    pub fn is_none(self) -> bool {
        matches!(self, Fault::None | Fault::Stands { .. })
    }

    /// Whether the disk takes or keeps less than it is given: then parts may fail with a message.
    pub fn is_of_disk(self) -> bool {
        matches!(self, Fault::Full(..) | Fault::SyncFails(..))
    }

    /// As it is counted.
    pub fn kind(self) -> &'static str {
        match self {
            Fault::None => "kill",
            Fault::At(..) => "death at a commit point",
            Fault::Change(_) | Fault::AfterSync(..) | Fault::AfterSyncOf(_) | Fault::BeforeSync(_) => {
                "death at a change"
            }
            Fault::Full(..) => "disk full",
            Fault::SyncFails(..) => "failed fsync",
            Fault::Stands { .. } => "stand-still",
        }
    }
}

/// One life and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    pub fault: Fault,
    /// After so many steps the process is killed, if it is still there.
    pub steps: i64,
    /// Whether the power is cut at its end, and what that takes.
    pub power_cut: Option<Cut>,
    /// How long everything is down afterwards.
    pub away_ms: i64,
    /// How far the clock jumps meanwhile, beside that.
    pub clock_ms: i64,
    /// How far it jumps within the life, and at which of its steps.
    pub leap: Option<(i64, i64)>,
    /// How far the clock of the second redirect is from the log's.
    pub skew_ms: i64,
    /// What it is told in each step beside the clicks, where that is not drawn.
    pub word: Option<Word>,
}

impl Fate {
    /// A life that meets nothing.
    pub const QUIET: Fate = Fate {
        fault: Fault::None,
        steps: 0,
        power_cut: None,
        away_ms: 0,
        clock_ms: 0,
        leap: None,
        skew_ms: AHEAD_MS,
        word: None,
    };

    /// A fate for a life of at most so many steps. Only points of one machine are passed there.
    pub fn draw(rng: &mut impl Rng, steps_max: i64) -> Fate {
        let fault = match rng.random_range(0..10) {
            0 => Fault::None,
            1 => Fault::Stands { ms: rng.random_range(1..300), passes_ms: *STOPS_MS.choose(rng).unwrap_or(&0) },
            2 => Fault::Full(rng.random_range(1..3_000), rng.random_range(1..200)),
            3 => {
                let (of, often) = *STORES.choose(rng).unwrap_or(&("", 1));
                Fault::SyncFails(rng.random_range(1..often), of)
            }
            4..7 => {
                let point = *POINTS.choose(rng).unwrap_or(&Point::AppendAfter);
                let often = matches!(
                    point,
                    Point::AppendBefore | Point::AppendAfter | Point::OutputBefore | Point::OutputAfter
                );
                Fault::At(point, rng.random_range(1..=if often { 60 } else { 4 }))
            }
            _ => Fault::Change(rng.random_range(1..2_500)),
        };
        let steps = rng.random_range(1..=steps_max.max(1));
        let leap_ms = *[0, 0, 0, 0, -2_000, -2_000, -60_000, 3_600_000].choose(rng).unwrap_or(&0);
        Fate {
            fault,
            steps,
            leap: (leap_ms != 0).then(|| (rng.random_range(0..steps), leap_ms)),
            skew_ms: *SKEWS_MS.choose(rng).unwrap_or(&AHEAD_MS),
            power_cut: rng.random_bool(0.5).then(|| Cut::draw(rng)),
            away_ms: *[0, 0, 0, 0, 1_000, 60_000, 420_000, 4_200_000].choose(rng).unwrap_or(&0),
            clock_ms: *[0, 0, 0, 0, 0, 0, -2_000, -60_000, 3_600_000].choose(rng).unwrap_or(&0),
            word: None,
        }
    }

    /// A life that ends with a power cut, at a change or a point.
    pub fn draw_power_cut(rng: &mut impl Rng, steps_max: i64) -> Fate {
        let fault = match rng.random_range(0..4) {
            0 => Fault::At(*POINTS.choose(rng).unwrap_or(&Point::AppendAfter), rng.random_range(1..=3)),
            1 => Fault::Change(rng.random_range(1..2_500)),
            // In the middle of a start: in the first life that is where everything is made.
            2 => Fault::Change(rng.random_range(1..150)),
            _ => Fault::None,
        };
        let steps = rng.random_range(1..=steps_max.max(1));
        let power_cut = Some(Cut::draw(rng));
        Fate { fault, steps, power_cut, ..Fate::QUIET }
    }
}

/// How much time goes by while a process stands still: none that matters, a second, more than lateness and slack together.
const STOPS_MS: [i64; 4] = [200, 1_000, 2_500, 75_000];

/// How far two clocks are apart.
const SKEWS_MS: [i64; 5] = [AHEAD_MS, AHEAD_MS, -2_000, -60_000, 3_600_000];

/// Whose fsyncs fail, by the beginning of their kind, and how many of them a life has at most in about two of three cases.
const STORES: &[(&str, u64)] = &[("", 1_000), ("runner/claims/", 30), ("warehouse/", 200), ("spool/", 60)];

/// The points that the one-machine column passes.
pub const POINTS: &[Point] = &[
    Point::AppendBefore,
    Point::AppendAfter,
    Point::SegmentSealed,
    Point::SegmentCreated,
    Point::SpoolBefore,
    Point::SpoolAfter,
    Point::SpoolReplay,
    Point::SpoolSent,
    Point::SpoolRemoved,
    Point::ClaimsBefore,
    Point::ClaimsAfter,
    Point::OutputBefore,
    Point::OutputAfter,
    Point::CheckpointBefore,
    Point::CheckpointAfter,
    Point::ClosingBegun,
    Point::ClosingRaw,
    Point::ClosingCorrections,
    Point::ClosingMinutes,
    Point::ClosingRollUps,
    Point::ClosingDone,
    Point::DeployedBefore,
    Point::DeployedAfter,
    Point::DeltaBefore,
    Point::DeltaAfter,
];

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::None => write!(f, "a kill")?,
            Fault::At(point, n) => write!(f, "death at {point}:{n}")?,
            Fault::Change(n) => write!(f, "death at change {n}")?,
            Fault::Full(n, m) => write!(f, "disk full at changes {n} to {}", n + m)?,
            Fault::SyncFails(n, "") => write!(f, "fsync {n} fails")?,
            Fault::SyncFails(n, of) => write!(f, "fsync {n} in {of} fails")?,
            Fault::AfterSync(n, more) => write!(f, "death {more} changes after fsync {n} of the kind")?,
            Fault::AfterSyncOf(kind) => write!(f, "death one change after fsync of {kind}")?,
            Fault::BeforeSync(n) => write!(f, "death before fsync {n} of what the kind is of")?,
            Fault::Stands { ms, passes_ms } => write!(f, "{ms} ms of standing still, {passes_ms} ms by the clock")?,
        }
        write!(f, " within {} steps", self.steps)?;
        if let Some(word) = self.word {
            write!(f, ", told to {word} in each")?;
        }
        if let Some(cut) = self.power_cut {
            write!(f, ", power cut, {cut}")?;
        }
        if self.away_ms > 0 {
            write!(f, ", {} s down", self.away_ms / 1_000)?;
        }
        if let Some((step, ms)) = self.leap {
            write!(f, ", clock {:+} s at step {step}", ms / 1_000)?;
        }
        if self.skew_ms != AHEAD_MS {
            write!(f, ", a redirect {:+} s", self.skew_ms / 1_000)?;
        }
        if self.clock_ms != 0 {
            write!(f, ", then clock {:+} s", self.clock_ms / 1_000)?;
        }
        Ok(())
    }
}
