//! One seeded run: a world of browsers, a site that dies many deaths, and the oracle.

use crate::browsers::Browsers;
use crate::damage::Damage;
use crate::disk::Disk;
use crate::fate::{Fate, Fault};
use crate::generator::{Request, Through, generate};
use crate::judge::Judge;
use crate::reports::Reports;
use crate::site::{Outcome, Setting, Site, Start, StillBorn, Word};
use anyhow::{Context, Result, bail, ensure};
use click::{Clock, Millis, SystemClock};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
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
/// Requests of a step that are under way at once.
const AT_ONCE: usize = 32;

const RESULT_TOPICS: [&str; 2] = ["raw_clicks", "clicks_by_minute"];
/// So many lives in which no fsync of its kind is done end an attempt: it was one of a first start.
const IDLE_MAX: usize = 4;
/// How often the spool may need virtual time to go on before it is empty.
const DRAINS_MAX: usize = 20;

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
    /// Clicks that waited in the spool for too long, and were sent by hand.
    pub aside: usize,
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
    let browsers = Browsers::new(catalog, signed)?;
    let requests = generate(seed, REQUESTS, OVER_MS, browsers.ads(), LATENESS_MS, signed);
    let mut run = Run {
        rng,
        setting,
        disk,
        browsers,
        requests: requests.into_iter().peekable(),
        waiting: FuturesUnordered::new(),
        now: Millis::new(T0),
        latest: Millis::new(T0),
        back: false,
        change_at: None,
        again: false,
        expires: *kind == Kind::All,
        // With few steps, more happens in each of them.
        idle: if matches!(kind, Kind::Lives(_)) { 14 } else { 40 },
        done: Done { signed, ..Done::default() },
    };
    match run.all(kind).await {
        Ok(()) => Ok(run.done),
        Err(error) => {
            run.done.fates.push(format!("wrong at {}", run.now));
            Err(error.context(run.done.fates.join("; ")))
        }
    }
}

struct Run<'a> {
    rng: StdRng,
    setting: &'a Setting,
    disk: &'a Disk,
    browsers: Browsers,
    requests: Peekable<IntoIter<Request>>,
    /// Requests whose log is slow go on over many steps.
    waiting: FuturesUnordered<JoinHandle<Result<(), String>>>,
    now: Millis,
    /// The latest that any clock has been: the log's time does not go back with it.
    latest: Millis,
    /// Whether the clock has gone back: then nobody's may be ahead, for which of two times is the earlier is not known.
    back: bool,
    /// The step after which the next life has changed rules.
    change_at: Option<i64>,
    /// Whether result topics expired, so that the next life that comes up has to deploy again.
    again: bool,
    /// Whether result topics expire.
    expires: bool,
    /// Of so many steps 12 have a word beside the clicks.
    idle: u32,
    done: Done,
}

/// How a life is going.
#[derive(Debug, PartialEq, Eq)]
enum Going {
    On,
    Over,
}

