//! `tally prove`: seeded runs of the whole one-machine column with every fault, judged from the answers.

mod mutations;

use crate::config::Config;
use crate::machine::{self, Machine, SAMPLE_CATALOG};
use crate::status::say;
use anyhow::{Context, Result};
use clap::Args;
use click::{Clock, ManualClock, Millis};
use futures::future::BoxFuture;
use prove::browsers::AHEAD_MS;
use prove::census::Census;
use prove::disk::Disk;
use prove::generator::CHANGED_AGENT;
use prove::run::{self, Done, Kind, LATENESS_MS, SLACK_MS};
use prove::sign::KEYS;
use prove::site::{self, Mutation, Setting, Word};
use prove::slow_log::SlowLog;
use redirect::spool::Spool;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tally_log::local::LocalLog;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Segments of a proof are small, so that they are sealed and removed in it.
const SEGMENT_BYTES_MAX: u64 = 64 << 10;
/// Fewer clicks come to the spool than to the log.
const SPOOL_SEGMENT_BYTES_MAX: u64 = 8 << 10;
/// How long the slow redirect waits for its log, in real time.
const APPEND_WAIT: Duration = Duration::from_millis(50);
/// Less than the longest that everything is down in a proof: then what waits in the spool is kept aside.
const SPOOL_AGE_MAX: Duration = Duration::from_secs(3_600);
/// How long it waits for its spool before it wants virtual time to go on.
const DRAIN_WAIT: Duration = Duration::from_millis(500);
/// How long the log is kept in a proof.
const RETENTION: Duration = Duration::from_secs(3_700);

/// Where pipelines are if nobody says.
const PIPELINES: &str = "pipelines";

#[derive(Args)]
pub struct Prove {
    /// How many runs, each with the seed after the last one's
    #[arg(long, default_value_t = 10)]
    runs: u64,
    /// Seed of the first run [default: one that was not used before]
    #[arg(long)]
    seed: Option<u64>,
    /// Cut the power after every life, and do nothing else
    #[arg(long)]
    power_cuts: bool,
    /// Leave out the fsyncs of one kind, as `--mutate` names them: runs are to fail. With `--mutate`, only kinds that begin so
    #[arg(long, value_name = "KIND")]
    deaf: Option<String>,
    /// Leave out every kind of fsync, one after the other, and show that a power cut finds it; at most `--runs` each
    #[arg(long)]
    mutate: bool,
    /// Name the commit points at which a process can die
    #[arg(long)]
    list: bool,
    /// Folder of the pipeline files
    #[arg(long, env = "TALLY_PIPELINES", default_value = PIPELINES)]
    pipelines: PathBuf,
}

#[derive(Args)]
pub struct SiteArgs {
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    pipelines: PathBuf,
    #[arg(long)]
    clock: i64,
    /// With the keys of a proof
    #[arg(long)]
    signed: bool,
    /// Deploy the pipelines also if nothing has changed
    #[arg(long)]
    again: bool,
    /// Milliseconds by which the second redirect's clock differs
    #[arg(long, default_value_t = AHEAD_MS, allow_negative_numbers = true)]
    skew: i64,
}

impl Prove {
    pub async fn run(self) -> Result<()> {
        if self.list {
            for point in faults::Point::ALL {
                say(&format!("{:<22} {}", point.name(), point.what()));
            }
            return Ok(());
        }
        let changed = tempfile::Builder::new().prefix("tally-pipelines-").tempdir()?;
        change(&self.pipelines, changed.path())?;
        let setting = Setting {
            program: std::env::current_exe().context("this program's path")?,
            words: vec!["prove-site".into()],
            power: site::power()?,
            pipelines: self.pipelines.clone(),
            changed: changed.path().to_path_buf(),
            mutation: self
                .deaf
                .clone()
                .filter(|_| !self.mutate)
                .map(|kind| Mutation { deaf: vec![kind.clone()], kind }),
        };
        let first = self.seed.unwrap_or_else(run::new_seed);
        match self.mutate {
            true => mutations::all(first, self.runs, self.deaf.as_deref().unwrap_or_default(), &setting).await,
            false => self.runs(first, &setting).await,
        }
    }

