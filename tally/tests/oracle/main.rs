//! The whole system in process, from HTTP to reports, in virtual time, against an oracle that judges from the answers.
//!
//! `TALLY_SEEDS=20 cargo test --release -p tally --test oracle` runs 20 new seeds, `TALLY_SEED=7 …` the one that
//! failed. Each seed is printed.
#![allow(clippy::unwrap_used)]

mod generator;
mod judge;
mod slow_log;

use click::{ClickId, Clock, ManualClock, Millis, Minute};
use futures::stream::{FuturesUnordered, StreamExt};
use generator::{How, PEOPLE, Request, Through, generate};
use judge::{Cells, Judge};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use slow_log::SlowLog;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tally::config::Config;
use tally::machine::{Machine, SAMPLE_CATALOG};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// 2026-04-20, a quarter past a minute before noon.
const T0: i64 = 1_776_686_355_000;
const REQUESTS: usize = 20_000;
const OVER_MS: i64 = 6 * 60_000;
const LATENESS_MS: i64 = 60_000;
const SLACK_MS: i64 = 10_000;
/// How far the clock of one redirect is ahead.
const AHEAD_MS: i64 = 7_000;
const STEP_MS: i64 = 1_000;

struct AheadClock(Arc<ManualClock>);

impl Clock for AheadClock {
    fn now(&self) -> Millis {
        self.0.now().plus(AHEAD_MS)
    }
}

