//! A log that does not answer in time, or not at all: clicks go to the spool, and from there to the log.

use crate::app::{Mode, PARTITIONS, TestApp, TestLog, eventually, no_rules};
use click::{Clock, Event, ManualClock, Offsets};
use redirect::spool::{Spool, SpoolCounters, SpoolSettings, aside};
use redirect::{Settings, With};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tally_log::Log;
use tally_log::local::LocalLog;

const HOUR: Duration = Duration::from_secs(3_600);

fn impatient() -> Settings {
    Settings { append_wait: Duration::from_millis(50), ..Settings::default() }
}

fn settings(dir: &Path) -> SpoolSettings {
    SpoolSettings { dir: dir.join("spool"), bytes_max: 1 << 20, segment_bytes_max: 8 << 10, age_max: HOUR }
}

/// A spool whose process before may need a moment to let go of it.
async fn open(settings: &SpoolSettings, clock: Arc<dyn Clock>) -> Spool {
    for _ in 0..500 {
        match Spool::open(settings.clone(), PARTITIONS, clock.clone()).await {
            Ok(spool) => return spool,
            Err(error) => assert!(error.to_string().contains("another process uses"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the spool is never let go");
}

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(crate::app::NOON.parse().unwrap()))
}

async fn start(log: Arc<TestLog>, settings: &SpoolSettings) -> TestApp {
    let spool = open(settings, noon()).await;
    TestApp::with_all(log, impatient(), With { spool: Some(spool), ..no_rules() }).await
}

fn click(number: usize) -> String {
    format!("/api/v1/click/imp_{number}?ad_id=ad_9")
}

/// What the log has of each impression: the attempts.
fn attempts(log: &TestLog) -> BTreeMap<String, Vec<u32>> {
    let mut attempts = BTreeMap::<String, Vec<u32>>::new();
    for click in log.clicks() {
        attempts.entry(click.impression_id.to_string()).or_default().push(click.attempt);
    }
    attempts
}

fn waiting(app: &TestApp) -> u64 {
    app.service.spool().unwrap().records
}

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

#[tokio::test]
async fn with_log_and_spool_both_unusable_it_says_so_and_was_not_ready_before() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let small = SpoolSettings { bytes_max: 4_000, ..settings(dir.path()) };
    let app = start(log.clone(), &small).await;
    log.mode.send_replace(Mode::Fails);
    let (mut statuses, mut ready) = (Vec::new(), Vec::new());
    for number in 0..20 {
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
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let clock = noon();
    let spool = open(&settings, clock.clone()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await;
    log.mode.send_replace(Mode::Fails);
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
    aside::settle(file).unwrap();
    assert_eq!(aside::list(&settings.dir).unwrap(), []);
}

#[tokio::test]
async fn damage_is_named_and_a_torn_end_is_not_damage() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let app = start(log.clone(), &settings).await;
    log.mode.send_replace(Mode::Fails);
    for _ in 0..3 {
        assert_eq!(app.get(&click(1)).await.status, 302);
    }
    app.kill().await;
    drop(open(&settings, noon()).await);
    let segment = settings.dir.join("log/topics/clicks/00000000000000000000.log");
    let whole = std::fs::read(&segment).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&segment, flipped).unwrap();
    let error = Spool::open(settings.clone(), PARTITIONS, noon()).await.err().unwrap().to_string();
    assert!(error.contains("00000000000000000000.log is damaged at byte"), "{error}");
    std::fs::write(&segment, [&whole[..], b"TL1"].concat()).unwrap();
    let spool = open(&settings, noon()).await;
    assert_eq!(spool.counters().records, 3);
}

/// A click is answered, and what would say that it was sent is changed: the next process says so by name, or has the click.
#[tokio::test]
async fn a_flipped_bit_in_what_was_sent_hides_no_click() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let sent = settings.dir.join("sent");
    let app = start(log.clone(), &settings).await;
    log.mode.send_replace(Mode::Fails);
    for _ in 0..2 {
        assert_eq!(app.get(&click(1)).await.status, 302);
    }
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let one = tally_log::partitioner::partition_of(b"imp_1", PARTITIONS) as usize;
    // From 2 to 3, which would hide the one that follows, it is one bit.
    eventually("it is written down", || next_of(&sent).is_some_and(|next| next[one] == 2)).await;
    log.mode.send_replace(Mode::Fails);
    assert_eq!(app.get(&click(1)).await.status, 302);
    app.kill().await;
    let spool = open(&settings, noon()).await;
    assert_eq!(spool.counters().records, 1);
    drop(spool);

    let whole = std::fs::read(&sent).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&sent, flipped).unwrap();
        match Spool::open(settings.clone(), PARTITIONS, noon()).await {
            Err(error) => assert!(error.to_string().contains("spool/sent is damaged"), "bit {bit}: {error}"),
            Ok(spool) => assert!(spool.counters().records >= 1, "bit {bit}"),
        }
    }
    // Nor does one that is whole, and cannot be true.
    let json = std::str::from_utf8(&whole).unwrap().lines().next().unwrap();
    let mut beyond: serde_json::Value = serde_json::from_str(json).unwrap();
    beyond["next"][one] = 4.into();
    std::fs::write(&sent, tally_log::durable::checked::with_sum(&beyond.to_string())).unwrap();
    let error = Spool::open(settings.clone(), PARTITIONS, noon()).await.err().unwrap().to_string();
    assert!(error.contains("spool/sent is damaged: it says that partition"), "{error}");
    // What the message advises.
    std::fs::remove_file(&sent).unwrap();
    assert_eq!(open(&settings, noon()).await.counters().records, 3);
}

