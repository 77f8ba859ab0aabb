//! What is left of a folder after a power cut: of each file and folder at most what it was, and at least what an fsync
//! made durable. It is told by the journal that `power/` keeps; its layout is written there.

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};

/// A folder that is under power, and where its journal is.
#[derive(Debug)]
pub struct Disk {
    /// The folder of the process.
    pub root: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// What was removed and can come back.
    pub saved: PathBuf,
}

/// One change of the journal that can be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Write { ino: u64, offset: u64, length: u64, old_size: u64, before: Vec<u8> },
    Size { ino: u64, old: u64, new: u64, cut: Vec<u8> },
    Create { folder: u64, ino: u64, name: OsString },
    Remove { folder: u64, ino: u64, name: OsString },
    Rename { folder: u64, ino: u64, replaced: u64, to_folder: u64, name: OsString, to_name: OsString },
}

impl Change {
    /// What there is of an older write when this change is durable: its bytes that this one neither wrote again nor cut off.
    fn leaves(&self, older: Change) -> Vec<Change> {
        let (from, to) = match (self, &older) {
            (Change::Write { ino, offset, length, .. }, Change::Write { ino: of, .. }) if ino == of => {
                (*offset, offset + length)
            }
            (Change::Size { ino, new, .. }, Change::Write { ino: of, .. }) if ino == of => (*new, u64::MAX),
            _ => return vec![older],
        };
        let Change::Write { ino, offset, length, old_size, before } = older else { return vec![older] };
        let end = offset + length;
        let part = |first: u64, last: u64, old_size: u64| {
            let before = before.iter().copied().skip((first - offset) as usize).take((last - first) as usize).collect();
            (first < last).then_some(Change::Write { ino, offset: first, length: last - first, old_size, before })
        };
        // What was written after `to` made the file longer than `to` at least.
        let parts = [
            part(offset, end.min(from).max(offset), old_size),
            part(offset.max(to).min(end), end, old_size.max(to.min(end))),
        ];
        parts.into_iter().flatten().collect()
    }

    fn is_of_bytes(&self) -> bool {
        matches!(self, Change::Write { .. } | Change::Size { .. })
    }

    /// What has to be fsynced for it to be durable: a file for its bytes, both folders for a rename.
    fn places(&self) -> [u64; 2] {
        match self {
            Change::Write { ino, .. } | Change::Size { ino, .. } => [*ino; 2],
            Change::Create { folder, .. } | Change::Remove { folder, .. } => [*folder; 2],
            Change::Rename { folder, to_folder, .. } => [*folder, *to_folder],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Change(Change),
    Sync { ino: u64, kind: String },
    Skipped { ino: u64 },
    Failed { ino: u64 },
    Died(String),
    Life,
}

/// What a power cut takes of what was not durable. A file system may write names and bytes in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    All,
    /// The bytes of files. Names are there, also of files that are empty now.
    Bytes,
    /// All of it but the newest name in each folder.
    AllButNewest,
    /// The names in new folders. These are there, and empty.
    InNewFolders,
    /// Of each file and folder the younger part, cut anywhere.
    Younger,
    /// What fsyncs that were left out should have kept, and nothing else.
    LeftOut,
}

impl Cut {
    pub fn draw(rng: &mut impl Rng) -> Cut {
        match rng.random_range(0..9) {
            0..3 => Cut::All,
            3 => Cut::Bytes,
            4 => Cut::AllButNewest,
            5 => Cut::InNewFolders,
            _ => Cut::Younger,
        }
    }

    /// Takes from the changes that are loose those that reached the disk.
    fn keep(self, loose: &mut Vec<(Change, u64)>, left_out: &HashSet<u64>, rng: &mut impl Rng) {
        match self {
            Cut::All => {}
            Cut::Bytes => loose.retain(|(change, _)| change.is_of_bytes()),
            Cut::AllButNewest => {
                let mut newest = HashMap::new();
                for (at, (change, _)) in loose.iter().enumerate().filter(|(_, (change, _))| !change.is_of_bytes()) {
                    newest.extend(change.places().map(|place| (place, at)));
                }
                let is_newest = |at: usize, change: &Change| {
                    !change.is_of_bytes() && change.places().iter().all(|place| newest.get(place) == Some(&at))
                };
                let mut at = 0..;
                loose.retain(|(change, _)| !at.next().is_some_and(|at| is_newest(at, change)));
            }
            Cut::InNewFolders => {
                let new = |(change, _): &(Change, u64)| match change {
                    Change::Create { ino, .. } => Some(*ino),
                    _ => None,
                };
                let new: HashSet<u64> = loose.iter().filter_map(new).collect();
                loose.retain(|(change, _)| {
                    !change.is_of_bytes() && change.places().iter().all(|place| new.contains(place))
                });
            }
            Cut::Younger => keep_older(loose, rng),
            Cut::LeftOut => loose.retain(|(change, _)| change.places().iter().any(|place| left_out.contains(place))),
        }
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cut::InNewFolders => "names in new folders gone",
            Cut::All => "all that was loose gone",
            Cut::Bytes => "loose bytes gone",
            Cut::AllButNewest => "all that was loose gone but the newest name of a folder",
            Cut::Younger => "the younger part of what was loose gone",
            Cut::LeftOut => "what fsyncs that were left out should have kept gone",
        })
    }
}

