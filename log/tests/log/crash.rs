//! A process or a machine that dies: what was acknowledged is there, and what was half written is cut off and told.

use crate::conformance::{read_all, values};
use crate::support::{Crashed, TOPIC, TestLog};
use click::Millis;
use std::fs;
use tally_log::Log;
use tally_log::local::Repair;

/// A log of `groups` groups of one record each that dies: the files, and where each group ends in the only segment.
async fn crashed(groups: usize, last_bytes: usize) -> (Crashed, Vec<u64>) {
    let test = TestLog::new(1 << 20).await;
    let mut ends = Vec::new();
    let path = test.dir.path().join("topics").join(TOPIC).join("00000000000000000000.log");
    for n in 0..groups {
        let bytes = if n + 1 == groups { last_bytes } else { 10 + n };
        test.append(0, vec![b'a' + n as u8; bytes]).await;
        ends.push(fs::metadata(&path).unwrap().len());
    }
    (test.crashed(), ends)
}

/// Opens it, expects this repair, and that exactly `records` are there and the next one follows.
async fn expect(crashed: &Crashed, repair: Option<(u64, u64)>, records: usize) {
    let (log, repairs) = crashed.open().unwrap();
    let file = crashed.segment(0);
    let expected: Vec<Repair> =
        repair.iter().map(|(at, bytes_cut)| Repair { file: file.clone(), at: *at, bytes_cut: *bytes_cut }).collect();
    assert_eq!(repairs, expected);
    let topic = log.topic(TOPIC).await.unwrap();
    let read = read_all(&log, &topic).await.unwrap();
    assert_eq!(values(&read[0]), (0..records).map(|n| vec![b'a' + n as u8; 10 + n]).collect::<Vec<_>>());
    let next = log.append(&topic, 0, None, "next".into()).await.unwrap().await.unwrap();
    assert_eq!((next.offset, next.appended_at), (records as i64, Millis::new(1_000)));
    drop(log);
    let (log, repairs) = crashed.open().unwrap();
    assert_eq!(repairs, []);
    assert_eq!(log.held(&topic, 0).await.unwrap(), 0..records as i64 + 1);
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_off() {
    let (template, ends) = crashed(4, 13).await;
    let bytes = fs::read(template.segment(0)).unwrap();
    let manifest = fs::read(template.file("topic")).unwrap();
    expect(&template, None, 4).await;
    for cut in ends[2]..ends[3] {
        fs::write(template.file("topic"), &manifest).unwrap();
        fs::write(template.segment(0), &bytes[..cut as usize]).unwrap();
        let repair = (cut > ends[2]).then_some((ends[2], cut - ends[2]));
        expect(&template, repair, 3).await;
        // The same with zeros where the rest of the write should be.
        let mut zeros = bytes.clone();
        zeros[cut as usize..].fill(0);
        fs::write(template.file("topic"), &manifest).unwrap();
        fs::write(template.segment(0), &zeros).unwrap();
        expect(&template, Some((ends[2], ends[3] - ends[2])), 3).await;
    }
}

#[tokio::test]
async fn a_tail_that_misses_any_sectors_is_cut_off() {
    let (template, ends) = crashed(4, 5_000).await;
    let bytes = fs::read(template.segment(0)).unwrap();
    let manifest = fs::read(template.file("topic")).unwrap();
    let (start, end) = (ends[2] as usize, ends[3] as usize);
    let sectors: Vec<_> =
        (start / 512..=(end - 1) / 512).map(|n| (n * 512).max(start)..(n * 512 + 512).min(end)).collect();
    // Each alone, and every second one.
    let every_second: Vec<_> = sectors.iter().step_by(2).cloned().collect();
    for missing in sectors.iter().map(|sector| vec![sector.clone()]).chain([every_second]) {
        let mut torn = bytes.clone();
        missing.into_iter().for_each(|sector| torn[sector].fill(0));
        fs::write(template.file("topic"), &manifest).unwrap();
        fs::write(template.segment(0), &torn).unwrap();
        expect(&template, Some((ends[2], ends[3] - ends[2])), 3).await;
    }
}

#[tokio::test]
async fn zeros_at_the_end_are_cut_off() {
    for zeros in [1, 31, 512, 5_000, 20 << 20] {
        let (crashed, ends) = crashed(3, 12).await;
        let file = fs::OpenOptions::new().write(true).open(crashed.segment(0)).unwrap();
        file.set_len(ends[2] + zeros).unwrap();
        expect(&crashed, Some((ends[2], zeros)), 3).await;
    }
}

#[tokio::test]
async fn a_roll_that_was_not_finished_is_finished() {
    let mut test = TestLog::new(300).await;
    let mut appended = 0;
    while !test.crashed().segment(1).exists() {
        test.append(0, format!("{appended:0>50}")).await;
        appended += 1;
        // A segment is finished before the log is closed.
        test = test.reopen();
    }
    let check = async |crashed: &Crashed, repairs: usize| {
        let (log, repaired) = crashed.open().unwrap();
        assert_eq!(repaired.len(), repairs);
        let topic = log.topic(TOPIC).await.unwrap();
        log.append(&topic, 0, None, "next".into()).await.unwrap().await.unwrap();
        assert_eq!(read_all(&log, &topic).await.unwrap()[0].len(), appended + 1);
    };
    let manifest = |crashed: &Crashed, from: &str, to: &str| {
        // As it was before the roll, or before the topic's last step.
        let text = fs::read_to_string(crashed.file("topic")).unwrap();
        let json = text.lines().next().unwrap();
        let bytes = json.rsplit(':').next().unwrap();
        let json = json.replace(from, to).replace(&format!("\"durableBytes\":{bytes}"), "\"durableBytes\":0}");
        let sum = xxhash_rust::xxh3::xxh3_64(json.as_bytes());
        fs::write(crashed.file("topic"), format!("{json}\n{sum:016x}\n")).unwrap();
    };
    // Died after the segment was sealed, and the next one was not made.
    let crashed = test.crashed();
    manifest(&crashed, "\"lastSegment\":1", "\"lastSegment\":0");
    fs::remove_file(crashed.segment(1)).unwrap();
    check(&crashed, 0).await;
    // Died while it was sealed.
    let crashed = test.crashed();
    manifest(&crashed, "\"lastSegment\":1", "\"lastSegment\":0");
    fs::remove_file(crashed.segment(1)).unwrap();
    let bytes = fs::read(crashed.segment(0)).unwrap();
    fs::write(crashed.segment(0), &bytes[..bytes.len() - 10]).unwrap();
    check(&crashed, 1).await;
    // Died after it was made, before the manifest said so.
    let crashed = test.crashed();
    manifest(&crashed, "\"lastSegment\":1", "\"lastSegment\":0");
    check(&crashed, 0).await;
    // Died while retention removed it, and while a topic was made.
    let crashed = test.crashed();
    fs::write(crashed.file(".topic.1.aside"), "x").unwrap();
    fs::create_dir(crashed.dir.path().join("topics/.other.1.aside")).unwrap();
    check(&crashed, 0).await;
    assert_eq!(fs::read_dir(crashed.dir.path().join("topics")).unwrap().count(), 1);
}
