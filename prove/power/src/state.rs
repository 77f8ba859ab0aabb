//! What is asked of this process, and how far it came.

use crate::journal::Journal;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub struct State {
    /// The folder, with a slash at its end.
    root: String,
    pub saved: String,
    full: (u64, u64),
    /// The n-th fsync of one kind, and how many changes after it the process dies.
    dies_after_sync: Option<(u64, u64, String)>,
    /// The n-th fsync of kinds that begin so.
    sync_fails: Option<(u64, String)>,
    /// Kinds whose fsyncs are left out.
    deaf: Vec<String>,
    /// Words of names that tell one file from another, as digits do.
    names: Vec<String>,
    /// One change at a time, so that the journal is in the order of the disk.
    pub now: Mutex<Now>,
}

pub struct Now {
    pub journal: Journal,
    changes: u64,
    /// The change at which the process dies.
    die_at: u64,
    /// Fsyncs of the kinds that one is to fail of, and of the kind after which the process dies.
    syncs: u64,
    marked: u64,
    /// What was last done to a file or folder, by inode, since it was fsynced.
    last: HashMap<u64, String>,
}

impl Now {
    /// Bytes or the size of a file changed.
    pub fn changed(&mut self, ino: u64, how: &str) {
        self.last.insert(ino, how.into());
    }
}

/// Between what is fsynced and what was last done to it.
const AFTER: &str = " after ";

/// `n WORDS`, or n alone.
fn counted(text: &str) -> Option<(u64, String)> {
    let (n, rest) = text.split_once(' ').unwrap_or((text, ""));
    Some((n.parse().ok()?, rest.into()))
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
        let sync_fails = variable("POWER_CUT_EIO")
            .map(|text| counted(&text).unwrap_or_else(|| fail(&format!("POWER_CUT_EIO={text} is not n or n KIND"))));
        let dies_after_sync = variable("POWER_CUT_DIE_AFTER_SYNC").map(|text| {
            let parsed = counted(&text).and_then(|(n, rest)| {
                let (more, kind) = counted(&rest)?;
                Some((n, more, kind))
            });
            parsed.unwrap_or_else(|| fail(&format!("POWER_CUT_DIE_AFTER_SYNC={text} is not n k KIND")))
        });
        let journal = CString::new(needed("POWER_CUT_JOURNAL")).unwrap_or_else(|_| fail("POWER_CUT_JOURNAL"));
        Some(State {
            root: format!("{}/", root.trim_end_matches('/')),
            saved: needed("POWER_CUT_SAVED"),
            full,
            dies_after_sync,
            sync_fails,
            deaf: variable("POWER_CUT_DEAF").map_or(Vec::new(), |kinds| kinds.lines().map(String::from).collect()),
            names: variable("POWER_CUT_NAMES").map_or(Vec::new(), |names| names.split(',').map(String::from).collect()),
            now: Mutex::new(Now {
                journal: Journal::open(&journal),
                changes: 0,
                die_at: number("POWER_CUT_DIE"),
                syncs: 0,
                marked: 0,
                last: HashMap::new(),
            }),
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

    /// A name in a folder changed.
    pub fn named(&self, now: &mut Now, how: &str, folder: u64, name: &str) {
        now.last.insert(folder, format!("{how} {}", self.kind_of(name, false)));
    }

    /// The kind of an fsync that begins: of what, and what was last done to it. So two places in a program that sync one
    /// folder for two reasons are two kinds.
    pub fn kind_of_sync(&self, now: &mut Now, ino: u64, path: &str, is_dir: bool) -> String {
        let after = now.last.remove(&ino).unwrap_or_else(|| "nothing".into());
        format!("{}{AFTER}{after}", self.kind_of(path, is_dir))
    }

    /// The kind of a file: its path with every part of a name that tells one from the other as `*`, and a slash at the end
    /// if it is a folder.
    fn kind_of(&self, path: &str, is_dir: bool) -> String {
        // Longer names first, where one is a part of another.
        let path = self.names.iter().fold(path.to_string(), |path, name| path.replace(name, "*"));
        kind_of(&path, is_dir)
    }

    /// Whether fsyncs of this kind are left out.
    pub fn is_deaf(&self, kind: &str) -> bool {
        self.deaf.iter().any(|deaf| is_of(kind, deaf))
    }

    /// An fsync begins: it may be the one after which the process dies.
    pub fn passes_sync(&self, now: &mut Now, kind: &str) {
        let Some((nth, more, of)) = &self.dies_after_sync else { return };
        now.marked += u64::from(is_of(kind, of));
        if is_of(kind, of) && now.marked == *nth {
            // The fsync is a change as well.
            now.die_at = now.changes + 1 + more;
        }
    }

    /// Counts a change.
    pub fn fate(&self, now: &mut Now, takes_room: bool, what: &str) -> Fate {
        now.changes += 1;
        if now.changes == now.die_at {
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
    pub fn sync_fails(&self, now: &mut Now, kind: &str) -> bool {
        let of = |(_, of): &&(u64, String)| kind.starts_with(of);
        let Some((nth, _)) = self.sync_fails.as_ref().filter(of) else { return false };
        now.syncs += 1;
        now.syncs == *nth
    }
}

/// Whether a kind of fsync is this one, or of what this one names: with any change, or without what was done to it.
fn is_of(kind: &str, of: &str) -> bool {
    if let Some(of) = of.strip_suffix(" after something") {
        return is_of(kind, of) && !kind.ends_with(" after nothing");
    }
    kind.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with(AFTER))
}

fn kind_of(path: &str, is_dir: bool) -> String {
    let part = |part: &str| {
        let words = part.split_inclusive(['.', '-', '_', '=']);
        words
            .map(|word| {
                let (name, end) = word.split_at(word.len() - usize::from(word.ends_with(['.', '-', '_', '='])));
                let is_hex = name.len() >= 4 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
                let is_random = name.len() == 9 && name.starts_with("tmp");
                let varies = is_hex || is_random || name.bytes().any(|byte| byte.is_ascii_digit());
                if varies { format!("*{end}") } else { word.to_string() }
            })
            .collect::<String>()
    };
    let mut kind = path.split('/').map(part).collect::<Vec<_>>().join("/");
    while kind.contains("*-*") {
        kind = kind.replace("*-*", "*");
    }
    if is_dir { format!("{kind}/") } else { kind }
}
