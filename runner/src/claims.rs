//! Claims: which record was the first to claim an impression.
//!
//! A claim keeps position, append time and pipeline version, so the same position asking again gets the same answer:
//! a replay of any length says what was said before. Nothing here looks at the wall clock; the dedup horizon is
//! measured in append time.
//!
//! The store is fjall, which can lose what was not persisted, and cuts a damaged journal off without a word. Both
//! would be seen: before a checkpoint the store is told, in the same journal, up to which offset its claims go, and a
//! start compares that with the checkpoint.

use click::{LogId, Millis, Offset, Offsets, Partition};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tally_log::durable;

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct ClaimsSettings {
    /// Two records of one impression whose append times are less than this apart are a click and its duplicate, in
    /// milliseconds.
    pub horizon_ms: i64,
    /// Memory for cached blocks, and for the claims of a time span that are not written out yet, in bytes each.
    pub memory_bytes: u64,
}

impl Default for ClaimsSettings {
    fn default() -> Self {
        ClaimsSettings { horizon_ms: 86_400_000, memory_bytes: 64 << 20 }
    }
}

/// Claims are kept this long past the horizon, so that a replay finds what it needs.
const KEPT_PAST_HORIZON_MS: i64 = 3_600_000;

/// Longest key that fjall takes.
const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// A version of the pipelines, and the place in every partition where it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionStart {
    pub version: i64,
    pub log_id: LogId,
    pub positions: Offsets,
}

/// One record that asks.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The impression; none for a record that cannot be billed, which claims nothing.
    pub key: Option<&'a str>,
    pub log_id: LogId,
    pub partition: Partition,
    pub offset: Offset,
    pub appended_at: Millis,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    #[error("{}: {error}", .path.display())]
    Store { path: PathBuf, error: fjall::Error },
    #[error(transparent)]
    File(#[from] durable::FileError),
    #[error(
        "{} holds claims of pipeline version {held}, and the warehouse says that version {asked} is deployed: the warehouse \
         folder is missing, or older than the runner's state. Restore it from where it was, or start again with an empty data folder",
        .path.display()
    )]
    OlderVersion { path: PathBuf, held: i64, asked: i64 },
    /// Claims were lost, or records were skipped: to go on would bill duplicates.
    #[error(
        "{} has the claims of partition {partition} up to offset {through} only, and the pipeline goes on from {start}: \
         claims were lost, and duplicates would be billed. Restore the folder from where it was, or start again with an empty data folder",
        .path.display()
    )]
    Lost { path: PathBuf, partition: Partition, through: Offset, start: Offset },
    #[error("{}: the claims of {key:?} cannot be read: {what}", .path.display())]
    Damaged { path: PathBuf, key: String, what: &'static str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    log_id: LogId,
    partition: Partition,
    offset: Offset,
    appended_at: Millis,
    version: i64,
}

impl Claim {
    const BYTES: usize = 16 + 4 + 8 + 8 + 8;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.log_id.as_bytes());
        to.extend_from_slice(&self.partition.to_le_bytes());
        to.extend_from_slice(&self.offset.to_le_bytes());
        to.extend_from_slice(&self.appended_at.get().to_le_bytes());
        to.extend_from_slice(&self.version.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Claim> {
        let (log_id, rest) = bytes.split_first_chunk::<16>()?;
        let (partition, rest) = rest.split_first_chunk::<4>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (appended_at, version) = rest.split_first_chunk::<8>()?;
        Some(Claim {
            log_id: LogId::from_bytes(*log_id),
            partition: Partition::from_le_bytes(*partition),
            offset: Offset::from_le_bytes(*offset),
            appended_at: Millis::new(i64::from_le_bytes(*appended_at)),
            version: i64::from_le_bytes(version.try_into().ok()?),
        })
    }
}

/// A span of append time. New ones are as wide as the horizon; those of an earlier horizon stay what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Span {
    width_ms: i64,
    number: i64,
}

impl Span {
    fn of(at: Millis, width_ms: i64) -> Span {
        Span { width_ms, number: at.get().div_euclid(width_ms) }
    }

