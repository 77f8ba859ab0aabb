//! A click log of four partitions, seeded, and what the definition of a claim says of it: the first position that asks
//! for an impression holds it, and so does each that is the horizon or more past all that hold it.

use std::collections::BTreeMap;
use udfs_arroyo::Asked;

pub const PARTITIONS: i32 = 4;
pub const HORIZON_MS: i64 = 86_400_000;
pub const T0_MS: i64 = 1_776_686_400_000;
pub const LOG_ID: &str = "07070707-0707-0707-0707-070707070707";

/// What a record claims: nothing, or an impression, which the rules of version 2 may take for a bot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub appended_ms: i64,
    pub impression: Option<String>,
    pub is_bot_of_version_2: bool,
}

impl Record {
    pub fn key(&self, version: i64) -> Option<&str> {
        self.impression.as_deref().filter(|_| version < 2 || !self.is_bot_of_version_2)
    }

    pub fn asked(&self, version: i64) -> Asked {
        Asked {
            key: self.key(version).map(str::to_string),
            log_id: LOG_ID.to_string(),
            partition: self.partition,
            offset: self.offset,
            appended_ms: self.appended_ms,
            version,
        }
    }
}

/// xorshift64*: enough to make cases of.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// By partition, `records` in each, `step_ms` apart on average.
pub fn log(seed: u64, records: i64, step_ms: u64) -> Vec<Vec<Record>> {
    let mut random = Random::new(seed);
    let mut at = vec![T0_MS; PARTITIONS as usize];
    let partition_of = |partition: i32, random: &mut Random, at: &mut i64| {
        (0..records)
            .map(|offset| {
                *at += random.below(2 * step_ms + 1) as i64;
                // Few impressions, so that most are clicked again, and some after the horizon.
                let impression = format!("imp_{partition}_{}", random.below(records as u64 / 4));
                Record {
                    partition,
                    offset,
                    appended_ms: *at,
                    impression: (random.below(5) > 0).then_some(impression),
                    is_bot_of_version_2: random.below(4) == 0,
                }
            })
            .collect()
    };
    (0..PARTITIONS).map(|partition| partition_of(partition, &mut random, &mut at[partition as usize])).collect()
}

/// The one answer to every record, where version 1 judges those before `start_2` and version 2 the rest.
pub fn expected(log: &[Vec<Record>], start_2: i64) -> BTreeMap<(i32, i64), Option<i64>> {
    let mut held: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    let mut answers = BTreeMap::new();
    for record in log.iter().flatten() {
        let version = if record.offset < start_2 { 1 } else { 2 };
        let answer = record.key(version).map(|key| {
            let held = held.entry(key).or_default();
            let is_first = held.iter().all(|at| record.appended_ms - at >= HORIZON_MS);
            if is_first {
                held.push(record.appended_ms);
            }
            i64::from(is_first)
        });
        answers.insert((record.partition, record.offset), answer);
    }
    answers
}