/// By partition what the file `sent` says, if it is there.
fn next_of(sent: &Path) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(sent).ok()?;
    let sent: serde_json::Value = serde_json::from_str(text.lines().next()?).unwrap();
    Some(sent["next"].as_array()?.iter().map(|next| next.as_u64().unwrap()).collect())
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

/// The ids of the clicks in a log on this disk.
async fn clicks_on_disk(log: &LocalLog) -> Vec<String> {
    let topic = log.topic("clicks").await.unwrap();
    let ends = tally_log::ends(log, &topic).await.unwrap();
    let mut consumer = log.consumer(&topic, &Offsets::beginning(topic.partitions)).await.unwrap();
    let mut ids = Vec::new();
    while consumer.next() != ends {
        for record in consumer.poll(1_000, Duration::from_secs(10)).await.unwrap() {
            if let Event::Click(click) = serde_json::from_slice(&record.value).unwrap() {
                ids.push(click.click_id.to_string());
            }
        }
    }
    ids
}

/// Clicks come so that one is on its way in at every moment, and each is acknowledged a little later. What was sent is
/// written down and leaves the disk all the same, and the next process sends what was not acknowledged, and nothing else.
#[tokio::test]
async fn under_a_load_without_a_pause_what_was_sent_leaves_the_disk() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = SpoolSettings { bytes_max: 256 << 20, segment_bytes_max: 64 << 10, ..settings(dir.path()) };
    let sent = settings.dir.join("sent");
    let spool = open(&settings, noon()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool.clone()), ..no_rules() }).await;
    assert_eq!(app.get(&click(1)).await.status, 302);
    let value = bytes::Bytes::from(log.click_texts()[0].1.clone());
    let go_on = Arc::new(AtomicBool::new(true));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (spool, value, go_on) = (spool.clone(), value.clone(), go_on.clone());
        load.spawn(async move {
            while go_on.load(Ordering::Relaxed) {
                // From the answer to the next one's way in nothing else runs on this thread.
                let place = spool.append(number % PARTITIONS, value.clone()).await.unwrap();
                spool.first_send_ended(place, true);
            }
        });
    }
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    eventually("what was sent is written down again and again, and most of it has left", || {
        seen.borrow_mut().extend(next_of(&sent));
        let SpoolCounters { spooled, disk_bytes, .. } = spool.counters();
        seen.borrow().len() > 3 && disk_bytes < spooled * value.len() as u64 / 2
    })
    .await;
    let first = settings.dir.join("log/topics/clicks/00000000000000000000.log");
    assert!(!first.exists(), "its clicks were sent");
    go_on.store(false, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    // The last ones are not acknowledged.
    let all = spool.counters().spooled;
    log.mode.send_replace(Mode::Fails);
    for partition in [0, 0, 3] {
        let place = spool.append(partition, value.clone()).await.unwrap();
        spool.first_send_ended(place, false);
    }
    eventually("the rest is written down", || next_of(&sent).is_some_and(|next| next.iter().sum::<u64>() == all)).await;
    drop(spool);
    app.kill().await;
    let spool = open(&settings, noon()).await;
    assert_eq!((spool.counters().records, spool.counters().bytes), (3, 3 * value.len() as u64));
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

const DIES_IN: &str = "TALLY_TEST_DIES_IN";

/// The process that dies at a commit point, which [`a_death_after_a_segment_was_removed_loses_no_click`] starts.
#[tokio::test]
#[ignore = "a part of another test"]
async fn dies_after_a_segment_was_removed() {
    let dir = std::path::PathBuf::from(std::env::var_os(DIES_IN).unwrap());
    let (local, _) = LocalLog::open(&dir.join("log"), tally_log::local::Settings::default(), noon()).unwrap();
    let log = TestLog::before(Arc::new(local)).await;
    let app = start(log.clone(), &settings(&dir)).await;
    for number in 0..5_000 {
        // All of a hundred wait, and then they are sent.
        log.mode.send_replace(if number / 100 % 2 == 0 { Mode::Fails } else { Mode::Works });
        let answer = app.get(&click(number)).await;
        assert_eq!(answer.status, 302);
        println!("answered {}", answer.click_id());
    }
}

#[tokio::test]
async fn a_death_after_a_segment_was_removed_loses_no_click() {
    let dir = tempfile::tempdir().unwrap();
    let died = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "spool::dies_after_a_segment_was_removed", "--ignored", "--nocapture"])
        .env(DIES_IN, dir.path())
        .env(faults::DIE_AT, "spool.removed")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&died.stderr);
    assert!(said.contains("died at spool.removed"), "{said}");
    let answered: Vec<String> = String::from_utf8_lossy(&died.stdout)
        .lines()
        .filter_map(|line| Some(line.split_once("answered ")?.1.to_owned()))
        .collect();
    assert!(answered.len() > 100, "{}", answered.len());
    assert!(!dir.path().join("spool/log/topics/clicks/00000000000000000000.log").exists());

    let (local, _) = LocalLog::open(&dir.path().join("log"), tally_log::local::Settings::default(), noon()).unwrap();
    let local = Arc::new(local);
    let app = start(TestLog::before(local.clone()).await, &settings(dir.path())).await;
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let there: std::collections::BTreeSet<_> = clicks_on_disk(&local).await.into_iter().collect();
    let lost: Vec<_> = answered.iter().filter(|click| !there.contains(*click)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// Nobody clicks, and the spool's folder is gone: it is not ready before anybody does, and it is again when it is back.
#[tokio::test]
async fn a_spool_that_would_not_take_a_click_is_not_ready_before_one_comes() {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let app = start(log.clone(), &settings).await;
    assert_eq!(app.get("/readyz").await.status, 200);
    let gone = dir.path().join("gone");
    std::fs::rename(&settings.dir, &gone).unwrap();
    eventually("it is not ready", || app.service.ready().is_err()).await;
    let answer = app.get("/readyz").await;
    assert_eq!(answer.status, 503);
    let why = app.service.ready().unwrap_err();
    assert!(why.starts_with("the spool cannot be written: cannot create ") && why.contains("/spool/"), "{why}");
    std::fs::rename(&gone, &settings.dir).unwrap();
    eventually("it is ready again", || app.service.ready().is_ok()).await;
    assert!(!settings.dir.join("probe").exists(), "nothing stays of a look");
    log.mode.send_replace(Mode::Fails);
    assert_eq!(app.get(&click(1)).await.status, 302);
}

/// A clock that stands still for the thread that writes the spool, as a disk does that hangs.
struct HangingClock {
    clock: Arc<ManualClock>,
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl HangingClock {
    fn hang(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }
}

impl Clock for HangingClock {
    fn now(&self) -> click::Millis {
        if std::thread::current().name() == Some("log-clicks") {
            drop(self.changed.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        }
        self.clock.now()
    }
}

/// On one thread, which answers everything, a spool's disk hangs: others are answered, and when the disk goes on it is used
/// again, with what was answered before.
#[test]
fn a_spool_whose_disk_hangs_holds_up_nobody_and_is_opened_again() {
    on_one_thread(on_a_disk_that_hangs);
}

/// Runs a test on one thread, for a minute at most.
fn on_one_thread<F: Future<Output = ()>>(test: impl FnOnce(Arc<HangingClock>) -> F + Send + 'static) {
    let clock = Arc::new(HangingClock { clock: noon(), hangs: Mutex::new(false), changed: Condvar::new() });
    let (ended, end) = std::sync::mpsc::channel();
    let hanging = clock.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(hanging));
        ended.send(()).unwrap();
    });
    let in_time = end.recv_timeout(Duration::from_secs(60));
    // Whoever still waits for the disk goes on, so that the failure is told.
    clock.hang(false);
    thread.join().unwrap();
    in_time.expect("the thread that answers waited for the disk");
}

