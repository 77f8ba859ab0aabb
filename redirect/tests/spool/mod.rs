//! A log that does not answer in time, or not at all: clicks go to the spool, and from there to the log.

use crate::app::{Mode, PARTITIONS, TestApp, TestLog, eventually, no_rules};
use click::{Clock, ManualClock};
use redirect::spool::{Spool, SpoolSettings, aside};
use redirect::{Settings, With};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);

fn impatient() -> Settings {
    Settings { append_wait: Duration::from_millis(50), ..Settings::default() }
}

fn settings(dir: &Path) -> SpoolSettings {
    SpoolSettings { dir: dir.join("spool"), bytes_max: 1 << 20, age_max: HOUR }
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
    assert_eq!(app.get(&click(1)).await.status, 302);
    log.mode.send_replace(Mode::Works);
    eventually("the spool is empty", || waiting(&app) == 0).await;
    let one = tally_log::partitioner::partition_of(b"imp_1", PARTITIONS) as usize;
    eventually("it is written down", || next_of(&sent).is_some_and(|next| next[one] == 1)).await;
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
    beyond["next"][one] = 3.into();
    std::fs::write(&sent, tally_log::durable::checked::with_sum(&beyond.to_string())).unwrap();
    let error = Spool::open(settings.clone(), PARTITIONS, noon()).await.err().unwrap().to_string();
    assert!(error.contains("spool/sent is damaged: it says that partition"), "{error}");
    // What the message advises.
    std::fs::remove_file(&sent).unwrap();
    assert_eq!(open(&settings, noon()).await.counters().records, 2);
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
