//! A log that does not answer in time, or not at all: clicks go to the spool, and from there to the log.

mod disk;
mod limits;
mod resend;
mod room;

use crate::app::{Mode, PARTITIONS, TestApp, TestLog, no_rules};
use click::{Clock, ManualClock};
use redirect::spool::{Spool, SpoolSettings};
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
    SpoolSettings { dir: dir.join("spool"), bytes_max: 1 << 20, segment_bytes_max: 8 << 10, age_max: HOUR }
}

/// A redirect whose clicks all go to a spool in a folder of its own, until the log works.
async fn without_a_log(clock: Arc<dyn Clock>) -> (tempfile::TempDir, SpoolSettings, Arc<TestLog>, TestApp) {
    let (dir, log) = (tempfile::tempdir().unwrap(), TestLog::new());
    let settings = settings(dir.path());
    let spool = open(&settings, clock).await;
    let app = TestApp::with_all(log.clone(), impatient(), With { spool: Some(spool), ..no_rules() }).await;
    log.mode.send_replace(Mode::Fails);
    (dir, settings, log, app)
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

/// By partition what the file `sent` says, if it is there.
fn next_of(sent: &Path) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(sent).ok()?;
    let sent: serde_json::Value = serde_json::from_str(text.lines().next()?).unwrap();
    Some(sent["next"].as_array()?.iter().map(|next| next.as_u64().unwrap()).collect())
}
