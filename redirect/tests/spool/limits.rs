//! Clicks for which there is no room, and those that wait for too long.

use super::*;
use crate::app::{Mode, eventually};
use click::Partition;
use redirect::spool::{SpoolCounters, aside};

fn of(number: usize) -> Partition {
    tally_log::partitioner::partition_of(format!("imp_{number}").as_bytes(), PARTITIONS)
}

#[tokio::test]
async fn with_log_and_spool_both_unusable_it_says_so_and_was_not_ready_before() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let small = SpoolSettings { bytes_max: 4_000, ..settings(dir.path()) };
    let app = start(log.clone(), &small).await;
    log.mode.send_replace(Mode::Fails);
    let (mut statuses, mut ready) = (Vec::new(), Vec::new());
    // Of all partitions in turn, so that none has its share before the spool is full.
    for turn in 0..20 {
        let number = (100 * turn..).find(|number| of(*number) == turn as Partition % PARTITIONS).unwrap();
        ready.push(app.get("/readyz").await.status);
        let answer = app.get(&click(number)).await;
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        statuses.push(answer.status);
    }
    let first_503 = statuses.iter().position(|status| *status == 503).unwrap();
    assert!(statuses[..first_503].iter().all(|status| *status == 302));
    assert_eq!(ready[first_503], 503, "{ready:?} {statuses:?}");
    assert_eq!(ready[0], 200);
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    assert_eq!(app.get("/readyz").await.status, 200);
    assert_eq!(attempts(&log).len(), first_503, "what was answered, and nothing else");
}

#[tokio::test]
async fn what_is_too_old_is_kept_aside_and_not_sent() {
    let clock = noon();
    let (_dir, settings, log, app) = without_a_log(clock.clone()).await;
    let old = app.get(&click(1)).await.click_id();
    clock.set(clock.now().plus(3_600_001));
    let young = app.get(&click(2)).await.click_id();
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let sent: Vec<_> = log.clicks().iter().map(|click| click.click_id.to_string()).collect();
    assert_eq!(sent, [young]);
    let kept = aside::list(&settings.dir).unwrap();
    let [(file, kept)] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!(kept.iter().map(|kept| kept.event.click_id.to_string()).collect::<Vec<_>>(), [old]);
    assert_eq!(kept[0].reason, "it waited for longer than 3600s");
    assert_eq!(app.service.spool().unwrap().aside, 1);
    let whole = std::fs::read(file).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(file, flipped).unwrap();
        match aside::list(&settings.dir) {
            Err(error) => assert!(error.to_string().contains(".jsonl line "), "bit {bit}: {error}"),
            Ok(list) => assert_eq!(list[0].1, *kept, "bit {bit}"),
        }
    }
    std::fs::write(file, whole).unwrap();
    assert_eq!(aside::list(&settings.dir).unwrap()[0].1, *kept);
    // As `tally spool send` does, another process.
    aside::settle(file).unwrap();
    assert_eq!(aside::list(&settings.dir).unwrap(), []);
    eventually("none is counted", || app.service.spool().unwrap().aside == 0).await;
}

/// A partition is stuck for so long that it has its share of the spool: its clicks hear 503, those of others are recorded, in the
/// log or late in the spool, and the redirect is ready.
#[tokio::test]
async fn a_partition_that_is_stuck_fills_no_more_than_its_share() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = SpoolSettings { bytes_max: 20_000, ..settings(dir.path()) };
    let app = start(log.clone(), &settings).await;
    let stuck = of(1);
    let other = (2..).find(|number| of(*number) != stuck).unwrap();
    log.stuck.send_replace(Some(stuck));
    let mut answered = Vec::new();
    let refused = loop {
        let answer = app.get(&click(1)).await;
        if answer.status != 302 {
            break answer;
        }
        answered.push(answer.click_id());
        assert!(answered.len() < 100, "it takes more than its share");
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    let SpoolCounters { bytes, partitions_full, .. } = app.service.spool().unwrap();
    assert!(partitions_full == 1 && bytes > 8_000 && bytes <= 10_000, "{partitions_full} have {bytes} bytes");
    assert_eq!(app.get("/readyz").await.status, 200);
    answered.push(app.get(&click(other)).await.click_id());
    assert_eq!(log.clicks().len(), 1, "it went to the log");
    log.mode.send_replace(Mode::Fails);
    for _ in 0..3 {
        let answer = app.get(&click(other)).await;
        assert_eq!(answer.status, 302, "late, and in the spool");
        answered.push(answer.click_id());
    }
    assert_eq!(app.get("/readyz").await.status, 200);
    log.mode.send_replace(Mode::Works);
    log.stuck.send_replace(None);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    assert_eq!(app.service.spool().unwrap().partitions_full, 0);
    answered.push(app.get(&click(1)).await.click_id());
    let there: std::collections::BTreeSet<_> = log.clicks().iter().map(|click| click.click_id.to_string()).collect();
    assert_eq!(there, answered.into_iter().collect(), "what was answered, and nothing else");
}