    async fn runs(&self, first: u64, setting: &Setting) -> Result<()> {
        let kind = if self.power_cuts { Kind::PowerCuts } else { Kind::All };
        let flag = if self.power_cuts { " --power-cuts" } else { "" };
        let deaf = self.deaf.as_ref().map_or(String::new(), |deaf| format!(" --deaf '{deaf}'"));
        let pipelines = match self.pipelines == Path::new(PIPELINES) {
            true => String::new(),
            false => format!(" --pipelines '{}'", self.pipelines.display()),
        };
        let begun = Instant::now();
        let (mut lives, mut billed, mut census) = (0, 0, Census::default());
        for seed in first..first + self.runs {
            let done = one(seed, &kind, setting).await.with_context(|| {
                format!("seed {seed} (`tally prove --runs 1 --seed {seed}{flag}{deaf}{pipelines}` replays it)")
            })?;
            for fate in &done.fates {
                say(&format!("seed {seed}:   {fate}"));
            }
            let Done {
                lives: lived,
                billed: counted,
                must,
                ineligible,
                changes_gone,
                expired,
                signed,
                census: one,
                ..
            } = done;
            let Census { aside, corrections, replays, .. } = one;
            let signed = if signed { "signed, " } else { "" };
            say(&format!(
                "seed {seed}: exact, {signed}{counted} clicks billed of {must} impressions that must be, {ineligible} not eligible; \
                 {lived} lives, {changes_gone} changes lost to power cuts, {aside} clicks kept aside and sent by hand, {replays} \
                 in the log twice, {corrections} corrections, results expired {expired} times"
            ));
            lives += lived;
            billed += counted;
            census.add(one);
        }
        say(&census.to_string());
        if kind == Kind::All {
            let missing = census.missing(self.runs);
            anyhow::ensure!(
                missing.is_empty(),
                "{} runs are exact and prove too little: there was no {}",
                self.runs,
                missing.join(", no ")
            );
        }
        say(&format!("{} runs exact: {billed} clicks, {lives} lives, {:.0?}", self.runs, begun.elapsed()));
        Ok(())
    }
}

/// The pipeline files with a rule more, which takes some people for bots.
fn change(from: &Path, to: &Path) -> Result<()> {
    const RULE: &str = "ELSE bot_reason(";
    let mut changed = 0;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = std::fs::read_to_string(&path)?;
            changed += text.matches(RULE).count();
            let text =
                text.replace(RULE, &format!("WHEN \"userAgent\" LIKE '%{CHANGED_AGENT}%' THEN 'changed' {RULE}"));
            std::fs::write(to.join(path.file_name().context("a file without a name")?), text)?;
        }
    }
    anyhow::ensure!(changed == 1, "{} has {changed} places with `{RULE}`, and must have one", from.display());
    Ok(())
}

/// One run in a folder of its own, which stays where it is if something is wrong.
async fn one(seed: u64, kind: &Kind, setting: &Setting) -> Result<Done> {
    let dir = tempfile::Builder::new().prefix("tally-prove-").tempdir()?;
    let catalog = redirect::Catalog::parse("catalog/sample.csv", SAMPLE_CATALOG)?;
    // The journal compares paths as they are.
    let path = dir.path().canonicalize()?;
    let disk = Disk::new(&path)?;
    let done = run::run(seed, kind, setting, &catalog, &disk).await;
    if done.is_err() && setting.mutation.as_ref().is_none_or(|mutation| mutation.deaf.is_empty()) {
        let kept = dir.keep();
        return done.with_context(|| format!("its files are in {}", kept.display()));
    }
    done
}

/// The process under proof.
pub fn serve(args: SiteArgs) -> BoxFuture<'static, Result<()>> {
    Box::pin(serve_all(args))
}

