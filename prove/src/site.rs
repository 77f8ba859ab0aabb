//! The process under proof: the whole one-machine column, in virtual time, told what to do line by line.
//!
//! It is started with `--data`, `--pipelines` and `--clock`, and answers `ready` with the addresses of its three redirects
//! and of its reports. Then it takes one word a line and answers `ok`, or `error` with the reason: `clock MS` sets the time,
//! `beat` sends heartbeats where they are due, `settle` brings everything that is in the log to rest in the reports,
//! `checkpoint` makes a checkpoint, `retain` removes what is past the retention, `expire` removes what can be removed of the
//! result topics whoever still needs it, `drain` waits a little until the spool is empty, `tidy` writes down what of it was
//! sent and removes what it does not need any more, `send` does what `tally spool send` does. With `--signed` it has the keys of [`crate::sign`]; with `--again` it deploys also if nothing has changed. `--skew` is
//! how far the clock of its second redirect is from the others'.

use crate::browsers::Redirects;
use crate::disk::Disk;
use crate::fate::Fault;
use anyhow::{Context, Result, bail};
use click::Millis;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the process may take for one word.
const PATIENCE: Duration = Duration::from_secs(120);
/// As much of what it says on stderr as a message shows.
const TOLD_BYTES_MAX: usize = 4_000;

/// Topics and tables are made and kept by the same code each: what is said of the fsyncs of one holds for all.
const NAMES: &str = "clicks_by_quarter_hour,corrections_by_quarter_hour,clicks_by_minute,corrections_by_minute,\
                     clicks_by_day,corrections_by_day,click_corrections,raw_clicks,quarantine,closings,clicks";

/// What every life of a run has in common.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The program, and the words before those of this module.
    pub program: PathBuf,
    pub words: Vec<String>,
    /// The library that `power/` is built to.
    pub power: PathBuf,
    pub pipelines: PathBuf,
    /// The same with changed rules.
    pub changed: PathBuf,
    /// The kind of fsync that a mutation is about.
    pub mutation: Option<Mutation>,
}

/// A kind of fsync, as `power/` names them.
#[derive(Debug, Clone)]
pub struct Mutation {
    pub kind: String,
    /// Kinds that are left out: this one, others with it, or none.
    pub deaf: Vec<String>,
}

/// A word for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Clock(Millis),
    Beat,
    Settle,
    Checkpoint,
    Retain,
    Expire,
    Drain,
    Send,
    Tidy,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Clock(at) => write!(f, "clock {}", at.get()),
            Word::Beat => f.write_str("beat"),
            Word::Settle => f.write_str("settle"),
            Word::Checkpoint => f.write_str("checkpoint"),
            Word::Retain => f.write_str("retain"),
            Word::Expire => f.write_str("expire"),
            Word::Drain => f.write_str("drain"),
            Word::Send => f.write_str("send"),
            Word::Tidy => f.write_str("tidy"),
        }
    }
}

impl std::str::FromStr for Word {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        match line {
            "beat" => Ok(Word::Beat),
            "settle" => Ok(Word::Settle),
            "checkpoint" => Ok(Word::Checkpoint),
            "retain" => Ok(Word::Retain),
            "expire" => Ok(Word::Expire),
            "drain" => Ok(Word::Drain),
            "send" => Ok(Word::Send),
            "tidy" => Ok(Word::Tidy),
            _ => {
                let at = line.strip_prefix("clock ").and_then(|ms| ms.parse().ok());
                at.map(|at| Word::Clock(Millis::new(at))).ok_or_else(|| format!("{line:?} is no word"))
            }
        }
    }
}

/// How a life begins.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    pub pipelines: &'a Path,
    pub now: Millis,
    pub fault: Fault,
    /// Whether URLs are signed.
    pub signed: bool,
    /// Whether the pipelines are deployed also if nothing has changed.
    pub again: bool,
    /// How far the clock of the second redirect is from the others'.
    pub skew_ms: i64,
}

/// What came of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The process is there, and could not.
    Failed(String),
    /// The process is gone.
    Dead,
}

/// A life of the process.
pub struct Site {
    child: Child,
    words: ChildStdin,
    answers: mpsc::Receiver<String>,
    told: JoinHandle<String>,
    pub redirects: Redirects,
    pub reports: SocketAddr,
}

/// A process that did not come up, and what it said.
#[derive(Debug)]
pub struct StillBorn(pub String);