/// What a journal says beside what can be undone.
#[derive(Debug, Default)]
pub struct Seen {
    /// The kinds of fsyncs that were done, and how often.
    pub syncs: std::collections::BTreeMap<String, u64>,
    /// How many that were asked for were left out.
    pub skipped: u64,
    /// Where the process was told to die by itself.
    pub died: Option<String>,
    pub changes: usize,
}

impl Disk {
    /// A new folder `root` under `dir`, which holds nothing else.
    pub fn new(dir: &Path) -> Result<Disk> {
        let disk = Disk { root: dir.join("data"), journal: dir.join("journal"), saved: dir.join("saved") };
        for folder in [&disk.root, &disk.saved] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        Ok(disk)
    }

    /// Variables of a process on this disk.
    pub fn variables(&self) -> [(&'static str, &Path); 3] {
        [("POWER_CUT_ROOT", &self.root), ("POWER_CUT_JOURNAL", &self.journal), ("POWER_CUT_SAVED", &self.saved)]
    }

    /// Where processes write down the commit points that they pass; outside of what is under power.
    pub fn passes(&self) -> PathBuf {
        self.journal.with_file_name("passes")
    }

    /// What they passed since the last look, and how often.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn take_passes(&self) -> Result<std::collections::BTreeMap<String, u64>> {
        let mut passes = std::collections::BTreeMap::new();
        let path = self.passes();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(passes),
            read => read.with_context(|| path.display().to_string())?,
        };
        text.lines().for_each(|point| *passes.entry(point.to_string()).or_default() += 1);
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
        Ok(passes)
    }

    fn lines(&self) -> Result<Vec<Line>> {
        match fs::read(&self.journal) {
            Ok(bytes) => Ok(parse(&bytes)?.0),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| self.journal.display().to_string()),
        }
    }

    /// Notes that a process begins. What the one before it had noted in part when it was killed, it had not done: that goes.
    ///
    /// # Errors
    /// If the journal cannot be read or written.
    pub fn begin_life(&self) -> Result<()> {
        let name = || self.journal.display().to_string();
        let journal = fs::OpenOptions::new().read(true).append(true).create(true).open(&self.journal);
        let mut journal = journal.with_context(name)?;
        let mut noted = Vec::new();
        journal.read_to_end(&mut noted).with_context(name)?;
        let whole = parse(&noted)?.1;
        journal.set_len(whole as u64).and_then(|()| journal.write_all(b"life begins\n")).with_context(name)
    }

    /// What the journal says of the newest life.
    pub fn seen(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for line in self.lines()? {
            match line {
                Line::Change(_) => seen.changes += 1,
                Line::Sync { kind, .. } => *seen.syncs.entry(kind).or_default() += 1,
                Line::Skipped { .. } => seen.skipped += 1,
                Line::Died(what) => seen.died = Some(what),
                Line::Failed { .. } => {}
                Line::Life => seen = Seen::default(),
            }
        }
        Ok(seen)
    }

    /// Takes from the folder what was not durable, or a part of it. Nobody may be using it. What is left is durable from then
    /// on. How many changes are gone.
    ///
    /// # Errors
    /// If the journal cannot be read, or does not fit the folder.
    pub fn cut_power(&self, cut: Cut, rng: &mut impl Rng) -> Result<usize> {
        let lines = self.lines()?;
        let left_out = lines.iter().filter_map(|line| match line {
            Line::Skipped { ino } => Some(*ino),
            _ => None,
        });
        let left_out: HashSet<u64> = left_out.collect();
        let mut loose = loose(lines);
        cut.keep(&mut loose, &left_out, rng);
        let gone = loose.len();
        let mut undo = Undo { disk: self, found: HashMap::new() };
        undo.find()?;
        for (change, kept) in loose.into_iter().rev() {
            undo.undo(&change, kept).with_context(|| format!("cannot undo {change:?}"))?;
        }
        self.settle()?;
        Ok(gone)
    }

    /// Takes everything for durable.
    pub fn settle(&self) -> Result<()> {
        for path in [&self.journal] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(error).with_context(|| path.display().to_string());
            }
        }
        fs::remove_dir_all(&self.saved).and_then(|()| fs::create_dir(&self.saved)).context("what was removed")
    }
}

