//! What happened in runs, by number: a proof that never came to a place says nothing about it.

use crate::damage::Store;
use crate::fate::POINTS;
use std::collections::BTreeMap;
use std::fmt;

/// From so many runs on, what never happened is a fault of the proof.
const RUNS_MIN: u64 = 20;

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// How often each commit point was passed, by its name.
    pub passes: BTreeMap<String, u64>,
    /// Clicks that the log holds twice: sent again from the spool after the first send was in it.
    pub replays: u64,
    pub corrections: u64,
    /// Clicks that waited in the spool for too long, and were sent by hand.
    pub aside: u64,
    /// What came of damaged files, by their store.
    pub damaged: BTreeMap<Store, BTreeMap<&'static str, u64>>,
    /// How often each kind of fault was met.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Census {
    pub fn add(&mut self, other: Census) {
        let Census { passes, replays, corrections, aside, damaged, faults } = other;
        passes.into_iter().for_each(|(point, times)| *self.passes.entry(point).or_default() += times);
        faults.into_iter().for_each(|(fault, times)| *self.faults.entry(fault).or_default() += times);
        for (store, outcomes) in damaged {
            let of = self.damaged.entry(store).or_default();
            outcomes.into_iter().for_each(|(outcome, times)| *of.entry(outcome).or_default() += times);
        }
        self.replays += replays;
        self.corrections += corrections;
        self.aside += aside;
    }

    /// What never happened in so many runs of every fault, though it must.
    pub fn missing(&self, runs: u64) -> Vec<String> {
        if runs < RUNS_MIN {
            return Vec::new();
        }
        let counts = [
            ("replays of clicks that the log had already", self.replays),
            ("corrections", self.corrections),
            ("clicks kept aside", self.aside),
        ];
        let mut missing: Vec<String> =
            counts.into_iter().filter(|(_, times)| *times == 0).map(|(what, _)| what.into()).collect();
        let must = POINTS.iter().map(|point| point.name());
        missing
            .extend(must.filter(|point| !self.passes.contains_key(*point)).map(|point| format!("passes of {point}")));
        missing.extend(
            Store::ALL
                .into_iter()
                .filter(|store| !self.damaged.contains_key(store))
                .map(|store| format!("damage of {store}")),
        );
        missing
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Census { passes, replays, corrections, aside, damaged, faults } = self;
        writeln!(
            f,
            "clicks that the log holds twice: {replays}; corrections: {corrections}; clicks kept aside: {aside}"
        )?;
        let list = |counts: &mut dyn Iterator<Item = (&str, u64)>| {
            counts.map(|(what, times)| format!("{what} {times}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "met: {}", list(&mut faults.iter().map(|(what, times)| (*what, *times))))?;
        let points = POINTS.iter().map(|point| (point.name(), passes.get(point.name()).copied().unwrap_or(0)));
        write!(f, "passes: {}", list(&mut { points }))?;
        for (store, outcomes) in damaged {
            write!(f, "\ndamaged, {store}: {}", list(&mut outcomes.iter().map(|(what, times)| (*what, *times))))?;
        }
        Ok(())
    }
}

#[test]
fn what_never_happened_is_missed() {
    let mut all = Census { replays: 1, corrections: 1, aside: 1, ..Census::default() };
    all.passes = POINTS.iter().map(|point| (point.name().to_string(), 1)).collect();
    all.damaged = Store::ALL.into_iter().map(|store| (store, BTreeMap::from([("refused", 1)]))).collect();
    assert_eq!(all.missing(RUNS_MIN), Vec::<String>::new());
    let mut less = Census { replays: 0, ..all.clone() };
    less.passes.remove("closing.corrections");
    less.damaged.remove(&Store::Spool);
    let missing =
        ["replays of clicks that the log had already", "passes of closing.corrections", "damage of the spool"];
    assert_eq!(less.missing(RUNS_MIN), missing);
    assert!(less.missing(RUNS_MIN - 1).is_empty(), "too few runs to say");
    less.add(all);
    assert!(less.missing(RUNS_MIN).is_empty());
}