impl Site {
    /// Starts a life. It may die, or refuse, before it is ready.
    ///
    /// # Errors
    /// If there is no process to be had at all, or it does not get ready in time.
    pub async fn start(setting: &Setting, disk: &Disk, start: Start<'_>) -> Result<Result<Site, StillBorn>> {
        disk.begin_life()?;
        let mut command = Command::new(&setting.program);
        command.args(&setting.words).arg("--data").arg(&disk.root).arg("--pipelines").arg(start.pipelines);
        command.arg("--clock").arg(start.now.get().to_string()).arg(format!("--skew={}", start.skew_ms));
        command.env(faults::PASSES, disk.passes());
        command.args(start.signed.then_some("--signed")).args(start.again.then_some("--again"));
        command.env("LD_PRELOAD", &setting.power).envs(disk.variables()).env("POWER_CUT_NAMES", NAMES);
        let kind = setting.mutation.as_ref().map_or("", |mutation| &mutation.kind);
        if let Some(mutation) = &setting.mutation {
            command.env("POWER_CUT_DEAF", mutation.deaf.join("\n"));
        }
        match start.fault {
            Fault::None | Fault::Stands { .. } => &mut command,
            Fault::At(point, n) => command.env(faults::DIE_AT, format!("{point}:{n}")),
            Fault::Change(n) => command.env("POWER_CUT_DIE", n.to_string()),
            Fault::Full(n, m) => command.env("POWER_CUT_FULL", format!("{n}+{m}")),
            Fault::SyncFails(n, of) => command.env("POWER_CUT_EIO", format!("{n} {of}")),
            Fault::AfterSync(n, more) => command.env("POWER_CUT_DIE_AFTER_SYNC", format!("{n} {more} {kind}")),
            Fault::AfterSyncOf(kind) => command.env("POWER_CUT_DIE_AFTER_SYNC", format!("1 1 {kind}")),
            Fault::BeforeSync(n) => {
                let of = kind.split(" after ").next().unwrap_or(kind);
                command.env("POWER_CUT_DIE_AFTER_SYNC", format!("{n} 0 {of} after something"))
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = setting.program.display();
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let (Some(words), Some(answers), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("{program} has no pipes");
        };
        // Each ends when the process does.
        let told = tokio::task::spawn_blocking(move || said(errors));
        let mut answers = lines(answers);
        let ready = tokio::time::timeout(PATIENCE, answers.recv()).await;
        let Some(ready) = ready.with_context(|| format!("{program} does not get ready"))? else {
            let _ = child.wait();
            return Ok(Err(StillBorn(told.await.unwrap_or_default())));
        };
        let mut addresses = ready.strip_prefix("ready ").unwrap_or_default().split(' ').map(str::parse::<SocketAddr>);
        let mut next = || addresses.next().context("too few addresses")?.context("an address");
        let redirects = [next()?, next()?, next()?];
        let reports = next()?;
        Ok(Ok(Site { child, words, answers, told, redirects, reports }))
    }

    /// Tells the process a word and waits until it has done it.
    ///
    /// # Errors
    /// If it takes for ever.
    pub async fn tell(&mut self, word: Word) -> Result<Outcome> {
        match self.say(word) {
            true => self.hear(word).await,
            false => Ok(Outcome::Dead),
        }
    }

    /// Whether there is somebody to hear it.
    fn say(&mut self, word: Word) -> bool {
        // A pipe has room for a word.
        self.words.write_all(format!("{word}\n").as_bytes()).is_ok()
    }

    async fn hear(&mut self, word: Word) -> Result<Outcome> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        Ok(match answer.with_context(|| format!("`{word}` is not done after {PATIENCE:?}"))? {
            Some(answer) if answer == "ok" => Outcome::Done,
            Some(answer) => Outcome::Failed(answer),
            None => Outcome::Dead,
        })
    }

    /// Stops the process for a while, as a scheduler or a snapshot does. Meanwhile the clock goes on to `now`: the process
    /// finds it so when it goes on.
    ///
    /// # Errors
    /// If signals cannot be sent, or it takes for ever.
    pub async fn stand_still(&mut self, ms: u64, now: Millis) -> Result<Outcome> {
        let signal = |signal: &str, process: u32| {
            Command::new("kill").arg(signal).arg(process.to_string()).status().context("kill")
        };
        let process = self.child.id();
        signal("-STOP", process)?;
        let heard = self.say(Word::Clock(now));
        tokio::time::sleep(Duration::from_millis(ms)).await;
        signal("-CONT", process)?;
        if heard { self.hear(Word::Clock(now)).await } else { Ok(Outcome::Dead) }
    }

    /// Kills the process, if it is not dead yet. What it said on stderr.
    pub async fn kill(mut self) -> String {
        self.last_words().await
    }

    /// The same of a process that somebody still holds; the first time only.
    pub async fn last_words(&mut self) -> String {
        self.end();
        let told = std::mem::replace(&mut self.told, tokio::spawn(async { String::new() }));
        told.await.unwrap_or_default()
    }

    fn end(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Site {
    /// No process outlives its run, whatever was found wrong.
    fn drop(&mut self) {
        self.end();
    }
}

/// What a process says, line by line, on a thread of its own.
fn lines(from: ChildStdout) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The end of what a process says on stderr.
fn said(mut from: ChildStderr) -> String {
    let mut said = Vec::new();
    // What cannot be read is not told.
    let _ = from.read_to_end(&mut said);
    let start = said.len().saturating_sub(TOLD_BYTES_MAX);
    String::from_utf8_lossy(&said[start..]).into_owned()
}

/// Where the library of `power/` is, beside this program.
///
/// # Errors
/// If it was not built.
pub fn power() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program's path")?;
    // Beside `tally`, and beside tests.
    let folders = program.ancestors().skip(1).take(2);
    let places = folders.flat_map(|folder| [folder.join("libpower_cut.so"), folder.join("deps/libpower_cut.so")]);
    let found = { places }.find(|path| path.exists());
    found.with_context(|| {
        let folder = program.parent().unwrap_or(Path::new("."));
        format!("{} has no libpower_cut.so, which cuts the power: `cargo build --release` makes it", folder.display())
    })
}
