//! The whole system in process, from HTTP to reports, in virtual time, against an oracle that judges from the answers.
//!
//! `TALLY_SEEDS=20 cargo test --release -p tally --test oracle` runs 20 new seeds, `TALLY_SEED=7 …` the one that
//! failed. Each seed is printed.
#![allow(clippy::unwrap_used)]

use click::{Clock, ManualClock, Millis};
use futures::stream::{FuturesUnordered, StreamExt};
use prove::browsers::{AHEAD_MS, Browsers, Moment};
use prove::generator::{Through, generate};
use prove::judge::Cells;
use prove::reports::Reports;
use prove::slow_log::{self, SlowLog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tally::config::Config;
use tally::machine::{Machine, SAMPLE_CATALOG};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// 2026-04-20, a quarter past a minute before noon.
const T0: i64 = 1_776_686_355_000;
const REQUESTS: usize = 20_000;
const OVER_MS: i64 = 6 * 60_000;
const LATENESS_MS: i64 = 60_000;
const SLACK_MS: i64 = 10_000;
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
            machine.redirect(machine.log.clone(), clock.clone(), settings.clone(), None),
            machine.redirect(machine.log.clone(), ahead, settings.clone(), None),
            machine.redirect(slow.clone(), clock.clone(), settings, None),
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

/// The reports of a system over the whole run, against the oracle.
async fn look(browsers: &Browsers, system: &System, now: Millis, what: &str) -> (Cells, serde_json::Value) {
    let from = Millis::new(T0).minute().start().plus(-600_000);
    let to = now.minute().end().plus(600_000);
    let reports = Reports { client: browsers.client(), address: system.reports, from, to };
    let (cells, body) = reports.cells().await.unwrap();
    let judge = browsers.judge();
    if let Err(wrong) = judge.check(&cells) {
        let (reported, must) = (cells.values().sum::<i64>(), judge.must());
        panic!("{what}: {wrong}; {reported} clicks reported, {must} impressions must be billed");
    }
    (cells, body)
}

async fn run(seed: u64) {
    println!("seed {seed} (TALLY_SEED={seed} runs it again)");
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = Arc::new(ManualClock::new(Millis::new(T0)));
    let catalog = redirect::Catalog::parse("catalog/sample.csv", SAMPLE_CATALOG).unwrap();
    let browsers = Browsers::new(&catalog, false).unwrap();
    let requests = generate(seed, REQUESTS, OVER_MS, browsers.ads(), LATENESS_MS, false);
    let mut system = System::start(dir.path(), clock.clone()).await;
    let deaths: Vec<i64> = (0..3).map(|_| rng.random_range(1..OVER_MS / STEP_MS)).collect();
    let looks: Vec<i64> = (0..5).map(|_| rng.random_range(1..OVER_MS / STEP_MS)).collect();
    let mut requests = requests.into_iter().peekable();
    // Requests whose log is slow go on over many steps.
    let mut slow: FuturesUnordered<JoinHandle<Result<(), String>>> = FuturesUnordered::new();
    for step in 0..OVER_MS / STEP_MS {
        let now = T0 + step * STEP_MS;
        clock.set(Millis::new(now));
        system.slow.time.send_replace(now);
        system.beats.heartbeat_once().await;
        let mut quick = FuturesUnordered::new();
        while let Some(request) = requests.next_if(|request| request.at_ms < (step + 1) * STEP_MS) {
            let is_slow = matches!(request.through, Through::Slow(_));
            let moment = Moment {
                now: clock.now(),
                latest: clock.now(),
                passes_ms: 0,
                unwatched_ms: 90 * STEP_MS,
                back_ms: 0,
                skew_ms: AHEAD_MS,
                // A redirect without a spool refuses what the log does not take in time, on a busy machine too.
                takes_all: false,
            };
            let sending = browsers.send(&system.addresses, moment, request);
            if is_slow {
                slow.push(tokio::spawn(sending));
            } else {
                quick.push(sending);
            }
            if quick.len() >= 32 {
                quick.next().await.unwrap().unwrap();
            }
        }
        while let Some(sent) = quick.next().await {
            sent.unwrap();
        }
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
            while let Some(sent) = slow.next().await {
                sent.unwrap().unwrap();
            }
            system = System::start(dir.path(), clock.clone()).await;
        } else if rng.random_bool(0.1) {
            system.settle().await;
        }
        if looks.contains(&step) {
            // Held clicks are not in the log yet; nothing is known of them either.
            system.settle().await;
            let (cells, _) = look(&browsers, &system, clock.now(), &format!("seed {seed}, provisional")).await;
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
    while let Some(sent) = slow.next().await {
        sent.unwrap().unwrap();
    }
    browsers.judge().arrived();
    println!("seed {seed}: all answers are there");
    for _ in 0..2 {
        clock.set(Millis::new(now));
        system.beats.heartbeat_once().await;
        now += LATENESS_MS + SLACK_MS + 60_000;
    }
    system.settle().await;
    let (cells, body) = look(&browsers, &system, clock.now(), &format!("seed {seed}, final")).await;
    assert_eq!(body["totals"]["provisionalClicks"], 0, "{}", body["completeThrough"]);
    assert!(body["rows"].as_array().unwrap().iter().all(|row| row["provisional"] == false));
    // A start from what is on disk says the same.
    system.die().await;
    let mut system = System::start(dir.path(), clock.clone()).await;
    system.settle().await;
    let (again, _) = look(&browsers, &system, clock.now(), &format!("seed {seed}, after a restart")).await;
    assert_eq!(cells, again, "seed {seed}, after a restart");
    let (must, ineligible) = browsers.counts();
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
