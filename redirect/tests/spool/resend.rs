//! What waits is sent again until the log has it, by this process or the next.

use super::*;
use crate::app::{Mode, eventually};

#[tokio::test]
async fn a_slow_log_holds_up_nobody_and_a_click_that_arrived_after_all_is_not_sent_again() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let app = start(log.clone(), &settings(dir.path())).await;
    log.mode.send_replace(Mode::Holds);
    let answer = app.get(&click(1)).await;
    assert_eq!((answer.status, waiting(&app)), (302, 1));
    assert_eq!(app.get("/readyz").await.status, 200, "clicks are recorded");
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    assert_eq!(attempts(&log), BTreeMap::from([("imp_1".into(), vec![1])]));
    assert_eq!(log.clicks()[0].click_id.to_string(), answer.click_id());
}

#[tokio::test]
async fn a_click_that_the_log_refused_is_sent_again_with_the_same_id_and_time() {
    for mode in [Mode::Fails, Mode::FailsLater] {
        let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
        let app = start(log.clone(), &settings(dir.path())).await;
        log.mode.send_replace(mode);
        let answers = [app.get(&click(1)).await, app.get(&click(2)).await];
        assert_eq!(answers.each_ref().map(|answer| answer.status), [302, 302]);
        log.mode.send_replace(Mode::Works);
        eventually("the spool is empty", || waiting(&app) == 0).await;
        for answer in &answers {
            let sent: Vec<_> =
                log.clicks().into_iter().filter(|click| click.click_id.to_string() == answer.click_id()).collect();
            assert!(sent.last().unwrap().attempt > 1, "{mode:?}");
            assert!(sent.iter().all(|click| click.timestamp.to_string() == crate::app::NOON), "{mode:?}");
        }
        // A log that takes records and denies it has them more often; the pipeline counts one.
        assert!(mode == Mode::FailsLater || log.clicks().len() == 2);
    }
}

/// Clicks of one partition wait, and the log denies one of them after it took it: those behind it arrive once.
#[tokio::test]
async fn a_click_that_fails_makes_none_behind_it_be_sent_again() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let app = start(log.clone(), &settings(dir.path())).await;
    let of = |impression: &str| tally_log::partitioner::partition_of(impression.as_bytes(), PARTITIONS);
    let others: Vec<_> =
        (0..).map(|n| format!("imp_{n}")).filter(|name| of(name) == of("imp_denied")).take(9).collect();
    log.mode.send_replace(Mode::Fails);
    let (before, behind) = others.split_at(3);
    for impression in before.iter().map(String::as_str).chain(["imp_denied"]).chain(behind.iter().map(String::as_str)) {
        assert_eq!(app.get(&format!("/api/v1/click/{impression}?ad_id=ad_9")).await.status, 302);
    }
    log.denied.send_replace(Some("imp_denied"));
    log.mode.send_replace(Mode::Works);
    eventually("only that one waits", || waiting(&app) == 1).await;
    // It is tried again meanwhile, some times.
    let mut asked = log.asked.subscribe();
    let now = *asked.borrow_and_update();
    tokio::time::timeout(Duration::from_secs(60), asked.wait_for(|asked| *asked > now + 2)).await.unwrap().unwrap();
    log.denied.send_replace(None);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let attempts = attempts(&log);
    assert_eq!(attempts.len(), 10);
    assert!(attempts.values().all(|attempts| attempts.len() == 1), "{attempts:?}");
    let order: Vec<_> = log.clicks().iter().map(|click| click.impression_id.to_string()).collect();
    assert_eq!(order, [&others[..], &["imp_denied".to_owned()]].concat());
}

#[tokio::test]
async fn a_panic_ends_no_partitions_sending() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let app = start(log.clone(), &settings(dir.path())).await;
    log.mode.send_replace(Mode::Fails);
    assert_eq!(app.get(&click(1)).await.status, 302);
    let mut asked = log.asked.subscribe();
    log.mode.send_replace(Mode::Panics);
    asked.mark_unchanged();
    tokio::time::timeout(Duration::from_secs(60), asked.changed()).await.unwrap().unwrap();
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    assert_eq!(attempts(&log).len(), 1);
}

#[tokio::test]
async fn a_process_that_dies_leaves_its_clicks_to_the_next_one_and_in_order() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let app = start(log.clone(), &settings(dir.path())).await;
    log.mode.send_replace(Mode::Fails);
    let mut ids = Vec::new();
    for _ in 0..20 {
        // One impression, so one partition.
        let answer = app.get(&click(1)).await;
        assert_eq!(answer.status, 302);
        ids.push(answer.click_id());
    }
    app.kill().await;
    log.mode.send_replace(Mode::Works);
    let app = start(log.clone(), &settings(dir.path())).await;
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let sent: Vec<_> = log.clicks().iter().map(|click| click.click_id.to_string()).collect();
    assert_eq!(sent, ids);
    // What was sent is not sent by the one after that.
    eventually("it is written down", || dir.path().join("spool/sent").exists()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    app.kill().await;
    let app = start(log.clone(), &settings(dir.path())).await;
    assert_eq!((waiting(&app), log.clicks().len()), (0, 20));
}

#[tokio::test]
async fn a_partition_that_is_stuck_holds_back_no_other() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let app = start(log.clone(), &settings(dir.path())).await;
    let partition =
        |number: usize| tally_log::partitioner::partition_of(format!("imp_{number}").as_bytes(), PARTITIONS);
    let stuck = partition(1);
    log.stuck.send_replace(Some(stuck));
    let mut answered = 0;
    for number in 0..40 {
        assert_eq!(app.get(&click(number)).await.status, 302);
        answered += usize::from(partition(number) != stuck);
    }
    assert_eq!(log.clicks().len(), answered);
    assert_eq!(waiting(&app), 40 - answered as u64);
    log.stuck.send_replace(None);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    assert_eq!(attempts(&log).len(), 40);
}

/// Whatever fails and dies in whatever order: what was answered is in the log, or in the spool, or aside.
#[tokio::test]
async fn what_was_answered_is_always_somewhere() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let seed: u64 = rand::rng().random_range(0..1_000_000);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let mut app = start(log.clone(), &settings).await;
    let mut answered = std::collections::BTreeSet::new();
    for number in 0..150 {
        match rng.random_range(0..12) {
            0 => _ = log.mode.send_replace(Mode::Fails),
            1 => _ = log.mode.send_replace(Mode::FailsLater),
            2 => _ = log.mode.send_replace(Mode::Holds),
            3 | 4 => _ = log.mode.send_replace(Mode::Works),
            5 => _ = log.stuck.send_replace(rng.random_bool(0.5).then(|| rng.random_range(0..PARTITIONS))),
            6 if rng.random_bool(0.3) => {
                app.kill().await;
                log.mode.send_replace(Mode::Works);
                log.stuck.send_replace(None);
                app = start(log.clone(), &settings).await;
            }
            _ => {}
        }
        let answer = app.get(&click(number)).await;
        if answer.status == 302 {
            answered.insert(answer.click_id());
        }
    }
    app.kill().await;
    log.mode.send_replace(Mode::Works);
    log.stuck.send_replace(None);
    let app = start(log.clone(), &settings).await;
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let there: std::collections::BTreeSet<_> = log.clicks().iter().map(|click| click.click_id.to_string()).collect();
    let lost: Vec<_> = answered.difference(&there).collect();
    assert!(lost.is_empty(), "seed {seed}: {lost:?}");
    assert!(answered.len() > 100, "seed {seed}: only {} were answered", answered.len());
}