async fn serve_all(args: SiteArgs) -> Result<()> {
    let clock = Arc::new(ManualClock::new(Millis::new(args.clock)));
    let keys = if args.signed { KEYS.into() } else { String::new() };
    let signatures = redirect::config::Signatures { keys, ..Default::default() };
    let config = Config {
        again: args.again,
        data: args.data,
        pipelines: args.pipelines,
        lateness: Duration::from_millis(LATENESS_MS as u64),
        slack: Duration::from_millis(SLACK_MS as u64),
        log_retention: RETENTION,
        log_segment_bytes: SEGMENT_BYTES_MAX,
        redirect: crate::config::Redirect { spool_age_max: SPOOL_AGE_MAX, signatures, ..Default::default() },
        ..Config::default()
    };
    let mut machine = Machine::open(&config, clock.clone()).await?;
    let slow = Arc::new(SlowLog {
        inner: machine.log.clone(),
        clock: clock.clone(),
        time: watch::channel(clock.now().get()).0,
    });
    let settings = redirect::Settings {
        // Virtual minutes may take real seconds.
        append_wait: Duration::from_secs(120),
        ..Machine::redirect_settings(&config)?
    };
    let apart: Arc<dyn Clock> = Arc::new(Apart(clock.clone(), args.skew));
    // What its log does not take in time goes to the spool.
    let impatient = redirect::Settings { append_wait: APPEND_WAIT, ..settings.clone() };
    let spool = machine.spool(&Config { log_segment_bytes: SPOOL_SEGMENT_BYTES_MAX, ..config.clone() }).await?;
    let services = [
        machine.redirect(machine.log.clone(), clock.clone(), settings.clone(), None),
        machine.redirect(machine.log.clone(), apart, settings.clone(), None),
        machine.redirect(slow.clone(), clock.clone(), impatient, Some(spool.clone())),
    ];
    let beats = services[0].clone();
    let mut addresses = Vec::new();
    for service in services {
        let listener = listen().await?;
        addresses.push(listener.local_addr()?.to_string());
        tokio::spawn(redirect::serve(listener, service, std::future::pending()));
    }
    let listener = listen().await?;
    addresses.push(listener.local_addr()?.to_string());
    let router = reporting::router(Arc::new(machine.warehouse.clone()), clock.clone());
    tokio::spawn(serving::serve(listener, router, serving::Limits::default(), std::future::pending()));

    let mut lines = words();
    let mut answer = format!("ready {}", addresses.join(" "));
    loop {
        say(&answer);
        let Some(line) = lines.recv().await else { return Ok(()) };
        let word: Word = line.parse().map_err(anyhow::Error::msg)?;
        let done = match word {
            Word::Clock(at) => {
                clock.set(at);
                slow.time.send_replace(at.get());
                Ok(())
            }
            Word::Beat => {
                beats.heartbeat_once().await;
                Ok(())
            }
            Word::Settle => settle(&mut machine).await,
            Word::Checkpoint => machine.runner.checkpoint().await.map_err(anyhow::Error::from),
            Word::Drain => drain(&spool).await,
            Word::Tidy => spool.tidy().await.map_err(anyhow::Error::from),
            Word::Expire => expire(&machine.log, clock.now()).await,
            Word::Send => {
                let dir = config.data.join("spool");
                // What an operator is told has no place between the answers.
                crate::spool::send_all(&dir, &*machine.log, &machine.warehouse, |_| ()).await.map(drop)
            }
            Word::Retain => {
                let safe = machine.runner.counters().safe.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let removed = machine::retain(&machine.log, &config, clock.now(), &machine.warehouse, &safe).await;
                removed.map(|_| ())
            }
        };
        answer = match done {
            Ok(()) => "ok".into(),
            Err(error) => format!("error {error:#}").replace('\n', " "),
        };
    }
}

/// Removes every segment of the result topics that is full, also those that nobody has read.
async fn expire(log: &LocalLog, now: Millis) -> Result<()> {
    let topics = warehouse::Topics::default();
    for topic in [topics.raw_clicks, topics.clicks_by_minute] {
        // Their records are never later than this.
        log.retain(&topic, now.plus(86_400_000)).await?;
    }
    Ok(())
}

/// Waits until every click of the spool is in the log.
async fn drain(spool: &Spool) -> Result<()> {
    let until = Instant::now() + DRAIN_WAIT;
    loop {
        let waiting = spool.counters().records;
        if waiting == 0 {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "{waiting} clicks wait in the spool");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What whoever started this says, line by line, until it goes away.
fn words() -> mpsc::Receiver<String> {
    let (to, words) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if to.blocking_send(line).is_err() {
                break;
            }
        }
    });
    words
}

/// Everything that is in the log comes to rest in the reports.
async fn settle(machine: &mut Machine) -> Result<()> {
    machine.runner.catch_up().await?;
    machine.loader.step().await?;
    let through = machine.warehouse.status().complete_through;
    machine.runner.counters().complete_through.store(through.get(), std::sync::atomic::Ordering::Relaxed);
    Ok(())
}

async fn listen() -> Result<TcpListener> {
    Ok(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?)
}

/// The clock of a redirect that differs from the others' by so many milliseconds.
struct Apart(Arc<ManualClock>, i64);

impl Clock for Apart {
    fn now(&self) -> Millis {
        self.0.now().plus(self.1)
    }
}