/// The changes that no fsync followed, in their order, each with how many of its bytes stay.
fn loose(lines: Vec<Line>) -> Vec<(Change, u64)> {
    let mut loose: Vec<(Change, [bool; 2])> = Vec::new();
    // After a failed fsync the kernel may forget what it could not write, and say yes the next time.
    let mut lost: Vec<Change> = Vec::new();
    for line in lines {
        match line {
            Line::Change(change) => loose.push((change, [false; 2])),
            Line::Sync { ino, .. } => {
                // A file's length is not in its pages, which may be forgotten, but in the file system's journal: the
                // next fsync writes it.
                for change in std::mem::take(&mut lost) {
                    match change {
                        Change::Size { ino: of, .. } if of == ino => overwrite(&mut lost, &change),
                        _ => lost.push(change),
                    }
                }
                loose.retain_mut(|(change, durable)| {
                    for (place, durable) in change.places().iter().zip(durable.iter_mut()) {
                        *durable |= *place == ino;
                    }
                    if *durable == [true; 2] {
                        // What was written again is there, whatever became of it before.
                        overwrite(&mut lost, change);
                    }
                    *durable != [true; 2]
                });
            }
            Line::Failed { ino } => {
                let (failed, rest) = loose.into_iter().partition(|(change, _)| change.places().contains(&ino));
                loose = rest;
                let failed: Vec<(Change, [bool; 2])> = failed;
                lost.extend(failed.into_iter().map(|(change, _)| change));
            }
            Line::Skipped { .. } | Line::Died(_) | Line::Life => {}
        }
    }
    lost.extend(loose.into_iter().map(|(change, _)| change));
    lost.into_iter().map(|change| (change, 0)).collect()
}

/// Takes from older changes what this one, which is durable, wrote again or cut off.
fn overwrite(older: &mut Vec<Change>, change: &Change) {
    *older = std::mem::take(older).into_iter().flat_map(|older| change.leaves(older)).collect();
}

/// Of each file and folder an older part of what is loose reached the disk after all.
fn keep_older(loose: &mut Vec<(Change, u64)>, rng: &mut impl Rng) {
    let mut open: HashMap<u64, bool> = HashMap::new();
    loose.retain_mut(|(change, kept)| {
        let places = change.places();
        let goes_on = places.iter().all(|place| *open.entry(*place).or_insert(true));
        if goes_on && rng.random_bool(0.7) {
            return false;
        }
        if goes_on && let Change::Write { length, .. } = change {
            *kept = rng.random_range(0..=*length);
        }
        for place in places {
            open.insert(place, false);
        }
        true
    });
}

/// Where everything is at the moment, by inode.
struct Undo<'a> {
    disk: &'a Disk,
    found: HashMap<u64, PathBuf>,
}

