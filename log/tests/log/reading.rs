//! The local log: that it conforms, also after a restart; times that are set by hand; retention by segments.

use crate::conformance::{append_and_read, conformance, values};
use crate::support::{PARTITIONS, TOPIC, TestLog};
use click::{Millis, Offsets, SystemClock};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tally_log::local::{LocalLog, Settings};
use tally_log::{Log, LogError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_log_conforms() {
    for segment_bytes_max in [2_000, 50_000] {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_bytes_max, ..Settings::default() };
        let (log, repairs) = LocalLog::open(dir.path(), settings, Arc::new(SystemClock)).unwrap();
        assert_eq!(repairs, []);
        let topic = log.create_topic(TOPIC, PARTITIONS).await.unwrap();
        let log: Arc<dyn Log> = Arc::new(log);
        conformance(&log, &topic).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_appended_is_read_before_and_after_a_restart(
        segment_bytes_max in 1_u64..20_000,
        rounds in prop::collection::vec(prop::collection::vec((0..PARTITIONS, 0_usize..3_000), 0..40), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut test = TestLog::new(segment_bytes_max).await;
            let mut expected = vec![Vec::new(); PARTITIONS as usize];
            for records in &rounds {
                append_and_read(&test.log, &test.topic, records, &mut expected).await;
                test = test.reopen();
                append_and_read(&test.log, &test.topic, &[], &mut expected).await;
            }
        });
    }
}

#[tokio::test]
async fn append_time_never_goes_back() {
    let mut test = TestLog::new(1).await;
    for (now, expected) in [(5_000, 5_000), (4_000, 5_000), (5_001, 5_001), (-1, 5_001)] {
        test.clock.set(Millis::new(now));
        assert_eq!(test.append(now as i32 & 3, "x").await.appended_at, Millis::new(expected));
        test = test.reopen();
    }
    test.clock.set(Millis::new(0));
    assert_eq!(test.append(0, "x").await.appended_at, Millis::new(5_001));
}

#[tokio::test]
async fn an_offset_is_found_by_its_time() {
    // So that there are several segments, and several index entries in the last.
    let mut test = TestLog::new(900_000).await;
    let mut times = vec![Vec::new(); 2];
    for n in 0..400_i64 {
        test.clock.set(Millis::new(n / 3 * 10));
        let partition = (n % 7 == 0) as usize;
        let appended = test.append(partition as i32, vec![0; 5_000]).await;
        times[partition].push(appended.appended_at);
    }
    for _ in 0..2 {
        for (partition, times) in times.iter().enumerate() {
            for at in -5..1_340 {
                let expected = times.iter().position(|time| time.get() >= at).unwrap_or(times.len());
                let found = test.log.offset_at(&test.topic, partition as i32, Millis::new(at)).await.unwrap();
                assert_eq!(found, expected as i64, "partition {partition} at {at}");
            }
        }
        assert_eq!(test.log.offset_at(&test.topic, 3, Millis::new(0)).await.unwrap(), 0);
        test = test.reopen();
    }
}

#[tokio::test]
async fn what_is_too_old_is_removed_in_whole_segments() {
    let test = TestLog::new(1_000).await;
    let mut slow = test.log.consumer(&test.topic, &Offsets::beginning(PARTITIONS)).await.unwrap();
    let mut quiet = test.log.consumer(&test.topic, &Offsets::from_iter([(3, 0)])).await.unwrap();
    for n in 0..100 {
        test.clock.set(Millis::new(n * 10));
        test.append(0, vec![n as u8; 100]).await;
    }
    assert_eq!(test.log.retain(TOPIC, Millis::new(0)).await.unwrap(), 0);
    let removed = test.log.retain(TOPIC, Millis::new(500)).await.unwrap();
    let held = test.log.held(&test.topic, 0).await.unwrap();
    assert!(removed > 3 && held.end == 100 && (40..=50).contains(&held.start), "{removed} {held:?}");
    assert_eq!(test.log.offset_at(&test.topic, 0, Millis::new(0)).await.unwrap(), held.start);
    let expect = |error: LogError, offset: i64| match error {
        LogError::OutOfRange { topic, partition: 0, offset: o, held: h } => {
            assert_eq!((topic.as_str(), o, h), (TOPIC, offset, held.clone()))
        }
        other => panic!("{other}"),
    };
    let from = |offset| Offsets::from_iter([(0, offset)]);
    expect(test.log.consumer(&test.topic, &from(held.start - 1)).await.err().unwrap(), held.start - 1);
    test.log.consumer(&test.topic, &from(held.start)).await.unwrap();
    // A consumer that has not read them is told; one that had nothing to read there goes on.
    expect(slow.poll(10, Duration::from_secs(10)).await.unwrap_err(), 0);
    test.append(3, "late").await;
    assert_eq!(values(&quiet.poll(10, Duration::from_secs(10)).await.unwrap()), [b"late"]);
    // The newest segment stays, however old, and all of it after a restart.
    drop((slow, quiet));
    let test = test.reopen();
    assert_eq!(test.log.held(&test.topic, 0).await.unwrap(), held);
    test.log.retain(TOPIC, Millis::new(i64::MAX)).await.unwrap();
    assert_eq!(test.log.held(&test.topic, 0).await.unwrap().end, 100);
    assert_eq!(test.append(0, "x").await.offset, 100);
    assert!(matches!(test.log.retain("other", Millis::new(0)).await, Err(LogError::UnknownTopic(_))));
}

