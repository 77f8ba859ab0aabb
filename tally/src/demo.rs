//! Sends a believable stream of clicks over HTTP, as browsers and bots would.

use crate::machine::SAMPLE_CATALOG;
use anyhow::{Context, Result};
use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redirect::{AdState, Catalog};
use reqwest::header::USER_AGENT;
use reqwest::redirect::Policy;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Requests under way at once at most: a slow redirect is not piled up on.
const IN_FLIGHT_MAX: usize = 64;

/// How often clicks are handed out.
const TICK: Duration = Duration::from_millis(20);

const COUNTRIES: [(&str, u32); 8] =
    [("DE", 30), ("US", 25), ("IN", 15), ("GB", 10), ("FR", 8), ("BR", 6), ("JP", 4), ("NL", 2)];

const PEOPLE: [(&str, u32); 6] = [
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
        30,
    ),
    (
        "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
        30,
    ),
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
        22,
    ),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
        8,
    ),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", 5),
    (
        "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
        5,
    ),
];

const BOTS: [&str; 3] = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "curl/8.5.0",
];

/// Of a hundred new impressions so many are clicked twice, fetched by a bot first, or prefetched first.
const TWICE: u32 = 6;
const BOT_FIRST: u32 = 4;
const PREFETCHED: u32 = 4;

/// What to send, and where.
#[derive(Debug, Clone)]
pub struct Demo {
    /// Where the redirect is, e.g. `http://127.0.0.1:8080`.
    pub url: String,
    /// Clicks a second.
    pub rate: u32,
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Sent {
    /// Answered with a 302.
    pub redirected: AtomicU64,
    /// Prefetches, answered 503 as they should be.
    pub prefetches: AtomicU64,
    pub failed: AtomicU64,
    first_failure: OnceLock<String>,
}

impl Sent {
    /// What the first failure said.
    pub fn first_failure(&self) -> &str {
        self.first_failure.get().map_or("no failure", String::as_str)
    }
}

#[derive(Clone)]
struct Request {
    impression: String,
    ad: usize,
    agent: &'static str,
    country: &'static str,
    prefetch: bool,
}

impl Demo {
    /// Sends until told to stop.
    pub async fn run(self, sent: Arc<Sent>, shutdown: impl Future<Output = ()>) -> Result<()> {
        let catalog = Catalog::parse("catalog/sample.csv", SAMPLE_CATALOG)?;
        let mut ads: Vec<(String, String)> = catalog
            .ads()
            .filter(|ad| ad.state == AdState::Active)
            .map(|ad| (ad.ad_id.to_string(), ad.campaign_id.to_string()))
            .collect();
        ads.sort();
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(Duration::from_secs(10))
            .build()
            .context("the HTTP client")?;
        let mut stream = Stream::new(self.seed, ads.len())?;
        let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut shutdown = pin!(shutdown);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut owed = 0.0;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = ticks.tick() => {}
            }
            owed += f64::from(self.rate) * TICK.as_secs_f64();
            while owed >= 1.0 {
                owed -= 1.0;
                let request = stream.next(Instant::now());
                let Ok(room) = room.clone().acquire_owned().await else { break };
                let (ad, campaign) = &ads[request.ad];
                let url = format!("{}/api/v1/click/{}?ad_id={ad}&campaign_id={campaign}", self.url, request.impression);
                let mut call = client.get(url).header(USER_AGENT, request.agent).header("X-Country", request.country);
                if request.prefetch {
                    call = call.header("Sec-Purpose", "prefetch");
                }
                let sent = sent.clone();
                tokio::spawn(async move {
                    let answer = call.send().await.map(|answer| answer.status().as_u16());
                    let counter = match &answer {
                        Ok(302) => &sent.redirected,
                        Ok(503) if request.prefetch => &sent.prefetches,
                        Ok(other) => {
                            sent.first_failure.get_or_init(|| format!("the answer was {other}"));
                            &sent.failed
                        }
                        Err(error) => {
                            sent.first_failure.get_or_init(|| format!("{error:?}"));
                            &sent.failed
                        }
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    drop(room);
                });
            }
        }
        // What is under way gets its answer.
        let _ = tokio::time::timeout(Duration::from_secs(10), room.acquire_many(IN_FLIGHT_MAX as u32)).await;
        Ok(())
    }
}

/// The clicks, one after the other.
struct Stream {
    rng: StdRng,
    ads: WeightedIndex<u32>,
    countries: WeightedIndex<u32>,
    people: WeightedIndex<u32>,
    /// Clicks on impressions that something else came first on, and when they are due.
    later: VecDeque<(Instant, Request)>,
    /// So that the impressions of two demos never meet.
    prefix: String,
    number: u64,
}

impl Stream {
    /// Second clicks that wait at most.
    const LATER_MAX: usize = 10_000;

    fn new(seed: u64, ads: usize) -> Result<Self> {
        // A few ads get most of the clicks.
        let ads =
            WeightedIndex::new((1..=ads as u32).map(|rank| 1000 / rank)).context("the catalog has no active ad")?;
        let prefix = format!("demo-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        Ok(Stream {
            rng: StdRng::seed_from_u64(seed),
            ads,
            countries: WeightedIndex::new(COUNTRIES.map(|(_, weight)| weight))?,
            people: WeightedIndex::new(PEOPLE.map(|(_, weight)| weight))?,
            later: VecDeque::new(),
            prefix,
            number: 0,
        })
    }

    fn next(&mut self, now: Instant) -> Request {
        if self.later.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, request)) = self.later.pop_front()
        {
            return request;
        }
        self.number += 1;
        let click = Request {
            impression: format!("{}-{}", self.prefix, self.number),
            ad: self.ads.sample(&mut self.rng),
            agent: PEOPLE[self.people.sample(&mut self.rng)].0,
            country: COUNTRIES[self.countries.sample(&mut self.rng)].0,
            prefetch: false,
        };
        let kind = self.rng.random_range(0..100);
        let first = match kind {
            _ if kind < TWICE => click.clone(),
            _ if kind < TWICE + BOT_FIRST => {
                Request { agent: BOTS[self.rng.random_range(0..BOTS.len())], ..click.clone() }
            }
            _ if kind < TWICE + BOT_FIRST + PREFETCHED => Request { prefetch: true, ..click.clone() },
            _ => return click,
        };
        if self.later.len() < Self::LATER_MAX {
            // In order of time, since each waits as long as the last.
            self.later.push_back((now + Duration::from_secs(3), click));
        }
        first
    }
}