impl Undo<'_> {
    fn find(&mut self) -> Result<()> {
        self.found.clear();
        for root in [&self.disk.saved, &self.disk.root] {
            self.find_in(root)?;
        }
        let root = fs::metadata(&self.disk.root)?;
        self.found.insert(std::os::unix::fs::MetadataExt::ino(&root), self.disk.root.clone());
        Ok(())
    }

    fn find_in(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            self.found.insert(entry.ino(), entry.path());
            if entry.file_type()?.is_dir() {
                self.find_in(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The file of this inode; none if it went with what was undone before.
    fn file(&self, ino: u64) -> Result<Option<fs::File>> {
        let Some(path) = self.found.get(&ino) else { return Ok(None) };
        match fs::OpenOptions::new().write(true).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn undo(&mut self, change: &Change, kept: u64) -> Result<()> {
        match change {
            Change::Write { ino, offset, length, old_size, before } => {
                let Some(file) = self.file(*ino)? else { return Ok(()) };
                if file.metadata()?.len() > offset + length {
                    // Lost in the middle, by an fsync that failed: what follows is there.
                    let mut bytes = before.clone();
                    bytes.resize(*length as usize, 0);
                    return Ok(file.write_all_at(&bytes, *offset)?);
                }
                let kept = kept.min(*length);
                if let Some(rest) = before.get(kept as usize..) {
                    file.write_all_at(rest, offset + kept)?;
                }
                let end = if kept == 0 { *old_size } else { (*old_size).max(offset + kept) };
                if offset + length > end && file.metadata()?.len() > end {
                    file.set_len(end)?;
                }
            }
            Change::Size { ino, old, new, cut } => {
                let Some(file) = self.file(*ino)? else { return Ok(()) };
                file.set_len(*old)?;
                file.write_all_at(cut, (*new).min(*old))?;
            }
            Change::Create { folder, ino, name } => {
                let Some(path) = self.named(*folder, *ino, name)? else { return Ok(()) };
                if path.is_dir() {
                    fs::remove_dir_all(&path)?;
                } else {
                    fs::remove_file(&path)?;
                }
                self.find()?;
            }
            Change::Remove { folder, ino, name } => {
                let Some(folder) = self.found.get(folder) else { return Ok(()) };
                self.bring_back(*ino, &folder.join(name))?;
            }
            Change::Rename { folder, ino, replaced, to_folder, name, to_name } => {
                let Some(path) = self.named(*to_folder, *ino, to_name)? else { return Ok(()) };
                let Some(folder) = self.found.get(folder) else { return Ok(()) };
                let before = folder.join(name);
                // Something newer has that name, and stays: then this stays as well.
                if fs::symlink_metadata(&before).is_ok() {
                    return Ok(());
                }
                fs::rename(&path, before)?;
                if *replaced != 0 {
                    self.bring_back(*replaced, &path)?;
                }
                self.find()?;
            }
        }
        Ok(())
    }

    /// The path of this name, if it is the name of this inode.
    fn named(&self, folder: u64, ino: u64, name: &OsString) -> Result<Option<PathBuf>> {
        let Some(path) = self.found.get(&folder).map(|folder| folder.join(name)) else { return Ok(None) };
        match fs::symlink_metadata(&path) {
            Ok(status) => Ok((std::os::unix::fs::MetadataExt::ino(&status) == ino).then_some(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn bring_back(&mut self, ino: u64, path: &Path) -> Result<()> {
        // Two undone changes may bring back the same file; or something newer has its name, and stays.
        if fs::symlink_metadata(path).is_ok() {
            return Ok(());
        }
        let saved = self.disk.saved.join(ino.to_string());
        if saved.is_dir() {
            fs::rename(&saved, path)?
        } else {
            fs::hard_link(&saved, path)?
        }
        self.find()
    }
}

/// The lines of a journal, and how many bytes they are: at its end a process that was killed may have noted a part of one.
fn parse(bytes: &[u8]) -> Result<(Vec<Line>, usize)> {
    let mut lines = Vec::new();
    let (journal, mut rest) = (bytes, bytes);
    let mut whole = 0;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let line = String::from_utf8(line.to_vec()).context("the journal has a line that is no text")?;
        let mut bytes = Vec::new();
        let mut text = line.as_str();
        if matches!(text.split(' ').next(), Some("write" | "size"))
            && let Some((head, count)) = text.rsplit_once(" bytes=")
        {
            let count: usize = count.parse().context("bytes")?;
            let Some(there) = rest.get(..count + 1) else { break };
            bytes = there[..count].to_vec();
            rest = &rest[count + 1..];
            text = head;
        }
        lines.push(parse_line(text, bytes).with_context(|| format!("the journal has {text:?}"))?);
        whole = journal.len() - rest.len();
    }
    Ok((lines, whole))
}

fn parse_line(text: &str, bytes: Vec<u8>) -> Result<Line> {
    let (what, fields) = text.split_once(' ').context("one word")?;
    let mut words = fields.splitn(if what == "rename" { 5 } else { 4 }, ' ');
    let number = |word: Option<&str>| -> Result<u64> { Ok(word.context("too short")?.parse()?) };
    let name = |text: &str| OsString::from_vec(text.as_bytes().to_vec());
    Ok(match what {
        "write" => Line::Change(Change::Write {
            ino: number(words.next())?,
            offset: number(words.next())?,
            length: number(words.next())?,
            old_size: number(words.next())?,
            before: bytes,
        }),
        "size" => Line::Change(Change::Size {
            ino: number(words.next())?,
            old: number(words.next())?,
            new: number(words.next())?,
            cut: bytes,
        }),
        "sync" => {
            let (ino, kind) = fields.split_once(' ').context("too short")?;
            Line::Sync { ino: ino.parse()?, kind: kind.into() }
        }
        "skipped" => Line::Skipped { ino: number(words.next())? },
        "failed" => Line::Failed { ino: fields.parse()? },
        "create" | "remove" => {
            let mut words = fields.splitn(3, ' ');
            let (folder, ino) = (number(words.next())?, number(words.next())?);
            let name = name(words.next().context("too short")?);
            Line::Change(match what {
                "create" => Change::Create { folder, ino, name },
                _ => Change::Remove { folder, ino, name },
            })
        }
        "rename" => {
            let (folder, ino) = (number(words.next())?, number(words.next())?);
            let (replaced, to_folder) = (number(words.next())?, number(words.next())?);
            let (from, to) = words.next().and_then(|names| names.split_once('/')).context("too short")?;
            ensure!(!to.is_empty(), "no name");
            Line::Change(Change::Rename { folder, ino, replaced, to_folder, name: name(from), to_name: name(to) })
        }
        "died" => Line::Died(fields.into()),
        "life" => Line::Life,
        _ => bail!("no such line"),
    })
}
