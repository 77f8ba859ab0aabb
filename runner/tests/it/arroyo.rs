//! The same log and SQL through the runner give the rows that an Arroyo wrote for them (`runner/tests/arroyo`).
//!
//! Arroyo ran other functions than ours: one that found no device for a record without a user agent, and called that of
//! a crawler `bot`; ours say `other` of both. Neither is billed, so no minute differs. Its log id was no UUID.

use super::memory_log::{MemoryLog, log_id};
use super::{open, start};
use click::Millis;
use flate2::read::GzDecoder;
use runner::PipelineFiles;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};

const SQL: &str = include_str!("../arroyo/clicks.sql");
const INPUT: &[u8] = include_bytes!("../arroyo/input.jsonl.gz");
const RAW_CLICKS: &[u8] = include_bytes!("../arroyo/raw_clicks.jsonl.gz");
const CLICKS_BY_MINUTE: &[u8] = include_bytes!("../arroyo/clicks_by_minute.jsonl.gz");

fn lines(gz: &'static [u8]) -> impl Iterator<Item = Value> {
    BufReader::new(GzDecoder::new(gz)).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

/// A log of the records in the file; its offsets are their order within a partition.
fn log(batch_max: usize) -> MemoryLog {
    let log = MemoryLog::new(batch_max);
    for record in lines(INPUT) {
        let partition = record["partition"].as_i64().unwrap() as i32;
        let appended_at = Millis::new(record["appended_ms"].as_i64().unwrap());
        log.put("clicks", partition, appended_at, record["value"].to_string());
    }
    log
}

/// Rows by their key. No key comes twice: the runner ran once, and Arroyo's rows were read once.
fn keyed(rows: impl Iterator<Item = Value>, key: &[&str]) -> BTreeMap<String, Value> {
    let mut keyed = BTreeMap::new();
    for row in rows {
        let key: Vec<String> = key.iter().map(|column| row[column].to_string()).collect();
        let before = keyed.insert(key.join(" "), row);
        assert_eq!(before, None, "two rows of {key:?}");
    }
    keyed
}

#[tokio::test]
async fn the_rows_are_those_that_arroyo_wrote() {
    let expected_raw = lines(RAW_CLICKS).map(|mut row| {
        assert_eq!(row["log_id"], "log1");
        row["log_id"] = json!(log_id().to_string());
        if row["device"].is_null() || row["device"] == "bot" {
            row["device"] = json!("other");
        }
        row
    });
    let position = ["log_partition", "log_offset"];
    let expected_raw = keyed(expected_raw, &position);
    let dimensions = ["version", "minute", "ad_id", "campaign_id", "publisher_id", "country", "device"];
    let expected_minutes = keyed(lines(CLICKS_BY_MINUTE), &dimensions);
    assert_eq!((expected_raw.len(), expected_minutes.len()), (21_445, 728));

    let files = PipelineFiles::one("clicks.sql", SQL);
    for batch_max in [512, usize::MAX] {
        let (dir, log) = (tempfile::tempdir().unwrap(), log(batch_max));
        open(&log, dir.path(), &files, vec![start(1, 0)]).await.catch_up().await.unwrap();
        let written = |topic| log.values(topic).into_iter().map(|row| serde_json::from_slice::<Value>(&row).unwrap());
        let raw = keyed(written("raw_clicks"), &position);
        for (key, expected) in &expected_raw {
            assert_eq!(raw.get(key), Some(expected), "record {key}");
        }
        assert_eq!(raw.len(), expected_raw.len());
        assert_eq!(keyed(written("clicks_by_minute"), &dimensions), expected_minutes);
    }
}
