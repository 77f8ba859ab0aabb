//! One seeded run: a world of browsers, a site that dies many deaths, and the oracle.

mod end;
mod life;

use crate::browsers::{AHEAD_MS, Browsers};
use crate::census::Census;
use crate::disk::Disk;
use crate::fate::{Fate, Fault};
use crate::finality::Finality;
use crate::generator::{Request, generate};
use crate::site::{Outcome, Setting, Site, Start, StillBorn, Word};
use anyhow::{Context, Result, bail, ensure};
use click::{Clock, Millis, SystemClock};
use futures::stream::FuturesUnordered;
use life::Going;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::vec::IntoIter;
use tokio::task::JoinHandle;

/// 2026-04-20, a quarter past a minute before noon.
pub const T0: i64 = 1_776_686_355_000;
pub const LATENESS_MS: i64 = 60_000;
pub const SLACK_MS: i64 = 10_000;
const STEP_MS: i64 = 1_000;
const OVER_MS: i64 = 4 * 60_000;
const REQUESTS: usize = 2_400;
/// Fewer impressions that must be billed show nothing. Half of all must be where nothing dies, a third in a run of many early
/// deaths.
const FEW: usize = REQUESTS / 8;
const RESULT_TOPICS: [&str; 2] = ["raw_clicks", "clicks_by_minute"];
/// So many lives in which no fsync of its kind is done end an attempt: it was one of a first start.
const IDLE_MAX: usize = 4;

/// Which fates a run draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Every fault.
    All,
    /// A power cut after every life.
    PowerCuts,
    /// These, one after the other, and no more.
    Lives(Vec<Fate>),
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Done {
    pub lives: usize,
    pub billed: i64,
    pub must: usize,
    pub ineligible: u64,
    pub changes_gone: usize,
    /// What each life went through, and where it died.
    pub fates: Vec<String>,
    /// Whether URLs were signed.
    pub signed: bool,
    pub census: Census,
    /// How often result topics expired.
    pub expired: usize,
    /// Kinds of fsync that were done, and how often.
    pub syncs: BTreeMap<String, u64>,
    /// Fsyncs that were left out.
    pub skipped: u64,
    /// Lives at the end in which none was.
    idle: usize,
}

/// Runs a seed.
///
/// # Errors
/// What is wrong: a number, a refused start, a part that failed without a fault.
pub async fn run(seed: u64, kind: &Kind, setting: &Setting, catalog: &redirect::Catalog, disk: &Disk) -> Result<Done> {
    let mut rng = StdRng::seed_from_u64(seed);
    let signed = rng.random_bool(0.4);
    let steps = OVER_MS / STEP_MS;
    // Each of its own stream, and all before anything happens: how long something takes changes none, nor how many lives came
    // before. No life is shorter than a step.
    let fates: Vec<Fate> = match kind {
        Kind::Lives(fates) => fates.clone(),
        _ => (1..=steps).map(|life| fate_of(kind, seed, life)).collect(),
    };
    let change_at = rng.random_bool(0.6).then(|| rng.random_range(1..steps));
    let goes_back = |fate: &Fate| fate.clock_ms < 0 || fate.leap.is_some_and(|(_, ms)| ms < 0);
    let browsers = Browsers::new(catalog, signed)?;
    let requests = generate(seed, REQUESTS, OVER_MS, browsers.ads(), LATENESS_MS, signed);
    let mut run = Run {
        seed,
        setting,
        disk,
        browsers,
        requests: requests.into_iter().peekable(),
        waiting: FuturesUnordered::new(),
        now: Millis::new(T0),
        latest: Millis::new(T0),
        goes_back: fates.iter().any(goes_back),
        life: Fate::QUIET,
        finality: Finality::default(),
        change_at,
        again: false,
        expires: *kind == Kind::All,
        // With few steps, more happens in each of them.
        idle: if matches!(kind, Kind::Lives(_)) { 16 } else { 42 },
        done: Done { signed, ..Done::default() },
    };
    match run.all(kind, fates).await {
        Ok(()) => Ok(run.done),
        Err(error) => {
            run.done.fates.push(format!("wrong at {}", run.now));
            Err(error.context(run.done.fates.join("; ")))
        }
    }
}