    fn parse(name: &str) -> Option<Span> {
        let (width_ms, number) = name.strip_prefix("span:")?.split_once(':')?;
        Some(Span { width_ms: width_ms.parse().ok().filter(|width| *width > 0)?, number: number.parse().ok()? })
    }

    fn name(self) -> String {
        format!("span:{}:{}", self.width_ms, self.number)
    }

    fn start(self) -> i64 {
        self.number.saturating_mul(self.width_ms)
    }

    fn end(self) -> i64 {
        self.start().saturating_add(self.width_ms)
    }
}

/// The claims of one machine, on disk.
pub struct Claims {
    path: PathBuf,
    store: Database,
    /// `through:<log id>:<partition>` and `version`.
    meta: Keyspace,
    /// Claims by the time span of their append time, so that a whole span is dropped at once when it is over.
    spans: BTreeMap<Span, Keyspace>,
    settings: ClaimsSettings,
    version: i64,
    /// Where each version started, oldest first.
    starts: Vec<VersionStart>,
}

impl Claims {
    /// Opens the store for the newest version in `starts`.
    pub fn open(path: &Path, settings: ClaimsSettings, starts: Vec<VersionStart>) -> Result<Self, ClaimsError> {
        let error = |error| ClaimsError::Store { path: path.to_path_buf(), error };
        if !path.is_dir() || durable::list(path)?.is_empty() {
            make(path, &settings)?;
        }
        let store = open_store(path, &settings)?;
        let meta = store.keyspace("meta", KeyspaceCreateOptions::default).map_err(error)?;
        sync_names(path)?;
        let version = starts.last().map_or(0, |start| start.version);
        let held = meta.get("version").map_err(error)?;
        let held = held.and_then(|v| v.as_ref().try_into().ok().map(i64::from_le_bytes)).unwrap_or(0);
        if held > version {
            return Err(ClaimsError::OlderVersion { path: path.to_path_buf(), held, asked: version });
        }
        let mut claims =
            Claims { path: path.to_path_buf(), meta, spans: BTreeMap::new(), settings, version, starts, store };
        for name in claims.store.list_keyspace_names() {
            if let Some(span) = Span::parse(&name) {
                claims.span(span)?;
            }
        }
        if held < version {
            claims.begin_versions_after(held)?;
        }
        Ok(claims)
    }

    /// Claims of older versions from the start of a newer one on are void: they are not there any more, as far as the
    /// check of a start is concerned. Also from the start of one that this store was never open for.
    fn begin_versions_after(&mut self, held: i64) -> Result<(), ClaimsError> {
        let mut write = self.store.batch();
        let mut lowered: BTreeMap<(LogId, Partition), Offset> = BTreeMap::new();
        for start in self.starts.iter().filter(|start| start.version > held) {
            for (partition, offset) in start.positions.iter() {
                let least = lowered.entry((start.log_id, partition)).or_insert(offset);
                *least = offset.min(*least);
            }
        }
        for ((log_id, partition), offset) in lowered {
            if self.through(log_id, partition)?.is_some_and(|held| held > offset) {
                write.insert(&self.meta, through_key(log_id, partition), offset.to_le_bytes());
            }
        }
        write.insert(&self.meta, "version", self.version.to_le_bytes());
        write.commit().map_err(|e| self.error(e))?;
        self.store.persist(PersistMode::SyncAll).map_err(|e| self.error(e))
    }

    /// The pipeline version that the store is open for.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Refuses to go on from `start` when the claims do not reach up to there.
    pub fn check_start(&self, log_id: LogId, start: &Offsets) -> Result<(), ClaimsError> {
        for (partition, start) in start.iter() {
            let through = self.reaches(log_id, partition)?;
            if through < start {
                return Err(ClaimsError::Lost { path: self.path.clone(), partition, through, start });
            }
        }
        Ok(())
    }

    /// The offsets before a version's start whose claims are not there: the version before it ended without a word after its
    /// last closing, which its last checkpoint did not reach.
    pub fn missing(&self, start: &VersionStart) -> Result<Vec<(Partition, Range<Offset>)>, ClaimsError> {
        let mut missing = Vec::new();
        for (partition, end) in start.positions.iter() {
            let through = self.reaches(start.log_id, partition)?;
            if through < end {
                missing.push((partition, through..end));
            }
        }
        Ok(missing)
    }

