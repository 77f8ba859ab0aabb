//! A seeded click log with every hard case, and what must come of it by the definitions alone: nothing here is shared
//! with the runner.

use crate::memory_log::{MemoryLog, PARTITIONS};
use click::Millis;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};

pub const LATENESS: i64 = 300_000;
pub const SLACK: i64 = 30_000;
pub const HORIZON: i64 = 86_400_000;
const T0: i64 = 1_776_686_400_000;

const PEOPLE: [(&str, &str); 2] = [
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
        "desktop",
    ),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
        "mobile",
    ),
];
const BOT: &str = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";

/// One record, in the terms of the definitions.
#[derive(Clone)]
pub struct Entry {
    pub partition: i32,
    pub appended: i64,
    clicked: i64,
    pub impression: Option<String>,
    ad: u32,
    person: Option<usize>,
    country: &'static str,
    reason: Option<&'static str>,
    serial: u32,
    attempt: u32,
}

impl Entry {
    /// The impression that it claims; with the changed rule the second person's device is a bot.
    pub fn claims(&self, phones_are_bots: bool) -> Option<&str> {
        let is_bot = self.person.is_none_or(|person| person == 1 && phones_are_bots);
        self.impression.as_deref().filter(|_| !is_bot && self.reason.is_none())
    }

    fn json(&self) -> String {
        let at = Millis::new(self.clicked);
        let Some(impression) = &self.impression else {
            return format!(r#"{{"kind":"heartbeat","timestamp":"{at}"}}"#);
        };
        let agent = self.person.map_or(BOT, |person| PEOPLE[person].0);
        let reason = self.reason.map_or("null".to_string(), |reason| format!("\"{reason}\""));
        let (ad, country, serial) = (self.ad, self.country, self.serial);
        let (campaign, publisher, attempt) = (ad / 10, ad % 4, self.attempt);
        format!(
            r#"{{"kind":"click","clickId":"018f0000-0000-7000-8000-{serial:012}","impressionId":"{impression}","adId":"ad_{ad}","campaignId":"cmp_{campaign}","publisherId":"pub_{publisher}","timestamp":"{at}","ipHash":"00","userAgent":"{agent}","country":"{country}","seenBefore":null,"attempt":{attempt},"invalidReason":{reason}}}"#
        )
    }
}

/// A click log, ordered by append time.
pub fn generate(seed: u64, clicks: u32, minutes: i64) -> Vec<Entry> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut entries = Vec::new();
    for serial in 0..clicks {
        let clicked = T0 + rng.random_range(0..minutes * 60_000);
        let kind = rng.random_range(0..100);
        let delay = match kind {
            0..4 => rng.random_range(1500..LATENESS),
            4..6 => rng.random_range(LATENESS + 1..3 * LATENESS),
            6 => LATENESS,
            7 => LATENESS + 1,
            8 => -2000,
            _ => rng.random_range(0..1500),
        };
        let impression = format!("imp_{seed}_{serial}");
        let first = Entry {
            partition: rng.random_range(0..PARTITIONS),
            appended: clicked + delay,
            clicked,
            impression: Some(impression.clone()),
            ad: rng.random_range(0..40),
            person: Some(rng.random_range(0..2)),
            country: ["DE", "US", "IN"][rng.random_range(0..3)],
            reason: None,
            serial: serial * 10,
            attempt: 1,
        };
        let moved = |ms: i64, serial_plus: u32| Entry {
            appended: first.appended + ms,
            clicked: first.clicked + ms,
            serial: first.serial + serial_plus,
            ..first.clone()
        };
        match kind {
            94.. => entries.push(moved([5, 200, 1500][rng.random_range(0..3)], 1)),
            90..94 => entries.push(moved(rng.random_range(20_000..120_000), 1)),
            88..90 => entries.push(Entry { person: None, ..moved(-400, 1) }),
            86..88 => entries.push(Entry { reason: Some("prefetch"), ..moved(-900, 1) }),
            84..86 => {
                let again = [1000, LATENESS + 100_000][rng.random_range(0..2)];
                entries.push(Entry { appended: first.appended + again, attempt: 2, ..first.clone() });
            }
            82..84 => entries.push(Entry { reason: Some("bad_signature"), ..moved(-5, 1) }),
            80..82 => entries.push(moved(HORIZON + [-60_000, -1, 0, 1, 60_000][rng.random_range(0..5)], 1)),
            _ => {}
        }
        entries.push(first);
    }
    for start in [T0, T0 + HORIZON - 120_000] {
        for second in 0..minutes * 60 + 1500 {
            for partition in 0..PARTITIONS {
                let at = start + second * 1000 + 500;
                let clicked = at;
                let beat = Entry { impression: None, partition, appended: at, clicked, ..entries[0].clone() };
                entries.push(beat);
            }
        }
    }
    entries.sort_by_key(|entry| entry.appended);
    entries
}