async fn on_a_disk_that_hangs(clock: Arc<HangingClock>) {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let spool = open(&settings, clock.clone()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await;
    log.mode.send_replace(Mode::Fails);
    let mut answered = vec![app.get(&click(1)).await];
    clock.hang(true);
    assert_eq!(app.get(&click(2)).await.status, 503, "neither log nor spool has it");
    let why = app.service.ready().unwrap_err();
    assert!(why.contains("the spool cannot be written: ") && why.contains("its disk does not answer"), "{why}");
    assert_eq!(app.get(&click(3)).await.status, 503);
    // The log is the better place, and needs no spool where it is not known to be stuck.
    log.mode.send_replace(Mode::Works);
    let of = |number: usize| tally_log::partitioner::partition_of(format!("imp_{number}").as_bytes(), PARTITIONS);
    let free = (6..).find(|number| (1..=3).all(|stuck| of(stuck) != of(*number))).unwrap();
    answered.push(app.get(&click(free)).await);
    log.mode.send_replace(Mode::Fails);
    clock.hang(false);
    eventually("the spool is open again", || app.service.ready().is_ok()).await;
    answered.push(app.get(&click(5)).await);
    assert!(answered.iter().all(|answer| answer.status == 302), "{answered:?}");
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let mut there = attempts(&log);
    // What hung was written after its browser was told that it may not be: it may be there, or not.
    there.remove("imp_2");
    assert_eq!(there.into_keys().collect::<Vec<_>>(), ["imp_1", "imp_5", &format!("imp_{free}")]);
}

/// While it hangs the spool is taken away: what waited is gone, and a new one's offsets are not taken for it.
#[test]
fn another_spool_is_not_taken_for_the_one_that_failed() {
    on_one_thread(on_a_folder_that_is_taken_away);
}

async fn on_a_folder_that_is_taken_away(clock: Arc<HangingClock>) {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let spool = open(&settings, clock.clone()).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await;
    log.mode.send_replace(Mode::Fails);
    assert_eq!(app.get(&click(1)).await.status, 302);
    clock.hang(true);
    assert_eq!(app.get(&click(2)).await.status, 503);
    std::fs::remove_dir_all(&settings.dir).unwrap();
    clock.hang(false);
    let says = |why: &str| app.service.ready().is_err_and(|error| error.contains(why));
    eventually("it says so", || says("is not the spool that it was when this process began")).await;
    assert_eq!(app.get(&click(1)).await.status, 503);
}
