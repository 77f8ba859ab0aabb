//! `tally bench cluster`: clicks at a fixed rate through redirects that run, and how long they take to the reports.
//!
//! Each click has an impression of its own, so what has to be reported is what was answered with a 302. How long each click
//! took is read off both curves: the N-th was answered after the last look at which fewer than N had been, and is reported at
//! the first look that says N.

use crate::status::say;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use click::{Clock, Millis, SystemClock};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How often the reports are asked.
const ASK_EVERY: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct ClusterBench {
    /// Addresses of the redirects; repeat it for several
    #[arg(long, default_value = "127.0.0.1:8080")]
    redirect: Vec<SocketAddr>,
    /// Address of a reporting node
    #[arg(long, default_value = "127.0.0.1:8081")]
    reporting: SocketAddr,
    /// Clicks a second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long clicks are sent
    #[arg(long, default_value = "3m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Connections, spread over the redirects
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// The ad that is clicked, and its campaign
    #[arg(long, default_value = "ad_9", requires = "campaign")]
    ad: String,
    #[arg(long, default_value = "cmp_7")]
    campaign: String,
    /// How long the last clicks may take to the reports, and after that to become final
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Wait until all clicks are final, and compare again; needs a `--wait` of a minute more than allowed lateness and slack
    #[arg(long = "final")]
    until_final: bool,
}

/// Of the rate that is asked for, the part that has to be answered.
const RATE_LEAST: f64 = 0.99;
/// How long 99 of 100 clicks may take to the reports.
const AGE_MAX: Duration = Duration::from_secs(10);
/// How long the reports have to stay at what was answered: a click that is counted twice may come to them later than the first.
const STAYS: Duration = Duration::from_secs(10);

/// What the reports say of the clicks of this run.
struct Reported {
    clicks: u64,
    complete_through: Millis,
}

/// How long clicks took to the reports.
struct Ages {
    /// When so many had been answered, of what is not reported yet.
    answered: VecDeque<(Instant, u64)>,
    /// The last look before those, or the first click.
    before: Instant,
    reported: u64,
    /// So many clicks took so long at most.
    took: Vec<(Duration, u64)>,
}

impl Ages {
    fn new(began: Instant) -> Ages {
        Ages { answered: VecDeque::new(), before: began, reported: 0, took: Vec::new() }
    }

    /// A look at `now`: so many were answered before it, and so many are reported.
    fn look(&mut self, now: Instant, answered: u64, reported: u64) {
        self.answered.push_back((now, answered));
        while let Some(&(at, answered)) = self.answered.front() {
            let until = answered.min(reported);
            if until > self.reported {
                self.took.push((now - self.before, until - self.reported));
                self.reported = until;
            }
            if answered > reported {
                break;
            }
            self.before = at;
            self.answered.pop_front();
        }
    }

    /// The age that `share` of all reported clicks had at most.
    fn percentile(&mut self, share: f64) -> Duration {
        self.took.sort_unstable();
        let mut left = (self.reported as f64 * share).ceil() as u64;
        let at = self.took.iter().find(|(_, clicks)| {
            left = left.saturating_sub(*clicks);
            left == 0
        });
        at.map_or(Duration::ZERO, |(age, _)| *age)
    }
}

/// What was sent, and what came back.
#[derive(Default)]
struct Sent {
    redirected: AtomicU64,
    failed: AtomicU64,
    /// Microseconds of each answer.
    latencies: Mutex<Vec<u32>>,
}

impl ClusterBench {
    pub async fn run(self) -> Result<()> {
        let bench = Arc::new(self);
        let sent = Arc::new(Sent::default());
        // Earlier clicks of the same ad stay out of the count: the reports begin with the next minute.
        let from = SystemClock.now().minute().end();
        let wait_ms = u64::try_from(from.get() - SystemClock.now().get()).unwrap_or(0);
        say(&format!("waiting {} s for a new minute", wait_ms / 1000));
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;

        let began = Instant::now();
        let run = uuid::Uuid::new_v4().simple().to_string();
        let mut senders = JoinSet::new();
        for number in 0..bench.connections {
            senders.spawn(send(bench.clone(), sent.clone(), number, began, run.clone()));
        }
        let mut ages = Ages::new(began);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let mut every = tokio::time::interval(ASK_EVERY);
        let mut shown = Instant::now();
        // When all was sent, and since when all of it is reported.
        let (mut ended, mut all_since) = (None::<(Instant, Millis)>, None::<Instant>);
        let (reported, sending) = loop {
            every.tick().await;
            while senders.try_join_next().transpose()?.transpose()?.is_some() {}
            let answered = sent.redirected.load(Ordering::Relaxed);
            let reported = bench.reported(&client, from.to_string()).await?;
            ages.look(Instant::now(), answered, reported.clicks);
            if shown.elapsed() >= Duration::from_secs(10) {
                shown = Instant::now();
                let failed = sent.failed.load(Ordering::Relaxed);
                say(&format!(
                    "{:>4} s  answered {answered}  reported {}  failed {failed}  final through {}",
                    began.elapsed().as_secs(),
                    reported.clicks,
                    reported.complete_through,
                ));
            }
            if !senders.is_empty() {
                continue;
            }
            let (ended, last) = *ended.get_or_insert_with(|| (Instant::now(), SystemClock.now()));
            if reported.clicks != answered {
                all_since = None;
                if ended.elapsed() > bench.wait {
                    break (reported.clicks, ended - began);
                }
                continue;
            }
            let since = *all_since.get_or_insert_with(Instant::now);
            let settled = if bench.until_final { reported.complete_through > last } else { since.elapsed() >= STAYS };
            if settled {
                break (reported.clicks, ended - began);
            }
            ensure!(
                since.elapsed() <= bench.wait,
                "final only through {}, after {:?}",
                reported.complete_through,
                bench.wait
            );
        };
        bench.tell(&sent, began, sending, reported, ages).await
    }

