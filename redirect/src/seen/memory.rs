//! The hint in the memory of one process.

use super::SeenBefore;
use async_trait::async_trait;
use click::{ImpressionId, Millis};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Remembers impressions in two generations: when the younger is full or a horizon old, the older is forgotten and
/// the younger takes its place. So the newest half of the bound is always kept, and all of a horizon when it fits.
pub struct SeenInMemory {
    horizon_ms: i64,
    entries_max: usize,
    /// Keyed anew in every process, so that nobody can choose impressions that collide.
    hasher: RandomState,
    generations: Mutex<Generations>,
}

struct Generations {
    young: HashMap<u64, Millis>,
    old: HashMap<u64, Millis>,
    /// When the younger generation began.
    since: Millis,
}

impl SeenInMemory {
    /// 917,504 of them in 18 MB: two tables of 2^19 places of 17 bytes, each filled as far as a table goes before it
    /// doubles.
    pub const ENTRIES_MAX: usize = 2 * (1 << 19) / 8 * 7;

    /// `horizon` is how long an impression counts as seen; of more than `entries_max` the oldest are forgotten first.
    pub fn new(horizon: Duration, entries_max: usize) -> Self {
        let entries_max = entries_max.max(2) / 2;
        // Room for all of them now: growing later would stop the clicks of a whole process for a moment.
        let generation = || HashMap::with_capacity(entries_max);
        SeenInMemory {
            horizon_ms: horizon.as_millis().min(i64::MAX as u128) as i64,
            entries_max,
            hasher: RandomState::new(),
            generations: Mutex::new(Generations { young: generation(), old: generation(), since: Millis::new(0) }),
        }
    }

    fn ask(&self, impression_id: &str, now: Millis) -> bool {
        // 64 bits of hash in place of the id: two impressions collide once in years, and a hint may be wrong.
        let key = self.hasher.hash_one(impression_id);
        // A thread that panicked here left whole entries behind: the maps are as good as before.
        let mut guard = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let generations = &mut *guard;
        let first = generations.young.get(&key).or_else(|| generations.old.get(&key));
        if first.is_some_and(|first| now.get() - first.get() < self.horizon_ms) {
            return true;
        }
        let over = now.get() - generations.since.get() >= self.horizon_ms;
        if over || generations.young.len() >= self.entries_max {
            std::mem::swap(&mut generations.young, &mut generations.old);
            generations.young.clear();
            generations.since = now;
        }
        generations.young.insert(key, now);
        false
    }
}

#[async_trait]
impl SeenBefore for SeenInMemory {
    async fn seen_before(&self, impression_id: &ImpressionId, now: Millis) -> Option<bool> {
        Some(self.ask(impression_id.as_str(), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Millis {
        Millis::new(1_776_686_400_000 + ms)
    }

    #[test]
    fn an_impression_is_seen_within_the_horizon_of_its_first_click() {
        let seen = SeenInMemory::new(Duration::from_secs(10), 100);
        assert!(!seen.ask("a", at(0)));
        assert!(seen.ask("a", at(0)));
        assert!(!seen.ask("b", at(1)));
        assert!(seen.ask("a", at(9_999)));
        assert!(!seen.ask("a", at(10_000)), "the horizon is over");
        assert!(seen.ask("b", at(10_000)), "kept over the change of generations");
        assert!(seen.ask("a", at(19_999)), "it began anew");
        assert!(seen.ask("a", at(5_000)), "a clock that steps back forgets nothing");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_half_is_kept() {
        let seen = SeenInMemory::new(Duration::from_secs(1_000_000), 100);
        for i in 0..10_000 {
            assert!(!seen.ask(&i.to_string(), at(i)));
        }
        let generations = seen.generations.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 100);
        drop(generations);
        for i in 9_950..10_000 {
            assert!(seen.ask(&i.to_string(), at(i)), "{i}");
        }
        assert!(!seen.ask("0", at(10_000)));
    }

    #[test]
    fn the_smallest_bound_works() {
        let seen = SeenInMemory::new(Duration::ZERO, 0);
        assert!(!seen.ask("a", at(0)));
        assert!(!seen.ask("a", at(0)), "a horizon of nothing sees nothing");
    }
}