    /// Up to where the claims of a partition are there. Before the first version started there was nothing to claim.
    fn reaches(&self, log_id: LogId, partition: Partition) -> Result<Offset, ClaimsError> {
        let first = self.starts.first().filter(|first| first.log_id == log_id);
        let nothing = || first.map_or(0, |first| first.positions.get(partition));
        Ok(self.through(log_id, partition)?.unwrap_or_else(nothing))
    }

    /// Answers in the order asked: 1 for the first position that claims its impression within the horizon, else 0;
    /// `None` for a record that claims nothing. All of the batch is stored, or nothing.
    pub fn claim(&mut self, batch: &[Asked<'_>]) -> Result<Vec<Option<i64>>, ClaimsError> {
        let mut changed: HashMap<(Span, &str), Vec<Claim>> = HashMap::new();
        let mut answers = Vec::with_capacity(batch.len());
        for asked in batch {
            answers.push(match asked.key {
                Some(key) => Some(self.claim_one(key, asked, &mut changed)?),
                None => None,
            });
        }
        let mut write = self.store.batch();
        for ((span, key), claims) in &changed {
            let keyspace = self.span(*span)?;
            if claims.is_empty() {
                write.remove(&keyspace, stored_key(key).as_ref());
            } else {
                let mut bytes = Vec::with_capacity(claims.len() * Claim::BYTES);
                claims.iter().for_each(|claim| claim.write(&mut bytes));
                write.insert(&keyspace, stored_key(key).as_ref(), bytes);
            }
        }
        write.commit().map_err(|e| self.error(e))?;
        Ok(answers)
    }

    fn claim_one<'a>(
        &self,
        key: &'a str,
        asked: &Asked<'_>,
        changed: &mut HashMap<(Span, &'a str), Vec<Claim>>,
    ) -> Result<i64, ClaimsError> {
        let (at, horizon) = (asked.appended_at.get(), self.settings.horizon_ms);
        let own = Span::of(asked.appended_at, horizon);
        let mut first = true;
        // Spans that a claim within the horizon can be in: those on disk, and the one that this batch may begin.
        let on_disk = self.spans.keys().copied();
        let near = |span: &Span| span.start() < at.saturating_add(horizon) && span.end() > at.saturating_sub(horizon);
        let begun = [own.number - 1, own.number, own.number + 1].map(|number| Span { number, ..own });
        let spans: BTreeSet<Span> = on_disk.filter(near).chain(begun).collect();
        for span in spans {
            let Some(mut held) = self.held(span, key, changed)? else { continue };
            let before = held.len();
            held.retain(|claim| !self.is_void(claim));
            for claim in &held {
                let same =
                    claim.log_id == asked.log_id && claim.partition == asked.partition && claim.offset == asked.offset;
                if same {
                    return Ok(1);
                }
                let apart = (asked.appended_at.get() - claim.appended_at.get()).abs();
                first &= apart >= self.settings.horizon_ms;
            }
            if held.len() != before {
                changed.insert((span, key), held);
            }
        }
        if first {
            let claim = Claim {
                log_id: asked.log_id,
                partition: asked.partition,
                offset: asked.offset,
                appended_at: asked.appended_at,
                version: self.version,
            };
            let mut held = self.held(own, key, changed)?.unwrap_or_default();
            held.push(claim);
            changed.insert((own, key), held);
        }
        Ok(i64::from(first))
    }

    fn held(
        &self,
        span: Span,
        key: &str,
        changed: &HashMap<(Span, &str), Vec<Claim>>,
    ) -> Result<Option<Vec<Claim>>, ClaimsError> {
        if let Some(claims) = changed.get(&(span, key)) {
            return Ok(Some(claims.clone()));
        }
        let Some(keyspace) = self.spans.get(&span) else { return Ok(None) };
        let Some(bytes) = keyspace.get(stored_key(key).as_ref()).map_err(|e| self.error(e))? else { return Ok(None) };
        let damaged = |what| ClaimsError::Damaged { path: self.path.clone(), key: key.to_string(), what };
        if bytes.len() % Claim::BYTES != 0 {
            return Err(damaged("their length is wrong"));
        }
        let claims: Option<Vec<Claim>> = bytes.chunks_exact(Claim::BYTES).map(Claim::read).collect();
        claims.map(Some).ok_or_else(|| damaged("their form is wrong"))
    }

    /// A later version that started at or before a claim's position judges that record anew: its holder may be a
    /// bot under the new rules.
    fn is_void(&self, claim: &Claim) -> bool {
        self.starts.iter().any(|start| {
            start.version > claim.version
                && start.log_id == claim.log_id
                && claim.offset >= start.positions.get(claim.partition)
        })
    }

    fn span(&mut self, span: Span) -> Result<Keyspace, ClaimsError> {
        if let Some(keyspace) = self.spans.get(&span) {
            return Ok(keyspace.clone());
        }
        let options = || KeyspaceCreateOptions::default().max_memtable_size(self.settings.memory_bytes);
        let keyspace = self.store.keyspace(&span.name(), options).map_err(|e| self.error(e))?;
        sync_names(&self.path)?;
        self.spans.insert(span, keyspace.clone());
        Ok(keyspace)
    }

    /// Makes every claim durable that was answered so far, and says that they are those of all records before `next`.
    pub fn persist(&mut self, log_id: LogId, next: &Offsets) -> Result<(), ClaimsError> {
        let mut write = self.store.batch();
        for (partition, next) in next.iter() {
            // A replay must not lower it: what was claimed stays claimed.
            if self.through(log_id, partition)?.is_none_or(|held| next > held) {
                write.insert(&self.meta, through_key(log_id, partition), next.to_le_bytes());
            }
        }
        // One journal holds it in this order: where this can be read, the claims before it can be.
        write.commit().map_err(|e| self.error(e))?;
        self.store.persist(PersistMode::SyncAll).map_err(|e| self.error(e))
    }

    fn through(&self, log_id: LogId, partition: Partition) -> Result<Option<Offset>, ClaimsError> {
        let held = self.meta.get(through_key(log_id, partition)).map_err(|e| self.error(e))?;
        Ok(held.and_then(|bytes| bytes.as_ref().try_into().ok().map(i64::from_le_bytes)))
    }

    /// Drops the claims that no record appended at or after `at` can meet, not even in a replay.
    pub fn expire(&mut self, at: Millis) -> Result<(), ClaimsError> {
        let kept = self.settings.horizon_ms.saturating_add(KEPT_PAST_HORIZON_MS);
        let over = |span: Span| span.end().saturating_add(kept) <= at.get();
        let spans: Vec<Span> = self.spans.keys().copied().filter(|span| over(*span)).collect();
        for span in spans {
            if let Some(keyspace) = self.spans.remove(&span) {
                self.store.delete_keyspace(keyspace).map_err(|e| self.error(e))?;
            }
        }
        Ok(())
    }

    fn error(&self, error: fjall::Error) -> ClaimsError {
        ClaimsError::Store { path: self.path.clone(), error }
    }
}

fn open_store(path: &Path, settings: &ClaimsSettings) -> Result<Database, ClaimsError> {
    let store =
        Database::builder(path).cache_size(settings.memory_bytes).manual_journal_persist(true).worker_threads(1).open();
    store.map_err(|error| ClaimsError::Store { path: path.to_path_buf(), error })
}

/// Makes a store, as a whole or not at all. fjall alone, when the process dies while it makes one, leaves a folder that it can
/// neither open nor make anew. The names of its trees are not synced here: whoever opens it does so, and without them it is as
/// empty as with them.
fn make(path: &Path, settings: &ClaimsSettings) -> Result<(), ClaimsError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.aside"));
    if aside.is_dir() {
        durable::remove_dir_all(&aside)?;
    }
    if let Some(above) = path.parent() {
        durable::create_dir_all(above)?;
    }
    let error = |error| ClaimsError::Store { path: aside.clone(), error };
    let store = open_store(&aside, settings)?;
    store.keyspace("meta", KeyspaceCreateOptions::default).map_err(error)?;
    store.persist(PersistMode::SyncAll).map_err(error)?;
    drop(store);
    Ok(durable::rename(&aside, path)?)
}