    async fn tell(&self, sent: &Sent, began: Instant, sending: Duration, reported: u64, mut ages: Ages) -> Result<()> {
        let answered = sent.redirected.load(Ordering::Relaxed);
        let mut latencies = std::mem::take(&mut *sent.latencies.lock().await);
        latencies.sort_unstable();
        // Of the time that it really took: clicks that are late are sent all the same.
        let seconds = sending.as_secs_f64();
        let latency = |share: f64| percentile(&latencies, share).map_or(0.0, |us| f64::from(us) / 1000.0);
        let (half, longest) = (ages.percentile(0.5), ages.percentile(0.99));
        say(&format!(
            "answered {answered} clicks with a 302, {:.0} a second; failed {}\nanswer p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms\n\
             click to report p50 {half:.1?}, p99 {longest:.1?}; done {:.0} s after the first click\nreported {reported}",
            answered as f64 / seconds,
            sent.failed.load(Ordering::Relaxed),
            latency(0.5),
            latency(0.99),
            latency(0.999),
            began.elapsed().as_secs_f64(),
        ));
        ensure!(answered > 0, "no click was answered with a 302");
        if reported != answered {
            bail!("{answered} clicks were answered and {reported} are reported");
        }
        say(if self.until_final { "exact, and final" } else { "exact" });
        let rate = answered as f64 / seconds;
        let least = f64::from(self.rate) * RATE_LEAST;
        ensure!(
            rate >= least && longest < AGE_MAX,
            "not reached: {least:.0} clicks a second, reported within {AGE_MAX:?}"
        );
        Ok(())
    }

    /// Clicks of the ad since `from`, as the reports say.
    async fn reported(&self, client: &reqwest::Client, from: String) -> Result<Reported> {
        let url = format!("http://{}/api/v1/reports/clicks", self.reporting);
        let to = SystemClock.now().minute().end().plus(60_000).to_string();
        let query = [("from", from), ("to", to), ("ad_id", self.ad.clone())];
        let answer = client.get(&url).query(&query).send().await.with_context(|| url.clone())?;
        let body: serde_json::Value = answer.error_for_status()?.json().await?;
        let clicks = body["totals"]["clicks"].as_u64().with_context(|| format!("{url} says no total: {body}"))?;
        let through = body["completeThrough"].as_str().and_then(|through| through.parse().ok());
        let complete_through = through.with_context(|| format!("{url} does not say what is final: {body}"))?;
        Ok(Reported { clicks, complete_through })
    }
}

fn percentile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

/// One connection's share of the clicks, each at its time; one that is late goes at once.
async fn send(bench: Arc<ClusterBench>, sent: Arc<Sent>, number: u32, began: Instant, run: String) -> Result<()> {
    let address = bench.redirect[number as usize % bench.redirect.len()];
    let mut stream = connect(address).await?;
    let gap = Duration::from_secs_f64(f64::from(bench.connections) / f64::from(bench.rate));
    let mut due = began + gap.mul_f64(f64::from(number) / f64::from(bench.connections));
    let mut latencies = Vec::new();
    let mut click = 0_u64;
    while due < began + bench.time {
        tokio::time::sleep_until(due.into()).await;
        due += gap;
        click += 1;
        let request = format!(
            "GET /api/v1/click/bench_{run}_{number}_{click}?ad_id={}&campaign_id={} HTTP/1.1\r\nHost: bench\r\nUser-Agent: {AGENT}\r\n\r\n",
            bench.ad, bench.campaign
        );
        let asked = Instant::now();
        match ask(&mut stream, request.as_bytes()).await {
            Ok(true) => {
                sent.redirected.fetch_add(1, Ordering::Relaxed);
                latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            // Not answered with a 302: it may be counted or not, and the bench says so at its end.
            Ok(false) => {
                sent.failed.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                sent.failed.fetch_add(1, Ordering::Relaxed);
                stream = connect(address).await?;
            }
        }
    }
    sent.latencies.lock().await.extend(latencies);
    Ok(())
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("redirect {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one request and reads its answer, whether it was a 302. A redirect's answer has no body.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<bool> {
    stream.write_all(request).await?;
    let mut head = [0; HEAD_BYTES_MAX];
    let mut length = 0;
    loop {
        ensure!(length < head.len(), "the answer's head is too long");
        let read = stream.read(&mut head[length..]).await?;
        ensure!(read > 0, "the connection was closed");
        length += read;
        if head[..length].ends_with(b"\r\n\r\n") {
            return Ok(head.starts_with(b"HTTP/1.1 302"));
        }
        // Any other answer has a body: its connection is not used again.
        ensure!(head.starts_with(b"HTTP/1.1 302") || length < 12, "not a 302");
    }
}

#[test]
fn every_click_counts_for_how_long_it_took() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut ages = Ages::new(began);
    ages.look(at(1), 10, 0);
    ages.look(at(2), 30, 5);
    // The reports stood still for ten seconds: that is one look, and many clicks.
    ages.look(at(12), 40, 40);
    let took = |seconds, clicks| (Duration::from_secs(seconds), clicks);
    assert_eq!(ages.took, [took(2, 5), took(12, 5), took(11, 20), took(10, 10)]);
    assert_eq!(ages.percentile(0.1), Duration::from_secs(2));
    assert_eq!(ages.percentile(0.5), Duration::from_secs(11));
    assert_eq!(ages.percentile(0.99), Duration::from_secs(12));
}