/// The log took a click and said that it failed, and the process died. However late it is sent again within the age limit, the log
/// has it twice, under one click id, of which the pipeline counts one; after that it is not sent, since the claim may be over.
#[tokio::test]
async fn a_click_that_had_arrived_is_sent_again_until_the_age_limit_and_not_after_it() {
    for (waits_ms, sent_again) in [(1_000, true), (360_000, true), (3_600_000, true), (3_600_001, false)] {
        let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
        let (settings, clock) = (settings(dir.path()), noon());
        let start = async || {
            let spool = open(&settings, clock.clone()).await;
            TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await
        };
        let app = start().await;
        log.mode.send_replace(Mode::Holds);
        let id = app.get(&click(1)).await.click_id();
        app.kill().await;
        log.mode.send_replace(Mode::FailsLater);
        eventually("the first send has arrived", || log.clicks().len() == 1).await;
        log.mode.send_replace(Mode::Works);
        clock.set(clock.now().plus(waits_ms));
        let app = start().await;
        eventually("the spool is empty", || waiting(&app) == 0).await;
        let there: Vec<_> = log.clicks().iter().map(|click| (click.click_id.to_string(), click.attempt)).collect();
        let kept = aside::list(&settings.dir).unwrap().into_iter().flat_map(|(_, kept)| kept);
        let kept: Vec<_> = kept.map(|kept| kept.event.click_id.to_string()).collect();
        let (expected, aside) = match sent_again {
            true => (vec![(id.clone(), 1), (id, 2)], vec![]),
            false => (vec![(id.clone(), 1)], vec![id]),
        };
        assert_eq!((there, kept), (expected, aside), "after {waits_ms} ms");
    }
}

/// Where old clicks would be kept there is no room, for more of them than go at once: those that are young are sent, and the old
/// ones are neither sent nor gone.
#[tokio::test]
async fn clicks_that_cannot_be_kept_aside_hold_back_none_that_can_be_sent() {
    let clock = noon();
    let (dir, settings, log, app) = without_a_log(clock.clone()).await;
    let mut old = Vec::new();
    for _ in 0..70 {
        old.push(app.get(&click(1)).await.click_id());
    }
    let (there, gone) = (settings.dir.join("aside"), dir.path().join("gone"));
    std::fs::rename(&there, &gone).unwrap();
    clock.set(clock.now().plus(3_600_001));
    let young = app.get(&click(1)).await.click_id();
    log.mode.send_replace(Mode::Works);
    eventually("only the old ones wait", || waiting(&app) == 70).await;
    let sent = || log.clicks().iter().map(|click| click.click_id.to_string()).collect::<Vec<_>>();
    assert_eq!(sent(), [young.as_str()]);
    // Nor does a process that dies now take them with it.
    app.kill().await;
    std::fs::rename(&gone, &there).unwrap();
    let spool = open(&settings, clock).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await;
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let kept = aside::list(&settings.dir).unwrap().into_iter().flat_map(|(_, kept)| kept);
    assert_eq!(
        kept.map(|kept| kept.event.click_id.to_string()).collect::<std::collections::BTreeSet<_>>(),
        old.into_iter().collect()
    );
    assert_eq!(sent().iter().filter(|sent| **sent != young).count(), 0);
}

/// One click waits, and all that come after it, of other partitions, are sent at once: they stay on the disk, but for no more
/// than what the settings say.
#[tokio::test]
async fn a_click_that_waits_does_not_fill_the_disk_with_those_after_it() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = SpoolSettings { bytes_max: 20_000, segment_bytes_max: 4_096, ..settings(dir.path()) };
    let bytes_max = 2 * settings.bytes_max + 2 * settings.segment_bytes_max;
    let spool = open(&settings, noon()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool.clone()), ..no_rules() }).await;
    assert_eq!(app.get(&click(1)).await.status, 302);
    let value = bytes::Bytes::from(log.click_texts()[0].1.clone());
    log.mode.send_replace(Mode::Fails);
    let stuck = spool.append(0, value.clone()).await.unwrap();
    spool.first_send_ended(stuck, false);
    let mut refused = None;
    for _ in 0..1_000 {
        match spool.append(1, value.clone()).await {
            Ok(place) => spool.first_send_ended(place, true),
            Err(error) => refused = Some(error.to_string()),
        }
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("a thousand clicks are ten times what may be there");
    assert!(refused.starts_with("the spool's files are full: "), "{refused}");
    let SpoolCounters { records, disk_bytes, .. } = spool.counters();
    assert!(records == 1 && disk_bytes <= bytes_max, "{records} wait, {disk_bytes} of {bytes_max} bytes");
    let why = app.service.ready().unwrap_err();
    assert!(why.starts_with("the spool's files are nearly full: "), "{why}");
    log.mode.send_replace(Mode::Works);
    eventually("there is room again", || app.service.ready().is_ok()).await;
    spool.append(1, value).await.unwrap();
}
