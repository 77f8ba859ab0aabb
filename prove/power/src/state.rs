//! What is asked of this process, and how far it came.

use crate::journal::Journal;
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub struct State {
    /// The folder, with a slash at its end.
    root: String,
    pub saved: String,
    die_at: u64,
    full: (u64, u64),
    eio_at: u64,
    deaf: Option<String>,
    /// One change at a time, so that the journal is in the order of the disk.
    pub now: Mutex<Now>,
}

pub struct Now {
    pub journal: Journal,
    changes: u64,
    syncs: u64,
}

/// What a change meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Goes,
    Full,
    /// The process ends; a write is done in half before.
    Dies,
}

static STATE: OnceLock<Option<State>> = OnceLock::new();

/// Nothing, if this process is none of ours.
pub fn state() -> Option<&'static State> {
    STATE.get_or_init(State::from_environment).as_ref()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn number(name: &str) -> u64 {
    variable(name)
        .map_or(u64::MAX, |text| text.parse().unwrap_or_else(|_| fail(&format!("{name}={text} is no number"))))
}

/// A proof with a disk that does not do what was asked proves nothing.
pub fn fail(why: &str) -> ! {
    eprintln!("power-cut: {why}");
    std::process::abort()
}

impl State {
    fn from_environment() -> Option<State> {
        let root = variable("POWER_CUT_ROOT")?;
        let needed = |name| variable(name).unwrap_or_else(|| fail(&format!("{name} is not set")));
        let full = variable("POWER_CUT_FULL").map_or((u64::MAX, 0), |text| {
            let both = text.split_once('+').and_then(|(from, many)| Some((from.parse().ok()?, many.parse().ok()?)));
            both.unwrap_or_else(|| fail(&format!("POWER_CUT_FULL={text} is not n+m")))
        });
        let journal = CString::new(needed("POWER_CUT_JOURNAL")).unwrap_or_else(|_| fail("POWER_CUT_JOURNAL"));
        Some(State {
            root: format!("{}/", root.trim_end_matches('/')),
            saved: needed("POWER_CUT_SAVED"),
            die_at: number("POWER_CUT_DIE"),
            full,
            eio_at: number("POWER_CUT_EIO"),
            deaf: variable("POWER_CUT_DEAF"),
            now: Mutex::new(Now { journal: Journal::open(&journal), changes: 0, syncs: 0 }),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path below the folder; the folder itself is "".
    pub fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        if path.len() + 1 == self.root.len() && self.root.starts_with(path) {
            return Some("");
        }
        path.strip_prefix(&self.root)
    }

    /// Whether fsyncs of this path are left out.
    pub fn is_deaf(&self, path: &str, is_dir: bool) -> bool {
        self.deaf.as_ref().is_some_and(|deaf| *deaf == kind_of(path, is_dir))
    }

    /// Counts a change.
    pub fn fate(&self, now: &mut Now, takes_room: bool, what: &str) -> Fate {
        now.changes += 1;
        if now.changes == self.die_at {
            now.journal.note(&format!("died {} {what}", now.changes));
            return Fate::Dies;
        }
        let (from, many) = self.full;
        if takes_room && now.changes >= from && now.changes - from < many {
            return Fate::Full;
        }
        Fate::Goes
    }

    /// Counts an fsync: whether it fails.
    pub fn sync_fails(&self, now: &mut Now) -> bool {
        now.syncs += 1;
        now.syncs == self.eio_at
    }
}

/// The kind of a file: its path with every part of a name that tells one from the other as `*`, and a slash at the end if it
/// is a folder.
pub fn kind_of(path: &str, is_dir: bool) -> String {
    let part = |part: &str| {
        let words = part.split_inclusive(['.', '-', '_', '=']);
        words
            .map(|word| {
                let (name, end) = word.split_at(word.len() - usize::from(word.ends_with(['.', '-', '_', '='])));
                if name.bytes().any(|byte| byte.is_ascii_digit()) { format!("*{end}") } else { word.to_string() }
            })
            .collect::<String>()
    };
    let mut kind = path.split('/').map(part).collect::<Vec<_>>().join("/");
    while kind.contains("*-*") {
        kind = kind.replace("*-*", "*");
    }
    if is_dir { format!("{kind}/") } else { kind }
}
