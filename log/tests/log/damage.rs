//! Damage is named, with file and byte, and nothing is cut for it.

use crate::conformance::read_all;
use crate::support::{Crashed, TOPIC, TestLog, closed, flip};
use std::fs;
use tally_log::{Log, LogError};

/// A log in one segment that dies, without room after its end, and where its groups begin, with the end at last.
async fn one_segment() -> (Crashed, Vec<u64>) {
    let test = TestLog::new(1 << 20).await;
    let mut begins = vec![test.end()];
    for n in 0..12 {
        test.append(n % 4, vec![b'a'; 1 + 7 * n as usize]).await;
        begins.push(test.end());
    }
    let crashed = test.crashed();
    crashed.cut_room(*begins.last().unwrap());
    (crashed, begins)
}

/// A log in at least four segments.
async fn segments() -> Crashed {
    let test = TestLog::new(500).await;
    for n in 0..60 {
        test.append(n % 4, vec![b'a'; 50]).await;
    }
    let crashed = closed(test);
    assert!(crashed.segment(3).exists());
    crashed
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_damage_and_changes_no_file() {
    let (crashed, begins) = one_segment().await;
    let segment = crashed.segment(0);
    let bytes = fs::read(&segment).unwrap();
    for at in 0..bytes.len() {
        // The start of the segment, or the group that holds the byte; the last group too, since no part is missing.
        let expected = begins.iter().rfind(|begin| **begin <= at as u64).copied().unwrap_or(0);
        for bit in [0, 5, 7] {
            flip(&segment, at, bit);
            assert_eq!(crashed.damage(), (segment.clone(), expected), "byte {at} bit {bit}");
            flip(&segment, at, bit);
        }
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    assert_eq!(crashed.open().unwrap().1, []);
}

#[tokio::test]
async fn a_flipped_byte_before_room_is_damage_too() {
    let (crashed, begins) = one_segment().await;
    let (segment, end) = (crashed.segment(0), *begins.last().unwrap());
    for room in [1, 31, 700, 256 << 10] {
        crashed.cut_room(end + room);
        for at in begins.windows(2).flat_map(|group| [group[0], group[0] + 20, group[0] + 50, group[1] - 1]) {
            let expected = begins.iter().rfind(|begin| **begin <= at).copied().unwrap();
            flip(&segment, at as usize, 5);
            assert_eq!(crashed.damage(), (segment.clone(), expected), "byte {at}, {room} bytes of room");
            flip(&segment, at as usize, 5);
        }
    }
}

#[tokio::test]
async fn a_hole_before_valid_groups_is_damage() {
    let (crashed, begins) = one_segment().await;
    let segment = crashed.segment(0);
    let bytes = fs::read(&segment).unwrap();
    for i in 0..begins.len() - 2 {
        let mut holed = bytes.clone();
        holed[begins[i] as usize..begins[i + 1] as usize].fill(0);
        fs::write(&segment, &holed).unwrap();
        assert_eq!(crashed.damage(), (segment.clone(), begins[i]));
        // A group that is gone altogether.
        let mut shorter = bytes.clone();
        shorter.drain(begins[i] as usize..begins[i + 1] as usize);
        fs::write(&segment, &shorter).unwrap();
        assert_eq!(crashed.damage(), (segment.clone(), begins[i]));
    }
    // Something else than a group at the end.
    for garbage in [&b"x"[..], &[1; 40], &[b'x'; 5_000]] {
        fs::write(&segment, [&bytes, garbage].concat()).unwrap();
        match crashed.open() {
            // Fewer bytes than a header has could be the beginning of one.
            Ok((_, repairs)) => assert!(garbage.len() < 32 && repairs[0].bytes_cut == garbage.len() as u64),
            Err(LogError::Damaged { at, .. }) => assert_eq!(at, bytes.len() as u64),
            Err(other) => panic!("{other}"),
        }
    }
    // More than one group can have, with zeros in it as a torn write has.
    let mut long = bytes.clone();
    long.resize(bytes.len() + (9 << 20), 0);
    long.push(1);
    fs::write(&segment, &long).unwrap();
    assert_eq!(crashed.damage(), (segment, bytes.len() as u64));
}

#[tokio::test]
async fn after_a_log_was_closed_its_end_must_be_there() {
    let test = TestLog::new(1 << 20).await;
    for _ in 0..3 {
        test.append(0, "value").await;
    }
    let test = test.reopen();
    let closed = test.crashed();
    let bytes = fs::read(closed.segment(0)).unwrap();
    for cut in 1..bytes.len() {
        fs::write(closed.segment(0), &bytes[..cut]).unwrap();
        assert_eq!(closed.damage().0, closed.segment(0), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_segment_that_is_missing_cut_or_strange_is_damage() {
    let crashed = segments().await;
    let last = (0..).take_while(|n| crashed.segment(*n).exists()).last().unwrap();
    for missing in 0..=last {
        let away = crashed.file("away");
        fs::rename(crashed.segment(missing), &away).unwrap();
        assert_eq!(crashed.damage(), (crashed.segment(missing), 0));
        fs::rename(&away, crashed.segment(missing)).unwrap();
    }
    let bytes = fs::read(crashed.segment(1)).unwrap();
    for cut in (0..bytes.len()).step_by(13) {
        fs::write(crashed.segment(1), &bytes[..cut]).unwrap();
        assert_eq!(crashed.damage().0, crashed.segment(1), "cut at {cut}");
    }
    // Another segment of the same topic, another topic's, and one past the end.
    fs::copy(crashed.segment(2), crashed.segment(1)).unwrap();
    assert_eq!(crashed.damage(), (crashed.segment(1), 0));
    fs::copy(segments().await.segment(1), crashed.segment(1)).unwrap();
    assert_eq!(crashed.damage(), (crashed.segment(1), 0));
    fs::write(crashed.segment(1), &bytes).unwrap();
    fs::write(crashed.segment(last + 2), &bytes).unwrap();
    assert_eq!(crashed.damage().0, crashed.segment(last + 2));
    fs::remove_file(crashed.segment(last + 2)).unwrap();
    assert_eq!(crashed.open().unwrap().1, []);
}

#[tokio::test]
async fn a_flipped_byte_in_an_older_segment_is_found_when_it_is_read() {
    let crashed = segments().await;
    let segment = crashed.segment(1);
    let bytes = fs::read(&segment).unwrap();
    let (mut at_open, mut at_read) = (0, 0);
    for at in (0..bytes.len()).step_by(7) {
        flip(&segment, at, 3);
        match crashed.open() {
            Err(LogError::Damaged { file, .. }) => {
                assert_eq!(file, segment);
                at_open += 1;
            }
            Err(other) => panic!("{other}"),
            Ok((log, repairs)) => {
                assert_eq!(repairs, []);
                let topic = log.topic(TOPIC).await.unwrap();
                match read_all(&log, &topic).await {
                    Err(LogError::Damaged { file, at: group, .. }) => {
                        assert!(file == segment && group <= at as u64 && at as u64 - group < 200, "{at} in {group}");
                    }
                    other => panic!("byte {at}: {other:?}"),
                }
                at_read += 1;
            }
        }
        flip(&segment, at, 3);
    }
    assert!(at_open > 15 && at_read > 40, "{at_open} {at_read}");
}

#[tokio::test]
async fn a_damaged_manifest_stops_it() {
    let crashed = segments().await;
    let manifest = crashed.file("topic");
    let len = fs::read(&manifest).unwrap().len();
    for at in 0..len {
        flip(&manifest, at, 2);
        assert_eq!(crashed.damage(), (manifest.clone(), 0), "byte {at}");
        flip(&manifest, at, 2);
    }
    fs::remove_file(&manifest).unwrap();
    assert!(matches!(crashed.open(), Err(LogError::Io { path, .. }) if path == manifest));
}