impl Run<'_> {
    async fn all(&mut self, kind: &Kind) -> Result<()> {
        let steps = OVER_MS / STEP_MS;
        if self.rng.random_bool(0.6) {
            self.change_at = Some(self.rng.random_range(1..steps));
        }
        let mut planned = if let Kind::Lives(lives) = kind { lives.iter() } else { [].iter() };
        let mut step = 0;
        while step < steps {
            let fate = match kind {
                Kind::Lives(_) => match planned.next() {
                    Some(fate) => *fate,
                    None => break,
                },
                Kind::All => Fate::draw(&mut self.rng, steps / 4),
                Kind::PowerCuts => Fate::draw_power_cut(&mut self.rng, steps / 6),
            };
            let mut told = fate.to_string();
            let changes = !self.browsers.changed && self.change_at.is_some_and(|at| step >= at);
            if let Some(mut site) = self.start(fate.fault, changes).await? {
                let stands = self.rng.random_range(0..fate.steps);
                for lived in 0..fate.steps {
                    if step >= steps {
                        break;
                    }
                    if let (Fault::Stands(ms), true) = (fate.fault, lived == stands) {
                        site.stand_still(ms).await?;
                    }
                    step += 1;
                    if self.step(&mut site, step).await.with_context(|| format!("in a life with {fate}"))?
                        == Going::Over
                    {
                        break;
                    }
                }
                self.bury(site, fate, &mut told).await?;
            } else {
                self.end(fate, &mut told)?;
            }
            self.done.fates.push(told);
            let deaf = self.setting.mutation.as_ref().is_some_and(|mutation| mutation.deaf);
            if deaf && matches!(kind, Kind::Lives(_)) && self.done.idle > IDLE_MAX {
                break;
            }
            // Without the rows that expired no number can be told, damaged or not.
            if *kind == Kind::All && !self.again && self.rng.random_bool(0.3) {
                self.damage().await?;
            }
        }
        self.finish().await?;
        let (must, ineligible) = self.browsers.counts();
        (self.done.must, self.done.ineligible) = (must, ineligible);
        let few = if let Kind::Lives(_) = kind { 0 } else { REQUESTS / 3 };
        ensure!(must >= few, "only {must} impressions must be billed: too few to prove anything");
        Ok(())
    }

    /// A life that may be over before it is ready, if it is to meet a fault.
    async fn start(&mut self, fault: Fault, changes: bool) -> Result<Option<Site>> {
        self.done.lives += 1;
        if self.again && self.rng.random_bool(0.3) {
            self.start_without_results().await?;
        }
        let start = Start { again: self.again, ..self.plain_start(changes, fault) };
        match Site::start(self.setting, self.disk, start).await? {
            Ok(site) => {
                self.again = false;
                if changes && !self.change(&site).await? {
                    site.kill().await;
                    return Ok(None);
                }
                Ok(Some(site))
            }
            Err(_) if !matches!(fault, Fault::None | Fault::Stands(_)) => Ok(None),
            Err(StillBorn(why)) => bail!("it does not start, and nothing keeps it from it: {why}"),
        }
    }

    fn plain_start(&self, changes: bool, fault: Fault) -> Start<'_> {
        let Setting { pipelines, changed, .. } = self.setting;
        let pipelines = if changes || self.browsers.changed { changed } else { pipelines };
        Start { pipelines, now: self.now, fault, signed: self.browsers.signed, again: false }
    }

    /// After result topics expired, a start as any other says which, or does not need what is gone.
    async fn start_without_results(&mut self) -> Result<()> {
        self.done.lives += 1;
        let named = |said: &str| {
            ensure!(
                RESULT_TOPICS.iter().any(|topic| said.contains(topic)),
                "it does not say which topic expired: {said}"
            );
            ensure!(!said.contains("panicked"), "it panicked: {said}");
            Ok(())
        };
        let mut site = match Site::start(self.setting, self.disk, self.plain_start(false, Fault::None)).await? {
            Ok(site) => site,
            Err(StillBorn(said)) => {
                self.done.fates.push("refused to start without results".into());
                return named(&said);
            }
        };
        let settled = site.tell(Word::Settle).await?;
        let known = self.browsers.judge().clone();
        let checked = match settled {
            Outcome::Done => self.look(&site, &known).await.map(|_| ()),
            Outcome::Failed(why) => named(&why),
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
        self.browsers.judge().change(through.minute(), self.back);
        self.browsers.changed = true;
        self.done.fates.push(format!("changed rules from {through} on"));
        Ok(true)
    }

    /// A second of the world. Something may fail without a word only where a fault is about.
    async fn step(&mut self, site: &mut Site, step: i64) -> Result<Going> {
        self.pass(STEP_MS);
        for word in [Word::Clock(self.now), Word::Beat] {
            if self.tell(site, word).await? == Going::Over {
                return Ok(Going::Over);
            }
        }
        let mut quick = FuturesUnordered::new();
        while let Some(mut request) = self.requests.next_if(|request| request.at_ms < step * STEP_MS) {
            if self.back && request.through == Through::Ahead {
                request.through = Through::Plain;
            }
            let is_slow = matches!(request.through, Through::Slow(_));
            let sending = tokio::spawn(self.browsers.send(&site.redirects, self.now, STEP_MS, request));
            if is_slow {
                self.waiting.push(sending);
            } else {
                quick.push(sending);
            }
            if quick.len() >= AT_ONCE
                && let Some(sent) = quick.next().await
            {
                answered(sent)?;
            }
        }
        // What else goes on does so at the same time.
        let word = match self.rng.random_range(0..self.idle) {
            0..6 => Some(Word::Settle),
            6..9 => Some(Word::Checkpoint),
            9..11 => Some(Word::Retain),
            11 => Some(Word::Send),
            _ => None,
        };
        let going = match word {
            Some(Word::Send) => self.send_aside(site).await?,
            Some(word) => self.tell(site, word).await?,
            None => Going::On,
        };
        while let Some(sent) = quick.next().await {
            answered(sent)?;
        }
        if going == Going::On && self.expires && self.rng.random_bool(0.006) {
            self.again = true;
            self.done.expired += 1;
            self.done.fates.push(format!("result topics expired at {}", self.now));
            return self.tell(site, Word::Expire).await;
        }
        if going == Going::On && self.rng.random_bool(0.02) {
            // What is answered while the reports are read may be on them or not.
            let known = self.browsers.judge().clone();
            if self.tell(site, Word::Settle).await? == Going::On {
                return self.look(site, &known).await;
            }
            return Ok(Going::Over);
        }
        Ok(going)
    }

    /// Sends by hand what the spool keeps aside.
    async fn send_aside(&mut self, site: &mut Site) -> Result<Going> {
        let kept = self.aside()?;
        let going = self.tell(site, Word::Send).await?;
        if going == Going::On {
            self.done.aside += kept;
        }
        Ok(going)
    }

    /// How many clicks are kept aside.
    fn aside(&self) -> Result<usize> {
        let spool = self.disk.root.join("spool");
        if !spool.join("aside").is_dir() {
            return Ok(0);
        }
        let kept = redirect::spool::aside::list(&spool).context("what is kept aside")?;
        Ok(kept.iter().map(|(_, clicks)| clicks.len()).sum())
    }

    async fn tell(&mut self, site: &mut Site, word: Word) -> Result<Going> {
        Ok(match site.tell(word).await? {
            Outcome::Done => Going::On,
            // A part that failed is opened again, which here is the next life.
            Outcome::Dead | Outcome::Failed(_) => Going::Over,
        })
    }

    fn pass(&mut self, ms: i64) {
        self.now = self.now.plus(ms);
        self.latest = self.latest.max(self.now);
    }

    /// The reports, against the oracle.
    async fn look(&self, site: &Site, known: &Judge) -> Result<Going> {
        match self.reports(site).cells().await {
            Ok((cells, _)) => known.check(&cells).map_err(anyhow::Error::msg).context("provisional")?,
            // It died meanwhile, or the reports are wrong.
            Err(error) if error.downcast_ref::<reqwest::Error>().is_some() => return Ok(Going::Over),
            Err(error) => return Err(error),
        }
        Ok(Going::On)
    }

    fn reports(&self, site: &Site) -> Reports<'_> {
        let from = Millis::new(T0).plus(-2 * 3_600_000).minute().start();
        let to = self.latest.plus(600_000).minute().end();
        Reports { client: self.browsers.client(), address: site.reports, from, to }
    }

    /// The end of a life, and what comes after it.
    async fn bury(&mut self, site: Site, fate: Fate, told: &mut String) -> Result<()> {
        let said = site.kill().await;
        if matches!(fate.fault, Fault::None | Fault::Stands(_)) && said.contains("panicked") {
            bail!("it panicked: {said}");
        }
        while let Some(sent) = self.waiting.next().await {
            answered(sent)?;
        }
        self.end(fate, told)
    }

    /// What lies on disk now, with one bit flipped, is refused by name, or says what is right.
    async fn damage(&mut self) -> Result<()> {
        let dir = self.disk.root.with_file_name("damaged");
        let damage = Damage::of(self.disk, &dir, &mut self.rng)?;
        if let Some(damage) = &damage {
            let what = self.try_damaged(damage).await.with_context(|| damage.to_string())?;
            self.done.fates.push(format!("{damage}: {what}"));
        }
        std::fs::remove_dir_all(&dir).context("the damaged copy")
    }

    async fn try_damaged(&self, damage: &Damage) -> Result<&'static str> {
        let named = |said: &str| ensure_named(damage, said);
        let mut site = match Site::start(self.setting, &damage.disk, self.plain_start(false, Fault::None)).await? {
            Ok(site) => site,
            Err(StillBorn(said)) => return named(&said).map(|()| "refused"),
        };
        let outcome = site.tell(Word::Settle).await?;
        let read = match outcome {
            Outcome::Done => Some(self.reports(&site).cells().await),
            _ => None,
        };
        let said = site.kill().await;
        match (outcome, read) {
            (Outcome::Failed(why), _) => named(&why).map(|()| "stopped"),
            (Outcome::Done, Some(Ok((cells, _)))) => {
                self.browsers.judge().check(&cells).map_err(anyhow::Error::msg).map(|()| "not needed")
            }
            (Outcome::Done, Some(Err(error))) => {
                // A report that cannot be made says so; which file it is stands in the log.
                named(&format!("{error:#} {said}")).map(|()| "no report")
            }
            _ => named(&said).map(|()| "died"),
        }
    }

    fn end(&mut self, fate: Fate, told: &mut String) -> Result<()> {
        let seen = self.disk.seen()?;
        for (kind, times) in seen.syncs {
            *self.done.syncs.entry(kind).or_default() += times;
        }
        self.done.skipped += seen.skipped;
        self.done.idle = if seen.skipped > 0 { 0 } else { self.done.idle + 1 };
        if let Some(died) = seen.died {
            told.push_str(&format!(" [{died}]"));
        }
        if let Some(cut) = fate.power_cut {
            let gone = self.disk.cut_power(cut, &mut self.rng)?;
            self.done.changes_gone += gone;
            told.push_str(&format!(" [{gone} changes gone]"));
        }
        self.back |= fate.clock_ms < 0;
        self.pass(fate.away_ms + fate.clock_ms);
        Ok(())
    }

    /// Everything that is held or spooled arrives.
    async fn drain(&mut self, site: &mut Site) -> Result<()> {
        for _ in 0..DRAINS_MAX {
            // What was handed over is held for so long at most.
            self.pass(2 * LATENESS_MS);
            for word in [Word::Clock(self.now), Word::Beat] {
                ensure!(site.tell(word).await? == Outcome::Done, "`{word}` failed, and nothing keeps it from it");
            }
            if site.tell(Word::Drain).await? == Outcome::Done {
                self.send_aside(site).await?;
                ensure!(self.aside()? == 0, "clicks are kept aside after all of them were sent");
                self.browsers.judge().arrived();
                return Ok(());
            }
        }
        bail!("the spool does not come to its end")
    }

    /// Everything arrives, the last minute becomes final, and a start from what is on disk says the same.
    async fn finish(&mut self) -> Result<()> {
        // Nothing that was held is held any more: every life of it is over.
        let mut site = self.start(Fault::None, false).await?.context("the last life")?;
        self.now = self.latest;
        self.drain(&mut site).await?;
        for pause in [0, LATENESS_MS + SLACK_MS + 60_000, LATENESS_MS + SLACK_MS + 60_000, 60_000] {
            self.pass(pause);
            for word in [Word::Clock(self.now), Word::Beat, Word::Settle] {
                if let Outcome::Failed(why) = site.tell(word).await? {
                    bail!("`{word}` failed, and nothing keeps it from it: {why}");
                }
            }
        }
        let (cells, body) = self.reports(&site).cells().await.context("final")?;
        self.browsers.judge().check(&cells).map_err(anyhow::Error::msg).context("final")?;
        ensure!(
            body["totals"]["provisionalClicks"] == 0,
            "at {} minutes are final up to {} only: {}",
            self.now,
            body["completeThrough"],
            body["totals"]
        );
        site.kill().await;
        let mut site = self.start(Fault::None, false).await?.context("a start after the last life")?;
        ensure!(site.tell(Word::Settle).await? == Outcome::Done, "it does not settle after a start");
        let (again, _) = self.reports(&site).cells().await.context("after a start")?;
        ensure!(cells == again, "a start changed final numbers");
        self.done.billed = cells.values().sum();
        site.kill().await;
        Ok(())
    }
}

fn ensure_named(damage: &Damage, said: &str) -> Result<()> {
    ensure!(damage.is_named_by(said), "it is not named: {said}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    Ok(())
}

fn answered(sent: Result<Result<(), String>, tokio::task::JoinError>) -> Result<()> {
    sent?.map_err(anyhow::Error::msg)
}

/// A seed that was not used before.
pub fn new_seed() -> u64 {
    SystemClock.now().get() as u64 % 1_000_000_000
}