/// fjall fsyncs what is in a keyspace's folder, and not the folder that names it: a power cut could take a keyspace as a
/// whole.
fn sync_names(path: &Path) -> Result<(), ClaimsError> {
    Ok(durable::sync_dir(&path.join("keyspaces"))?)
}

/// The impression's own text, where fjall takes it as a key: it panics at one that is empty, or longer than its length
/// field can say. In place of those stands their digest after a byte that no text begins with.
fn stored_key(impression: &str) -> Cow<'_, [u8]> {
    match impression.len() {
        1..=KEY_BYTES_MAX => Cow::Borrowed(impression.as_bytes()),
        _ => [&[0xff][..], &Sha256::digest(impression)].concat().into(),
    }
}

fn through_key(log_id: LogId, partition: Partition) -> String {
    format!("through:{log_id}:{partition}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: i64 = 86_400_000;
    const T0: i64 = 1_776_686_400_000;

    fn log_id() -> LogId {
        LogId::from_bytes([7; 16])
    }

    fn start(version: i64, offset: Offset) -> VersionStart {
        VersionStart { version, log_id: log_id(), positions: [(0, offset), (1, offset)].into_iter().collect() }
    }

    fn open(path: &Path, starts: Vec<VersionStart>) -> Claims {
        Claims::open(path, ClaimsSettings::default(), starts).unwrap()
    }

    fn ask<'a>(key: &'a str, offset: Offset, at: i64) -> Asked<'a> {
        let appended_at = Millis::new(T0 + at);
        Asked { key: Some(key), log_id: log_id(), partition: 0, offset, appended_at }
    }

    fn check(claims: &mut Claims, asked: &[Asked<'_>], expected: &[i64]) {
        let answers: Vec<i64> = claims.claim(asked).unwrap().into_iter().map(|a| a.unwrap_or(-1)).collect();
        assert_eq!(answers, expected);
    }

    #[test]
    fn the_first_position_wins_and_a_replay_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let batch = [ask("a", 0, 0), ask("b", 1, 0), ask("a", 2, 5), Asked { key: None, ..ask("", 3, 9) }];
        {
            let mut claims = open(dir.path(), vec![start(1, 0)]);
            check(&mut claims, &batch, &[1, 1, 0, -1]);
            check(&mut claims, &batch, &[1, 1, 0, -1]);
            claims.persist(log_id(), &[(0, 4)].into_iter().collect()).unwrap();
        }
        let mut claims = open(dir.path(), vec![start(1, 0)]);
        claims.check_start(log_id(), &[(0, 4)].into_iter().collect()).unwrap();
        check(&mut claims, &batch, &[1, 1, 0, -1]);
        check(&mut claims, &[ask("a", 9, 1000)], &[0]);
        let lost = claims.check_start(log_id(), &[(0, 11)].into_iter().collect()).unwrap_err();
        assert!(matches!(lost, ClaimsError::Lost { partition: 0, through: 4, start: 11, .. }), "{lost}");
    }

    #[test]
    fn a_store_that_was_not_made_whole_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claims");
        let aside = dir.path().join(".claims.aside");
        // fjall's first files: with them and no more it neither opens a store nor makes one.
        std::fs::create_dir_all(aside.join("keyspaces")).unwrap();
        std::fs::write(aside.join("0.jnl"), "").unwrap();
        assert!(open_store(&aside, &ClaimsSettings::default()).is_err());
        drop(open(&path, vec![start(1, 0)]));
        assert!(!aside.exists());
        drop(open(&path, vec![start(1, 0)]));
    }

    #[test]
    fn an_impression_of_any_length_can_be_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path(), vec![start(1, 0)]);
        let (longest, longer) = ("a".repeat(KEY_BYTES_MAX), "a".repeat(KEY_BYTES_MAX + 1));
        for (offset, key) in (0..).step_by(2).zip(["", "a", &longest, &longer]) {
            check(&mut claims, &[ask(key, offset, 0), ask(key, offset + 1, 0)], &[1, 0]);
        }
    }

    #[test]
    fn the_horizon_is_half_open_and_over_spans() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path(), vec![start(1, 0)]);
        check(
            &mut claims,
            &[ask("a", 0, 0), ask("a", 1, H - 1), ask("a", 2, H), ask("a", 3, 2 * H - 1)],
            &[1, 0, 1, 0],
        );
        claims.expire(Millis::new(T0 + 2 * H)).unwrap();
        check(&mut claims, &[ask("a", 4, 2 * H - 1)], &[0]);
        claims.expire(Millis::new(T0 + 9 * H)).unwrap();
        assert!(claims.spans.is_empty());
        check(&mut claims, &[ask("a", 5, 9 * H)], &[1]);
    }

    #[test]
    fn a_new_version_voids_claims_from_its_start_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path(), vec![start(1, 0)]);
        check(&mut claims, &[ask("a", 0, 0), ask("b", 5, 0), ask("b", 6, 1)], &[1, 1, 0]);
        drop(claims);
        // Under version 2 the record at offset 5 is a bot and does not ask: the one at 6 is the first.
        let mut claims = open(dir.path(), vec![start(1, 0), start(2, 5)]);
        check(&mut claims, &[ask("b", 6, 1), ask("a", 7, 1)], &[1, 0]);
        drop(claims);
        let changed = ClaimsSettings { horizon_ms: H / 2, ..ClaimsSettings::default() };
        let mut claims = Claims::open(dir.path(), changed, vec![start(1, 0), start(2, 5), start(3, 8)]).unwrap();
        check(&mut claims, &[ask("a", 8, H / 2 - 1), ask("a", 9, H / 2)], &[0, 1]);
        drop(claims);
        let older = Claims::open(dir.path(), ClaimsSettings::default(), vec![start(1, 0)]).err().unwrap();
        assert!(matches!(older, ClaimsError::OlderVersion { held: 3, asked: 1, .. }), "{older}");
    }

    /// Version 2 was deployed, and never ran here; it voids claims all the same, and they are missed before version 3.
    #[test]
    fn claims_that_a_version_in_between_voids_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path(), vec![start(1, 0)]);
        check(&mut claims, &[ask("a", 4, 0), ask("b", 6, 0)], &[1, 1]);
        claims.persist(log_id(), &[(0, 10), (1, 3)].into_iter().collect()).unwrap();
        drop(claims);
        let claims = open(dir.path(), vec![start(1, 0), start(2, 5), start(3, 8)]);
        assert_eq!(claims.missing(&start(3, 8)).unwrap(), [(0, 5..8), (1, 3..8)]);
    }

    /// The table that `claim_click` of a cluster, with its claims in Redis, is checked against as well.
    #[test]
    fn answers_are_those_of_the_table() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(include_str!("../../udfs/tests/claims.json")).unwrap();
        for case in cases {
            let dir = tempfile::tempdir().unwrap();
            let (mut starts, mut claims) = (Vec::new(), None);
            for step in case["steps"].as_array().unwrap() {
                if let Some(version) = step["version"].as_i64() {
                    drop(claims.take());
                    starts.push(start(version, step["start"].as_i64().unwrap()));
                    let horizon_ms = step["horizon_ms"].as_i64().unwrap_or(H);
                    let settings = ClaimsSettings { horizon_ms, ..ClaimsSettings::default() };
                    claims = Some(Claims::open(dir.path(), settings, starts.clone()).unwrap());
                    continue;
                }
                let asked: Vec<Asked<'_>> = step["asked"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|asked| {
                        let number = |at: usize| asked[at].as_i64().unwrap();
                        Asked {
                            key: asked[0].as_str(),
                            log_id: log_id(),
                            partition: number(1) as Partition,
                            offset: number(2),
                            appended_at: Millis::new(T0 + number(3)),
                        }
                    })
                    .collect();
                let expected: Vec<Option<i64>> =
                    step["answers"].as_array().unwrap().iter().map(|answer| answer.as_i64()).collect();
                assert_eq!(claims.as_mut().unwrap().claim(&asked).unwrap(), expected, "{}", case["name"]);
            }
        }
    }
}
