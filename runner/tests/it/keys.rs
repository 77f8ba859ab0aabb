//! What records claim, told without claiming it.

use super::{SQL, changed_files, files};
use crate::clicks::{generate, put};
use crate::memory_log::{MemoryLog, PARTITIONS, log_id};
use click::{Lateness, Millis, Offsets};
use runner::{ClaimKeys, Claimed, PipelineFiles};
use std::time::Duration;
use tally_log::{Log, Record};

async fn records(log: &MemoryLog) -> Vec<Record> {
    let topic = log.topic("clicks").await.unwrap();
    let mut consumer = log.consumer(&topic, &Offsets::beginning(PARTITIONS)).await.unwrap();
    let mut records = Vec::new();
    loop {
        let next = consumer.poll(usize::MAX, Duration::ZERO).await.unwrap();
        if next.is_empty() {
            return records;
        }
        records.extend(next);
    }
}

async fn plan(files: &PipelineFiles) -> ClaimKeys {
    ClaimKeys::plan(files, Lateness::DEFAULT, 1, log_id()).await.unwrap()
}

#[tokio::test]
async fn a_record_claims_what_the_version_says_in_the_order_of_the_log() {
    let (log, entries) = (MemoryLog::new(1_000), generate(5, 2_000, 12));
    put(&log, &entries);
    let broken = log.put("clicks", 0, Millis::new(entries.last().unwrap().appended), "no click");
    let records = records(&log).await;
    for (files, phones_are_bots) in [(files(), false), (changed_files(), true)] {
        let mut next = [0; PARTITIONS as usize];
        let mut expected: Vec<_> = entries
            .iter()
            .map(|entry| {
                let offset = next[entry.partition as usize];
                next[entry.partition as usize] += 1;
                (entry.partition, offset, Millis::new(entry.appended), entry.claims(phones_are_bots).map(String::from))
            })
            .collect();
        expected.push((0, broken, Millis::new(entries.last().unwrap().appended), None));
        assert!(expected.iter().any(|(.., key)| key.is_none()) && expected.iter().any(|(.., key)| key.is_some()));
        expected.sort();
        for batch in [1, 7, records.len()] {
            let mut keys = plan(&files).await;
            assert_eq!(keys.topic(), "clicks");
            let mut found = Vec::new();
            for records in records.chunks(batch) {
                let claimed = keys.of(records).unwrap();
                let places = claimed.iter().map(|claimed| (claimed.partition, claimed.offset));
                assert!(places.eq(records.iter().map(|record| (record.partition, record.offset))));
                found.extend(claimed.into_iter().map(|claimed| {
                    let Claimed { partition, offset, appended_at, key } = claimed;
                    (partition, offset, appended_at, key)
                }));
            }
            found.sort();
            assert_eq!(found, expected, "in batches of {batch}");
        }
    }
}

#[tokio::test]
async fn one_file_asks_for_claims() {
    let call = "claim_click(claim_key, log_id, log_partition, log_offset, appended_ms, version)";
    assert!(SQL.contains(call));
    let unasked = SQL.replace(call, "CAST(1 AS BIGINT)");
    let dir = tempfile::tempdir().unwrap();
    for (first, second, is_fine) in [(&*unasked, None, false), (SQL, Some(SQL), false), (SQL, Some(&*unasked), true)] {
        for (name, text) in [("a.sql", Some(first)), ("b.sql", second)] {
            std::fs::write(dir.path().join(name), text.unwrap_or(&unasked)).unwrap();
        }
        let files = PipelineFiles::read(dir.path()).unwrap();
        let planned = ClaimKeys::plan(&files, Lateness::DEFAULT, 1, log_id()).await;
        let expected =
            "claims of the pipelines: they are known where one pipeline file calls claim_click, not none or several";
        assert_eq!(planned.err().map(|error| error.to_string()), (!is_fine).then(|| expected.to_string()));
    }
}
