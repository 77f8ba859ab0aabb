//! Measurements. None of them is ever asserted: they say what this machine did.

pub mod cluster;
pub mod redirect;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use click::{Click, ClickId, Clock, Country, Event, Lateness, Offsets, SystemClock};
use runner::{PipelineFiles, Runner, RunnerSettings, VersionStart};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::Log;
use tally_log::local::{LocalLog, Settings};

/// The pipelines over a local log.
#[derive(Args)]
pub struct PipelineBench {
    /// Clicks in the log
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// Different ads; with 5 countries and 2 devices, ten times as many groups a minute
    #[arg(long, default_value_t = 10_000)]
    ads: u64,
    /// Folder of the pipeline files
    #[arg(long, default_value = "pipelines")]
    pipelines: PathBuf,
    /// Folder for the log and the state, removed afterwards [default: a new one under ./data]
    #[arg(long)]
    dir: Option<PathBuf>,
}

const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
];
const COUNTRIES: [&str; 5] = ["DE", "US", "IN", "GB", "FR"];

impl PipelineBench {
    /// Fills a log, runs the pipelines over it, and prints records a second and a core.
    pub async fn run(self) -> Result<()> {
        let dir = self
            .dir
            .clone()
            .unwrap_or_else(|| PathBuf::from("data").join(format!("bench-{}", uuid::Uuid::new_v4().simple())));
        tally_log::durable::create_dir_all(&dir)?;
        let measured = self.measure(&dir).await;
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        measured
    }

    async fn measure(&self, dir: &std::path::Path) -> Result<()> {
        let settings = Settings { partitions_on_demand: Some(4), ..Settings::default() };
        let (log, _) = LocalLog::open(&dir.join("log"), settings, Arc::new(SystemClock))?;
        let log = Arc::new(log);
        let clicks = log.topic("clicks").await?;
        let bytes = self.fill(&log, &clicks).await?;
        println!(
            "log: {} clicks of {} bytes, every 20th a duplicate, {} ads",
            self.records,
            bytes / self.records,
            self.ads
        );

        let files = PipelineFiles::read(&self.pipelines)?;
        // A lateness of a second lets windows close while it runs.
        let settings =
            RunnerSettings { lateness: Lateness { lateness_ms: 1000, slack_ms: 0 }, ..RunnerSettings::default() };
        let start = VersionStart { version: 1, log_id: clicks.log_id, positions: Offsets::beginning(4) };
        let mut runner = Runner::open(&files, vec![start], log, &dir.join("runner"), settings, None).await?;
        let (wall, cpu) = (Instant::now(), cpu_time()?);
        let records = runner.catch_up().await?;
        runner.checkpoint().await?;
        let (wall, cpu) = (wall.elapsed(), cpu_time()?.saturating_sub(cpu));
        println!(
            "pipelines: {records} records in {:.1} s: {:.0} records/s, {:.0} records per CPU-second of the whole process \
             (runner, claims, log)",
            wall.as_secs_f64(),
            records as f64 / wall.as_secs_f64(),
            records as f64 / cpu.as_secs_f64()
        );
        Ok(())
    }

    /// Returns the bytes of all values.
    async fn fill(&self, log: &LocalLog, clicks: &tally_log::Topic) -> Result<u64> {
        let clock = SystemClock;
        let mut bytes = 0;
        let mut in_flight = std::collections::VecDeque::new();
        for number in 0..self.records {
            let impression = if number % 20 == 19 { number - 7 } else { number };
            let ad = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            let now = clock.now();
            let event = Event::Click(Click {
                click_id: ClickId::new(now),
                impression_id: format!("imp_bench_{impression}").parse()?,
                ad_id: format!("ad_{}", ad % self.ads).parse()?,
                campaign_id: format!("cmp_{}", ad % self.ads / 20).parse()?,
                publisher_id: format!("pub_{}", ad % 7).parse()?,
                timestamp: now,
                ip_hash: "0123456789abcdef0123456789abcdef".into(),
                user_agent: AGENTS[(number % 33 / 10) as usize].into(),
                country: COUNTRIES[(ad / 7 % 5) as usize].parse::<Country>()?,
                seen_before: Some(false),
                attempt: 1,
                invalid_reason: None,
            });
            let value = serde_json::to_vec(&event)?;
            bytes += value.len() as u64;
            let key = format!("imp_bench_{impression}");
            let partition = tally_log::partitioner::partition_of(key.as_bytes(), clicks.partitions);
            in_flight.push_back(log.append(clicks, partition, Some(key.as_bytes()), Bytes::from(value)).await?);
            if in_flight.len() > 10_000
                && let Some(oldest) = in_flight.pop_front()
            {
                oldest.await?;
            }
        }
        for appended in in_flight {
            appended.await?;
        }
        Ok(bytes)
    }
}

/// CPU time of this process so far, in all its threads.
fn cpu_time() -> Result<Duration> {
    cpu_time_of(std::process::id())
}

/// CPU time of a process so far, in all its threads. From /proc, whose ticks are a hundredth of a second.
fn cpu_time_of(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).context(path)?;
    // The name of the command, in brackets, may hold anything; the fields count from behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|f| f.parse::<u64>().ok()).context("a field of stat");
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}