/// What something random is drawn for: each has numbers of its own, by seed, life and step, so that one that is drawn or not
/// changes no other.
#[derive(Debug, Clone, Copy)]
enum Draw {
    Fate,
    Words,
    StandsStill,
    Cut,
    Damage,
    StartsWithoutResults,
}

/// The fate of a life that is not planned, by its number, from 1 on.
fn fate_of(kind: &Kind, seed: u64, life: i64) -> Fate {
    let (mut rng, steps) = (stream(seed, Draw::Fate, life, 0), OVER_MS / STEP_MS);
    match kind {
        Kind::PowerCuts => Fate::draw_power_cut(&mut rng, steps / 6),
        _ => Fate::draw(&mut rng, steps / 4),
    }
}

fn stream(seed: u64, what: Draw, life: i64, step: i64) -> StdRng {
    let place = (life as u64) << 40 | (step as u64) << 8 | what as u64;
    // The upper bits of a seed are free: seeds are counted from small numbers on.
    StdRng::seed_from_u64(seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

struct Run<'a> {
    seed: u64,
    setting: &'a Setting,
    disk: &'a Disk,
    browsers: Browsers,
    requests: Peekable<IntoIter<Request>>,
    /// Requests whose log is slow go on over many steps.
    waiting: FuturesUnordered<JoinHandle<Result<(), String>>>,
    now: Millis,
    /// The latest that any clock has been: the log's time does not go back with it.
    latest: Millis,
    /// Whether a clock goes back in this run.
    goes_back: bool,
    /// What the life that goes on is about.
    life: Fate,
    /// What was final at the last look.
    finality: Finality,
    /// The step after which the next life has changed rules.
    change_at: Option<i64>,
    /// Whether result topics expired, so that the next life that comes up has to deploy again.
    again: bool,
    /// Whether result topics expire.
    expires: bool,
    /// Of so many steps 14 have a word beside the clicks.
    idle: u32,
    done: Done,
}

impl Run<'_> {
    async fn all(&mut self, kind: &Kind, fates: Vec<Fate>) -> Result<()> {
        let steps = OVER_MS / STEP_MS;
        let mut fates = fates.into_iter();
        let mut step = 0;
        while step < steps {
            let Some(fate) = fates.next() else { break };
            let mut told = format!("life {}: {fate}", self.done.lives + 1);
            self.count(&fate);
            let changes = !self.browsers.changed && self.change_at.is_some_and(|at| step >= at);
            if let Some(mut site) = self.start(fate, changes).await? {
                let stands_at = self.rng(Draw::StandsStill, 0).random_range(0..fate.steps);
                for lived in 0..fate.steps {
                    if step >= steps {
                        break;
                    }
                    step += 1;
                    let stands = match fate.fault {
                        Fault::Stands { ms, passes_ms } if lived == stands_at => Some((ms, passes_ms)),
                        _ => None,
                    };
                    let leap_ms = fate.leap.filter(|(at, _)| *at == lived).map(|(_, ms)| ms);
                    let going = self.step(&mut site, step, leap_ms, stands).await;
                    if going.with_context(|| format!("in a life with {fate}"))? == Going::Over {
                        break;
                    }
                }
                self.bury(site, fate, &mut told).await?;
            } else {
                self.end(fate, &mut told)?;
            }
            self.done.fates.push(told);
            let deaf = self.setting.mutation.as_ref().is_some_and(|mutation| !mutation.deaf.is_empty());
            if deaf && matches!(kind, Kind::Lives(_)) && self.done.idle > IDLE_MAX {
                break;
            }
            // Without the rows that expired no number can be told, damaged or not.
            if *kind == Kind::All && !self.again && self.rng(Draw::Damage, 0).random_bool(0.5) {
                self.damage().await?;
            }
        }
        self.finish().await?;
        let (must, ineligible) = self.browsers.counts();
        (self.done.must, self.done.ineligible) = (must, ineligible);
        let few = if let Kind::Lives(_) = kind { 0 } else { FEW };
        ensure!(must >= few, "only {must} impressions must be billed: too few to prove anything");
        Ok(())
    }

    fn rng(&self, what: Draw, step: i64) -> StdRng {
        stream(self.seed, what, self.done.lives as i64, step)
    }

    fn count(&mut self, fate: &Fate) {
        let mut met = vec![fate.fault.kind()];
        met.extend(fate.power_cut.map(|_| "power cut"));
        met.extend((fate.clock_ms != 0).then_some("clock step between lives"));
        met.extend(fate.leap.map(|_| "clock step in a life"));
        met.extend((fate.skew_ms != AHEAD_MS).then_some("redirect apart by -2 s, -1 min or +1 h"));
        met.extend((fate.away_ms > 0).then_some("down"));
        met.into_iter().for_each(|what| *self.done.census.faults.entry(what).or_default() += 1);
    }

    /// A life that may be over before it is ready, if it is to meet a fault.
    async fn start(&mut self, fate: Fate, changes: bool) -> Result<Option<Site>> {
        self.done.lives += 1;
        if self.again && self.rng(Draw::StartsWithoutResults, 0).random_bool(0.3) {
            self.start_without_results().await?;
        }
        self.life = fate;
        let start = Start { again: self.again, ..self.plain_start(changes, fate.fault) };
        match Site::start(self.setting, self.disk, start).await? {
            Ok(site) => {
                self.again = false;
                if changes && !self.change(&site).await? {
                    site.kill().await;
                    return Ok(None);
                }
                Ok(Some(site))
            }
            Err(StillBorn(why)) => {
                ensure!(!fate.fault.is_none(), "it does not start, and nothing keeps it from it: {why}");
                end::ensure_calm(fate.fault, &why)?;
                Ok(None)
            }
        }
    }

    fn plain_start(&self, changes: bool, fault: Fault) -> Start<'_> {
        let Setting { pipelines, changed, .. } = self.setting;
        let pipelines = if changes || self.browsers.changed { changed } else { pipelines };
        let (signed, skew_ms) = (self.browsers.signed, self.life.skew_ms);
        Start { pipelines, now: self.now, fault, signed, again: false, skew_ms }
    }

    /// After result topics expired, a start as any other says which, or does not need what is gone.
    async fn start_without_results(&mut self) -> Result<()> {
        let mut site = match Site::start(self.setting, self.disk, self.plain_start(false, Fault::None)).await? {
            Ok(site) => site,
            Err(StillBorn(said)) => {
                self.done.fates.push("refused to start without results".into());
                return ensure_expired(&said);
            }
        };
        let settled = site.tell(Word::Settle).await?;
        let known = self.browsers.judge().clone();
        self.life = Fate::QUIET;
        let checked = match settled {
            Outcome::Done => self.look(&site, &known).await.map(|_| ()),
            Outcome::Failed(why) => ensure_expired(&why),
            Outcome::Dead => bail!("it died without results"),
        };
        site.kill().await;
        checked.context("in a start without results")
    }

    /// Takes the rules for changed from now on. Whether the site lived long enough to say what was final before.
    async fn change(&mut self, site: &Site) -> Result<bool> {
        let through = match self.reports(site).complete_through().await {
            Ok(through) => through,
            Err(error) if error.downcast_ref::<reqwest::Error>().is_some() => return Ok(false),
            Err(error) => return Err(error),
        };
        // The last closing ended where no record can come any more that was on time for its last minute.
        self.browsers.judge().change(through.plus(LATENESS_MS + SLACK_MS));
        self.browsers.changed = true;
        self.done.fates.push(format!("changed rules from {through} on"));
        *self.done.census.faults.entry("changed rules").or_default() += 1;
        Ok(true)
    }

    fn pass(&mut self, ms: i64) {
        self.now = self.now.plus(ms);
        self.latest = self.latest.max(self.now);
    }
}

/// Whether a message says that result topics expired.
fn ensure_expired(said: &str) -> Result<()> {
    ensure!(RESULT_TOPICS.iter().any(|topic| said.contains(topic)), "it does not say which topic expired: {said}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    Ok(())
}

/// A seed that was not used before.
pub fn new_seed() -> u64 {
    SystemClock.now().get() as u64 % 1_000_000_000
}

#[test]
fn the_fate_of_a_life_is_its_seeds_and_its_numbers() {
    let fates = |seed| Vec::from_iter((1..=60).map(|life| fate_of(&Kind::All, seed, life)));
    assert_eq!(fates(7), fates(7));
    assert_ne!(fates(7), fates(8));
    assert_eq!(fate_of(&Kind::All, 7, 40), fates(7)[39], "whatever was drawn before");
    let faults = std::collections::BTreeSet::from_iter(fates(7).iter().map(|fate| fate.fault.kind()));
    assert!(faults.len() > 5, "a stream of its own for each: {faults:?}");
}