pub fn put(log: &MemoryLog, entries: &[Entry]) {
    for entry in entries {
        log.put("clicks", entry.partition, Millis::new(entry.appended), entry.json());
    }
}

/// Key of a minute row: version, minute, ad, country, device.
pub type MinuteKey = (i64, String, String, String, String);

#[derive(Debug, PartialEq, Eq, Default)]
pub struct Expected {
    /// (partition, offset) to (verdict, version).
    pub raw: BTreeMap<(i64, i64), (String, i64)>,
    pub minutes: BTreeMap<MinuteKey, i64>,
}

/// By the definitions. `versions` are where each version starts in every partition, and whether it calls the second
/// person's device a bot.
pub fn expected(entries: &[Entry], versions: &[(i64, bool)]) -> Expected {
    let mut expected = Expected::default();
    let mut offsets = [0i64; PARTITIONS as usize];
    let mut watermarks = [i64::MIN; PARTITIONS as usize];
    let mut claims: HashMap<&str, Vec<i64>> = HashMap::new();
    let mut minutes: BTreeMap<MinuteKey, i64> = BTreeMap::new();
    let mut ends: Vec<(i64, MinuteKey)> = Vec::new();
    for entry in entries {
        let offset = offsets[entry.partition as usize];
        offsets[entry.partition as usize] += 1;
        let version = versions.iter().rposition(|(start, _)| offset >= *start).unwrap();
        let watermark = &mut watermarks[entry.partition as usize];
        *watermark = (*watermark).max(entry.appended - LATENESS - SLACK);
        let clicked = entry.clicked.min(entry.appended);
        let bot = entry.person.is_none() || (versions[version].1 && entry.person == Some(1));
        let number = version as i64 + 1;
        let verdict = match &entry.impression {
            None => "heartbeat",
            Some(_) if entry.reason.is_some() => entry.reason.unwrap(),
            Some(_) if bot => "bot",
            Some(impression) => {
                let held = claims.entry(impression).or_default();
                if held.iter().any(|h| (entry.appended - h).abs() < HORIZON) {
                    "duplicate"
                } else {
                    held.push(entry.appended);
                    if clicked < entry.appended - LATENESS { "late" } else { "billable" }
                }
            }
        };
        expected.raw.insert((i64::from(entry.partition), offset), (verdict.to_string(), number));
        if verdict == "billable" {
            let minute = clicked.div_euclid(60_000) * 60_000;
            let text = Millis::new(minute).to_string()[..19].to_string();
            let device = PEOPLE[entry.person.unwrap()].1.to_string();
            let key = (number, text, format!("ad_{}", entry.ad), entry.country.to_string(), device);
            ends.push((minute + 60_000, key.clone()));
            *minutes.entry(key).or_default() += 1;
        }
    }
    let watermark = watermarks.into_iter().min().unwrap();
    for (end, key) in ends {
        if end > watermark {
            minutes.remove(&key);
        }
    }
    expected.minutes = minutes;
    expected
}

/// What the runner wrote. The same key twice must have the same value: that is what a replay may do.
pub fn written(log: &MemoryLog) -> Expected {
    let mut written = Expected::default();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or("NULL").to_string();
    for value in log.values("raw_clicks") {
        let row: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let key = (row["log_partition"].as_i64().unwrap(), row["log_offset"].as_i64().unwrap());
        let answer = (text(&row, "verdict"), row["version"].as_i64().unwrap());
        // A later version judges anew what lies after its start.
        match written.raw.get(&key) {
            Some(before) if before.1 == answer.1 => assert_eq!(before, &answer, "{key:?}"),
            Some(before) if before.1 > answer.1 => {}
            _ => {
                written.raw.insert(key, answer);
            }
        }
    }
    for value in log.values("clicks_by_minute") {
        let row: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let version = row["version"].as_i64().unwrap();
        let key = (version, text(&row, "minute"), text(&row, "ad_id"), text(&row, "country"), text(&row, "device"));
        let clicks = row["clicks"].as_i64().unwrap();
        let before = written.minutes.insert(key.clone(), clicks);
        assert!(before.is_none_or(|before| before == clicks), "{key:?}: {before:?} and {clicks}");
    }
    written
}