/// Where clicks wait, not their time says what may go: no clock is asked, and one partition's oldest keeps what follows.
#[tokio::test]
async fn what_lies_before_given_offsets_is_removed_and_nothing_after_one() {
    let test = TestLog::new(1_000).await;
    let held = async |partition| test.log.held(&test.topic, partition).await.unwrap();
    let retain = async |next: &[(i32, i64)]| {
        test.log.retain_from(TOPIC, &Offsets::from_iter(next.iter().copied())).await.unwrap()
    };
    for n in 0..100 {
        test.append(0, vec![n; 100]).await;
        if n == 50 {
            test.append(3, "stays").await;
        }
    }
    let all = test.log.bytes(&test.topic).unwrap();
    assert!(all > 100 * 100, "{all}");
    assert_eq!(retain(&[]).await, 0);
    assert!(retain(&[(0, 30)]).await > 1);
    assert!((20..=30).contains(&held(0).await.start), "{:?}", held(0).await);
    // All of partition 0 may go, but for what stands behind the one record of partition 3.
    assert!(retain(&[(0, 100)]).await > 1);
    assert!((40..=51).contains(&held(0).await.start), "{:?}", held(0).await);
    assert_eq!(held(3).await, 0..1);
    let left = test.log.bytes(&test.topic).unwrap();
    assert!(left < all * 2 / 3 && left > 40 * 100, "{left} of {all}");
    assert!(retain(&[(0, 100), (3, 1)]).await > 1);
    assert_eq!((held(0).await.end, held(3).await), (100, 1..1));
    assert!(test.log.bytes(&test.topic).unwrap() < 2_000);
    assert_eq!(test.append(0, "x").await.offset, 100);
}

#[tokio::test]
async fn a_folder_has_one_log_and_a_topic_one_life() {
    let test = TestLog::new(1_000).await;
    assert!(matches!(
        LocalLog::open(test.dir.path(), test.settings, test.clock.clone()),
        Err(LogError::InUse(dir)) if dir == test.dir.path()
    ));
    let other = test.log.topic("other-topic").await.unwrap();
    assert_eq!((other.partitions, test.topic.partitions), (4, PARTITIONS));
    assert_ne!(other.log_id, test.topic.log_id);
    let error = test.log.create_topic(TOPIC, 5).await.unwrap_err().to_string();
    assert!(error.ends_with("the topic has 4 partitions for its whole life, not 5"), "{error}");
    for wrong in ["", ".", "..", ".x", "a/b", "ä", &"x".repeat(201)] {
        assert!(test.log.topic(wrong).await.unwrap_err().to_string().contains("is not valid"), "{wrong:?}");
    }
    for wrong in [-1, 0, 257] {
        assert!(test.log.create_topic("wrong", wrong).await.unwrap_err().to_string().contains("1 to 256"), "{wrong}");
    }
    let test = test.reopen();
    assert_eq!(test.log.topic(TOPIC).await.unwrap(), test.topic);
    assert_eq!(test.log.topic("other-topic").await.unwrap(), other);
    // A topic that was made anew elsewhere has another id: nothing goes into the wrong one.
    let stranger = TestLog::new(1_000).await;
    let refused = test.log.append(&stranger.topic, 0, None, "x".into()).await.err().unwrap();
    assert!(matches!(refused, LogError::TopicReplaced { .. }), "{refused}");
}
