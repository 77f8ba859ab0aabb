//! A disk that changes what was written, is not there, or hangs.

use super::*;
use crate::app::{Mode, eventually};
use std::future::Future;
use std::sync::{Condvar, Mutex};

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
    let (_dir, settings, _log, app) = without_a_log(clock.clone()).await;
    assert_eq!(app.get(&click(1)).await.status, 302);
    clock.hang(true);
    assert_eq!(app.get(&click(2)).await.status, 503);
    std::fs::remove_dir_all(&settings.dir).unwrap();
    clock.hang(false);
    let says = |why: &str| app.service.ready().is_err_and(|error| error.contains(why));
    eventually("it says so", || says("is not the spool that it was when this process began")).await;
    assert_eq!(app.get(&click(1)).await.status, 503);
}

/// A disk fails a click, and then can be opened and takes nothing: it is not ready until it was looked at.
#[test]
fn a_spool_that_is_opened_again_is_not_ready_on_a_disk_that_takes_nothing() {
    on_one_thread(on_a_disk_that_opens_and_takes_nothing);
}

async fn on_a_disk_that_opens_and_takes_nothing(clock: Arc<HangingClock>) {
    let (_dir, settings, _log, app) = without_a_log(clock.clone()).await;
    // As good as a look.
    assert_eq!(app.get(&click(1)).await.status, 302);
    clock.hang(true);
    assert_eq!(app.get(&click(2)).await.status, 503);
    // What stands in the way of a look stands for a disk that is full. There may be one at this moment.
    let in_the_way = settings.dir.join("probe");
    eventually("it is in the way", || std::fs::create_dir(&in_the_way).is_ok()).await;
    clock.hang(false);
    let ready = || app.service.ready().err();
    eventually("it is open again", || ready().expect("it takes nothing").contains("/spool/probe")).await;
    std::fs::remove_dir(&in_the_way).unwrap();
    eventually("it is ready again", || ready().is_none()).await;
    assert_eq!(app.get(&click(3)).await.status, 302);
}