/// One life of the system: from a start to the moment it is dropped, without a goodbye.
struct System {
    machine: Machine,
    beats: redirect::Service,
    slow: Arc<SlowLog>,
    addresses: [SocketAddr; 3],
    reports: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl System {
    async fn start(dir: &Path, clock: Arc<ManualClock>) -> System {
        let config = Config {
            data: dir.join("data"),
            pipelines: Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines"),
            lateness: Duration::from_millis(LATENESS_MS as u64),
            slack: Duration::from_millis(SLACK_MS as u64),
            ..Config::default()
        };
        // Connections of the life before may take a moment to let go of its files.
        let mut patience = 500;
        let machine = loop {
            match Machine::open(&config, clock.clone()).await {
                Ok(machine) => break machine,
                Err(error) if patience == 0 => panic!("{error:#}"),
                Err(error) => assert!(error.to_string().contains("another process uses"), "{error:#}"),
            }
            patience -= 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let slow = Arc::new(SlowLog {
            inner: machine.log.clone(),
            clock: clock.clone(),
            holds: Mutex::default(),
            time: watch::channel(clock.now().get()).0,
        });
        let settings = redirect::Settings {
            // Virtual minutes may take real seconds.
            append_wait: Duration::from_secs(120),
            drain_wait: Duration::from_millis(1),
            ..Machine::redirect_settings(&config).unwrap()
        };
        let ahead: Arc<dyn Clock> = Arc::new(AheadClock(clock.clone()));
        let services = [
            machine.redirect(machine.log.clone(), clock.clone(), settings.clone()),
            machine.redirect(machine.log.clone(), ahead, settings.clone()),
            machine.redirect(slow.clone(), clock.clone(), settings),
        ];
        let beats = services[0].clone();
        let (stop, _) = watch::channel(false);
        let (mut tasks, mut addresses) = (Vec::new(), Vec::new());
        for service in services {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let mut stopped = stop.subscribe();
            tasks.push(tokio::spawn(redirect::serve(listener, service, async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            })));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reports = listener.local_addr().unwrap();
        let router = reporting::router(Arc::new(machine.warehouse.clone()), clock);
        tasks.push(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
        System { machine, beats, slow, addresses: addresses.try_into().unwrap(), reports, stop, tasks }
    }

    /// Everything that is in the log comes to rest in the reports.
    async fn settle(&mut self) {
        self.machine.runner.catch_up().await.unwrap();
        self.machine.loader.step().await.unwrap();
    }

    /// What a kill leaves behind, as far as one process can play it: no last checkpoint, no last closing.
    async fn die(self) {
        let _ = self.stop.send(true);
        self.slow.time.send_replace(slow_log::DEAD);
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// The world outside: browsers, and what they were told.
struct World {
    clock: Arc<ManualClock>,
    client: reqwest::Client,
    judge: Arc<Mutex<Judge>>,
    ads: Vec<[String; 3]>,
    active: HashMap<String, bool>,
}

impl World {
    fn dimensions(&self, request: &Request) -> [String; 5] {
        let [ad, campaign, publisher] = self.ads[request.ad].clone();
        let device = request.person.map_or("", |person| PEOPLE[person].1);
        [ad, campaign, publisher, request.country.to_string(), device.to_string()]
    }

    /// By the definition: a person's click on an active ad, not a prefetch, with the ad's own campaign.
    fn is_eligible(&self, request: &Request) -> bool {
        let [ad, ..] = &self.ads[request.ad];
        request.person.is_some() && self.active[ad] && matches!(request.how, How::Get | How::Post | How::GoneAway)
    }

    /// Sends a request and remembers the answer. The future ends when the answer is there.
    fn send(&self, system: &System, request: Request) -> impl Future<Output = ()> + Send + 'static {
        let dimensions = self.dimensions(&request);
        let eligible = self.is_eligible(&request);
        let redirect = match request.through {
            Through::Plain => 0,
            Through::Ahead => 1,
            Through::Slow(ms) => {
                system.slow.holds.lock().unwrap().insert(request.impression.clone(), ms);
                2
            }
        };
        let address = system.addresses[redirect];
        let [ad, campaign, ..] = &self.ads[request.ad];
        let campaign = if request.how == How::WrongCampaign { "cmp_other" } else { campaign };
        let path = format!("/api/v1/click/{}?ad_id={ad}&campaign_id={campaign}", request.impression);
        let (client, judge) = (self.client.clone(), self.judge.clone());
        let ahead = if request.through == Through::Ahead { AHEAD_MS } else { 0 };
        let now = self.clock.now().plus(ahead);
        async move {
            // A clock ahead of the log's is cut back to the log's.
            let minutes: Vec<Minute> = (0..=1).map(|step| now.plus(step * STEP_MS - ahead).minute()).collect();
            let unanswered = |judge: &mut Judge| {
                if eligible {
                    judge.unanswered(&request.impression, &minutes, &dimensions);
                }
            };
            if request.how == How::GoneAway {
                unanswered(&mut judge.lock().unwrap());
                let mut stream = TcpStream::connect(address).await.unwrap();
                let (agent, country) = (request.user_agent(), request.country);
                let text =
                    format!("GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\nX-Country: {country}\r\n\r\n");
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            let url = format!("http://{address}{path}");
            let call = match request.how {
                How::Post => client.post(url),
                How::Head => client.head(url),
                How::Prefetch => client.get(url).header("Sec-Purpose", "prefetch"),
                _ => client.get(url),
            };
            let answer =
                call.header("User-Agent", request.user_agent()).header("X-Country", request.country).send().await;
            let mut judge = judge.lock().unwrap();
            let expected = match request.how {
                How::Post => 204,
                How::Prefetch => 503,
                _ => 302,
            };
            match answer {
                Ok(answer) if answer.status().as_u16() == expected => {
                    let id =
                        answer.headers().get("x-click-id").map(|id| id.to_str().unwrap().parse::<ClickId>().unwrap());
                    assert!(id.is_some(), "every answer names its click");
                    match (eligible, id) {
                        (true, Some(id)) => judge.answered_at(&request.impression, id, ahead, &dimensions),
                        _ => judge.ineligible += 1,
                    }
                }
                // The system went away, or said that it could not: the click may be in the log or not.
                Ok(answer) => {
                    assert_eq!(answer.status().as_u16(), 503);
                    unanswered(&mut judge);
                }
                Err(_) => unanswered(&mut judge),
            }
        }
    }

    fn counts(&self) -> (usize, u64) {
        let judge = self.judge.lock().unwrap();
        (judge.must(), judge.ineligible)
    }

    async fn report(&self, system: &System, group_by: &str) -> serde_json::Value {
        let from = Millis::new(T0).minute().start().plus(-600_000);
        let url = format!("http://{}/api/v1/reports/clicks", system.reports);
        let to = self.clock.now().minute().end().plus(600_000);
        let query = [
            ("from", from.to_string()),
            ("to", to.to_string()),
            ("groupBy", group_by.into()),
            ("limit", "100000".into()),
        ];
        let answer = self.client.get(url).query(&query).send().await.unwrap();
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{body}");
        assert_eq!(body["truncated"], false);
        body
    }

    /// Every cell of the report, checked against its coarser groupings.
    async fn cells(&self, system: &System) -> (Cells, serde_json::Value) {
        let body = self.report(system, "minute,ad_id,campaign_id,publisher_id,country,device").await;
        let mut cells = Cells::new();
        for row in body["rows"].as_array().unwrap() {
            let text = |name: &str| row[name].as_str().unwrap().to_string();
            let minute = text("minute").parse::<Millis>().unwrap().minute();
            let cell = (minute, text("adId"), text("campaignId"), text("publisherId"), text("country"), text("device"));
            assert!(cells.insert(cell, row["clicks"].as_i64().unwrap()).is_none(), "a row twice: {row}");
        }
        let total: i64 = cells.values().sum();
        assert_eq!(body["totals"]["clicks"].as_i64(), Some(total));
        for (group_by, key) in [
            ("minute", (|cell| cell.0.to_string()) as fn(&judge::Cell) -> String),
            ("hour", |cell| cell.0.to_string()[..13].to_string()),
            ("day", |cell| cell.0.to_string()[..10].to_string()),
            ("ad_id", |cell| cell.1.clone()),
            ("country", |cell| cell.4.clone()),
        ] {
            let mut expected: HashMap<String, i64> = HashMap::new();
            for (cell, clicks) in &cells {
                *expected.entry(key(cell)).or_default() += clicks;
            }
            let name = match group_by {
                "ad_id" => "adId",
                other => other,
            };
            let body = self.report(system, group_by).await;
            for row in body["rows"].as_array().unwrap() {
                let text = row[name].as_str().unwrap();
                let text = if group_by == "hour" { &text[..13] } else { text };
                assert_eq!(row["clicks"].as_i64(), expected.remove(text), "{group_by} {row}");
            }
            assert!(expected.values().all(|clicks| *clicks == 0), "{group_by}: {expected:?} is missing");
        }
        (cells, body)
    }

    fn check(&self, cells: &Cells, what: &str) {
        let judge = self.judge.lock().unwrap();
        if let Err(wrong) = judge.check(cells) {
            panic!(
                "{what}: {wrong}; {} clicks reported, {} impressions must be billed",
                cells.values().sum::<i64>(),
                judge.must()
            );
        }
    }
}

async fn run(seed: u64) {
    println!("seed {seed} (TALLY_SEED={seed} runs it again)");
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = Arc::new(ManualClock::new(Millis::new(T0)));
    let catalog = redirect::Catalog::parse("catalog/sample.csv", SAMPLE_CATALOG).unwrap();
    let mut ads: Vec<[String; 3]> = catalog
        .ads()
        .map(|ad| [ad.ad_id.to_string(), ad.campaign_id.to_string(), ad.publisher_id.to_string()])
        .collect();
    ads.sort();
    let active = catalog.ads().map(|ad| (ad.ad_id.to_string(), ad.state == redirect::AdState::Active)).collect();
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let requests = generate(seed, REQUESTS, OVER_MS, ads.len(), LATENESS_MS);
    let world = World { clock: clock.clone(), client, judge: Arc::default(), ads, active };
    let mut system = System::start(dir.path(), clock.clone()).await;
    let deaths: Vec<i64> = (0..3).map(|_| rng.random_range(1..OVER_MS / STEP_MS)).collect();
    let looks: Vec<i64> = (0..5).map(|_| rng.random_range(1..OVER_MS / STEP_MS)).collect();
    let mut requests = requests.into_iter().peekable();
    // Requests whose log is slow go on over many steps.
    let mut slow: FuturesUnordered<JoinHandle<()>> = FuturesUnordered::new();
    for step in 0..OVER_MS / STEP_MS {
        let now = T0 + step * STEP_MS;
        clock.set(Millis::new(now));
        system.slow.time.send_replace(now);
        system.beats.heartbeat_once().await;
        let mut quick = FuturesUnordered::new();
        while let Some(request) = requests.next_if(|request| request.at_ms < (step + 1) * STEP_MS) {
            let is_slow = matches!(request.through, Through::Slow(_));
            let sending = world.send(&system, request);
            if is_slow {
                slow.push(tokio::spawn(sending));
            } else {
                quick.push(sending);
            }
            if quick.len() >= 32 {
                quick.next().await;
            }
        }
        while quick.next().await.is_some() {}
        if deaths.contains(&step) {
            if rng.random_bool(0.5) {
                system.machine.runner.catch_up().await.unwrap();
            }
            if rng.random_bool(0.5) {
                system.machine.runner.checkpoint().await.unwrap();
            }
            println!("seed {seed}: killed at {}", clock.now());
            // What the slow redirect still holds dies with it: nobody was told that it was recorded.
            system.die().await;
            while slow.next().await.is_some() {}
            system = System::start(dir.path(), clock.clone()).await;
        } else if rng.random_bool(0.1) {
            system.settle().await;
        }
        if looks.contains(&step) {
            // Held clicks are not in the log yet; nothing is known of them either.
            system.settle().await;
            let (cells, _) = world.cells(&system).await;
            world.check(&cells, &format!("seed {seed}, provisional at {}", clock.now()));
            println!("seed {seed}: exact at {}, {} clicks so far", clock.now(), cells.values().sum::<i64>());
        }
    }
    println!("seed {seed}: all requests are sent");
    // Everything that is held arrives, and the last minute becomes final.
    let mut now = T0 + OVER_MS;
    let end = now + 3 * LATENESS_MS + 2 * (LATENESS_MS + SLACK_MS) + 120_000;
    while now < end {
        clock.set(Millis::new(now));
        system.slow.time.send_replace(now);
        system.beats.heartbeat_once().await;
        now += 5_000;
        tokio::task::yield_now().await;
    }
    while slow.next().await.is_some() {}
    println!("seed {seed}: all answers are there");
    for _ in 0..2 {
        clock.set(Millis::new(now));
        system.beats.heartbeat_once().await;
        now += LATENESS_MS + SLACK_MS + 60_000;
    }
    system.settle().await;
    let (cells, body) = world.cells(&system).await;
    world.check(&cells, &format!("seed {seed}, final"));
    assert_eq!(body["totals"]["provisionalClicks"], 0, "{}", body["completeThrough"]);
    assert!(body["rows"].as_array().unwrap().iter().all(|row| row["provisional"] == false));
    // A start from what is on disk says the same.
    system.die().await;
    let mut system = System::start(dir.path(), clock.clone()).await;
    system.settle().await;
    let (again, _) = world.cells(&system).await;
    assert_eq!(cells, again, "seed {seed}, after a restart");
    let (must, ineligible) = world.counts();
    let billed: i64 = cells.values().sum();
    println!(
        "seed {seed}: {billed} clicks billed of {must} impressions that must be, {ineligible} clicks not eligible"
    );
    assert!(must > REQUESTS / 2 && ineligible > 500, "the run was too thin to prove anything");
    system.die().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_equal_the_oracle() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("TALLY_SEED").unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
    for seed in first..first + number("TALLY_SEEDS").unwrap_or(1) {
        run(seed).await;
    }
}
