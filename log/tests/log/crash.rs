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
    for n in 0..groups {
        let bytes = if n + 1 == groups { last_bytes } else { 10 + n };
        test.append(0, vec![b'a' + n as u8; bytes]).await;
        ends.push(test.end());
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
        let written = bytes[ends[2] as usize..cut as usize].iter().rposition(|byte| *byte != 0).map(|at| at as u64 + 1);
        // As a file that grew with the write, and with zeros where the rest of it should be.
        for len in [cut, ends[3], bytes.len() as u64] {
            let mut torn = bytes[..cut as usize].to_vec();
            torn.resize(len as usize, 0);
            fs::write(template.file("topic"), &manifest).unwrap();
            fs::write(template.segment(0), &torn).unwrap();
            expect(&template, written.map(|bytes| (ends[2], bytes)), 3).await;
        }
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
        let written = torn.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1 - ends[2];
        expect(&template, Some((ends[2], written)), 3).await;
    }
}

#[tokio::test]
async fn room_for_groups_to_come_is_no_unfinished_write() {
    for zeros in [0, 1, 31, 512, 5_000, 20 << 20] {
        let (crashed, ends) = crashed(3, 12).await;
        assert!(fs::metadata(crashed.segment(0)).unwrap().len() > ends[2]);
        crashed.cut_room(ends[2] + zeros);
        expect(&crashed, None, 3).await;
        // The log was closed at the end of that.
        let bytes = fs::read(crashed.segment(0)).unwrap();
        assert_ne!(bytes.last(), Some(&0));
    }
}

#[tokio::test]
async fn groups_fill_the_room_and_grow_over_it() {
    let test = TestLog::new(32 << 20).await;
    let mut lengths = Vec::new();
    // Within the room, to its last byte or a few past it, and groups that are larger than a room.
    for n in 0..120_usize {
        let bytes = [1_000, 9_973, 262_100, 700_000][n % 4] + n;
        test.append(0, vec![b'x'; bytes]).await;
        lengths.push(bytes);
        let (end, file) = (test.end(), fs::metadata(test.crashed().segment(0)).unwrap().len());
        assert!(end <= file && file - end < 256 << 10, "{end} of {file}");
    }
    for crashed in [test.crashed(), crate::support::closed(test)] {
        let (log, repairs) = crashed.open().unwrap();
        assert_eq!(repairs, []);
        let read = read_all(&log, &log.topic(TOPIC).await.unwrap()).await.unwrap();
        assert_eq!(values(&read[0]).iter().map(|value| value.len()).collect::<Vec<_>>(), lengths);
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
