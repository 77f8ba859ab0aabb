//! What an Arroyo of this test is told to run really runs: on Tally's own runner, over Kafka, from the offsets that are
//! committed for the consumer group of each pipeline.

use crate::fake::Fake;
use crate::site::Site;
use click::Lateness;
use runner::{ClaimsSettings, PipelineFiles, Runner, RunnerSettings, VersionStart};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings, groups};
use tally_log::{Log, Topic};

/// Minutes close soon, and so does a test.
pub const LATENESS: Lateness = Lateness { lateness_ms: 3_000, slack_ms: 1_000 };

/// Runs the newest pipeline that is to run, until it is stopped.
pub struct Engine {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    fake: Fake,
    settings: Settings,
    log: Arc<KafkaLog>,
    clicks: Topic,
    /// Claims and checkpoints: one folder for all versions, as Redis keeps the claims of all.
    state: PathBuf,
    stopped: Arc<AtomicBool>,
}

impl Engine {
    pub fn start(fake: &Fake, site: &Site) -> Engine {
        let stopped = Arc::new(AtomicBool::new(false));
        let work = Work {
            fake: fake.clone(),
            settings: site.settings.clone(),
            log: site.log.clone(),
            clicks: site.clicks.clone(),
            state: site.path().join("engine"),
            stopped: stopped.clone(),
        };
        // A runner is not sent between threads while it runs.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work.run());
        });
        Engine { stopped, thread: Some(thread) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // A panic of its own was printed, and its rows are missed by the test.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Work {
    async fn run(&self) {
        while !self.stopped.load(Ordering::Relaxed) {
            let newest = self.running();
            if let Some((id, name, query)) = newest {
                // As a job of Arroyo's, one that failed begins again at its last checkpoint.
                if let Err(error) = self.run_pipeline(&id, &name, &query).await {
                    println!("{name} begins again: {error}");
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Id, name and SQL.
    fn running(&self) -> Option<(String, String, String)> {
        let world = self.fake.world();
        let newest = world.pipelines.iter().rev().find(|pipeline| pipeline.state == "Running");
        newest.map(|pipeline| (pipeline.id.clone(), pipeline.name.clone(), pipeline.query.clone()))
    }

    async fn run_pipeline(&self, id: &str, name: &str, query: &str) -> Result<(), runner::RunError> {
        let version: i64 = name.strip_prefix("tally-clicks-").unwrap().parse().unwrap();
        let mut versions = Vec::new();
        for version in 1..=version {
            let group = format!("tally-clicks-{version}");
            let positions = groups::committed(&self.settings, &group, &self.clicks).await.unwrap();
            assert_eq!(positions.iter().count(), self.clicks.partitions as usize, "committed for {group}");
            versions.push(VersionStart { version, log_id: self.clicks.log_id, positions });
        }
        let files = PipelineFiles::one("clicks.sql", query);
        let settings = RunnerSettings {
            lateness: LATENESS,
            claims: ClaimsSettings::default(),
            checkpoint_every: Duration::from_millis(500),
        };
        let log: Arc<dyn Log> = self.log.clone();
        let runner = Runner::open(&files, versions, log, &self.state, settings, None).await?;
        println!("{name} runs");
        let is_over = || self.stopped.load(Ordering::Relaxed) || self.running().is_none_or(|newest| newest.0 != id);
        runner
            .run(async {
                while !is_over() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await
    }
}
