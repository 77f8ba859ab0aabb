//! Commit points: the places between two durable states, where a process that dies must leave nothing lost and nothing
//! double. They are named here and passed in the code, so that a proof can die at each of them.
//!
//! With `TALLY_DIE_AT=point` or `point:n` in its environment a process ends without a goodbye when it comes to that point
//! for the n-th time. With `TALLY_PASSES=file` it writes down there, a line each, what it passes, so that a proof knows which
//! points it came to. Without them, which is always outside of proofs, passing a point is one load of memory.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that names the point at which to die.
pub const DIE_AT: &str = "TALLY_DIE_AT";
/// The variable that names the file in which passes are written down.
pub const PASSES: &str = "TALLY_PASSES";

macro_rules! points {
    ($($point:ident $name:literal $what:literal,)*) => {
        /// A commit point.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $(#[doc = $what] $point,)*
        }

        impl Point {
            /// All of them, in the order of a click's way.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// As it is named on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Point::$point => $name,)* }
            }

            /// What is done there.
            pub fn what(self) -> &'static str {
                match self { $(Point::$point => $what,)* }
            }
        }
    };
}

points! {
    AppendBefore "append.before" "A group of records is about to be written to the local log.",
    AppendAfter "append.after" "A group of records is durable in the local log, and nobody was told.",
    SegmentSealed "segment.sealed" "A segment of the local log is sealed, and the next is not there.",
    SegmentCreated "segment.created" "The next segment of the local log is there, and the manifest does not know it.",
    SpoolBefore "spool.before" "A group of clicks is about to be written to the spool.",
    SpoolAfter "spool.after" "A group of clicks is durable in the spool, and nobody was answered.",
    SpoolReplay "spool.replay" "A spooled click is about to be sent again.",
    SpoolSent "spool.sent" "A spooled click was sent again and acknowledged, and the spool still has it.",
    SpoolRemoved "spool.removed" "A segment of the spool whose clicks are all in the log was removed.",
    KafkaAcknowledged "kafka.acknowledged" "Kafka acknowledged a record, and nobody was told.",
    ClaimsBefore "claims.before" "The claims of a checkpoint are about to be made durable.",
    ClaimsAfter "claims.after" "The claims of a checkpoint are durable, and the checkpoint is not.",
    OutputBefore "output.before" "The rows of a batch are about to be appended to the result topics.",
    OutputAfter "output.after" "The rows of a batch are durable in the result topics.",
    CheckpointBefore "checkpoint.before" "A checkpoint is about to be written.",
    CheckpointAfter "checkpoint.after" "A checkpoint is in place.",
    ClosingBegun "closing.begun" "The begun entry of a closing is in place, and none of its rows.",
    ClosingRaw "closing.raw" "The raw rows of a closing are in place.",
    ClosingCorrections "closing.corrections" "The corrections of a closing are in place.",
    ClosingMinutes "closing.minutes" "The minute rows of a closing are in place.",
    ClosingRollUps "closing.roll_ups" "The roll-ups of a closing are in place, and its entry is not.",
    ClosingDone "closing.done" "The entry of a closing is in place.",
    DeployedBefore "deployment.before" "A deployment is about to be recorded.",
    DeployedAfter "deployment.after" "A deployment is recorded, and the runner has not begun.",
    DeltaBefore "delta.before" "A commit is about to be written to a Delta table's log.",
    DeltaAfter "delta.after" "A commit is in a Delta table's log.",
    ClickHouseBefore "clickhouse.before" "A block is about to be inserted into ClickHouse.",
    ClickHouseAfter "clickhouse.after" "A block is in ClickHouse, and not read back.",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPoint(String);

impl fmt::Display for UnknownPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no commit point; `tally prove --list` names them, and :n may follow, from 1", self.0)
    }
}

impl std::error::Error for UnknownPoint {}

impl FromStr for Point {
    type Err = UnknownPoint;

    fn from_str(name: &str) -> Result<Self, UnknownPoint> {
        let found = Point::ALL.iter().find(|point| point.name() == name);
        found.copied().ok_or_else(|| UnknownPoint(name.into()))
    }
}

/// A point, and how often it is still passed before the process dies there.
struct Armed {
    point: Point,
    left: AtomicU64,
}

impl FromStr for Armed {
    type Err = UnknownPoint;

    fn from_str(text: &str) -> Result<Self, UnknownPoint> {
        let unknown = || UnknownPoint(text.into());
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let nth: u64 = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(unknown)?;
        Ok(Armed { point: name.parse().map_err(|_| unknown())?, left: AtomicU64::new(nth) })
    }
}

/// What a process under proof does when it passes a point.
struct Watch {
    armed: Option<Armed>,
    passes: Option<File>,
}

static WATCH: OnceLock<Option<Watch>> = OnceLock::new();

/// Passes a commit point. The process ends here if it was told to.
#[inline]
pub fn at(point: Point) {
    if let Some(watch) = WATCH.get_or_init(from_environment) {
        pass(watch, point);
    }
}

fn from_environment() -> Option<Watch> {
    let armed = std::env::var(DIE_AT).ok().map(|text| match text.parse() {
        Ok(armed) => armed,
        // A proof that does not die where it should would prove nothing.
        Err(error) => die(&format!("{DIE_AT}: {error}")),
    });
    let passes = std::env::var_os(PASSES).map(|path| match File::options().append(true).create(true).open(&path) {
        Ok(file) => file,
        Err(error) => die(&format!("{PASSES}: {}: {error}", path.display())),
    });
    (armed.is_some() || passes.is_some()).then_some(Watch { armed, passes })
}

#[cold]
fn pass(watch: &Watch, point: Point) {
    if let Some(mut passes) = watch.passes.as_ref()
        && let Err(error) = passes.write_all(format!("{point}\n").as_bytes())
    {
        die(&format!("{PASSES}: {error}"));
    }
    if let Some(armed) = &watch.armed
        && armed.point == point
        && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        die(&format!("died at {point}, as {DIE_AT} says"));
    }
}

/// Ends the process as a kill does: nothing is flushed, closed or dropped.
fn die(why: &str) -> ! {
    eprintln!("{why}");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_that_finds_it() {
        for point in Point::ALL {
            assert_eq!(point.name().parse(), Ok(*point));
        }
        assert_eq!(
            "append".parse::<Point>().unwrap_err().to_string(),
            r#""append" is no commit point; `tally prove --list` names them, and :n may follow, from 1"#
        );
    }

    #[test]
    fn what_is_armed_is_read_whole() {
        let armed: Armed = "append.after:3".parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((armed.point, armed.left.into_inner()), (Point::AppendAfter, 3));
        for wrong in ["", "append.after:", "append.after:0", "append.after:x", "after"] {
            assert!(wrong.parse::<Armed>().is_err(), "{wrong}");
        }
    }
}
