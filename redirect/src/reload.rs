//! Files that an operator changes while the service runs: a good new version takes the place of the old one between two
//! requests, a bad one is refused, and said so.
//!
//! A file that is written in place can be read half, and half a catalog that ends at a line's end is a good catalog. So a
//! version is loaded once two looks found the same, and taken if it is still the same after that. A writer that pauses for
//! longer than a look is not seen through: a rename, which puts the whole in place at once, is the safe way.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Load<T> = Box<dyn Fn(&Path) -> Result<T, Refusal> + Send + Sync>;

/// Why a version is not taken.
struct Refusal {
    why: String,
    /// Whether the same version may be good the next time: it could not be read now.
    passes: bool,
}

/// An error of loading a file.
pub trait LoadError: Display {
    /// What the system said, if the file could not be read.
    fn io(&self) -> Option<&io::Error>;
}

impl LoadError for io::Error {
    fn io(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl Refusal {
    fn of(error: impl LoadError) -> Refusal {
        // These two are what readers say of the contents.
        let of_contents = |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Other);
        Refusal { why: error.to_string(), passes: error.io().is_some_and(|error| !of_contents(error)) }
    }
}

/// What a file says, as it was when it was last good.
pub struct Reloaded<T> {
    name: &'static str,
    /// None for what does not come from a file.
    file: Option<(PathBuf, Load<T>)>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
    /// Why the newest version was refused.
    refused: Mutex<Option<String>>,
    refusals: AtomicU64,
}

/// What is known of the file.
#[derive(Default)]
struct Seen {
    /// The version that was taken or refused.
    judged: Option<Stamp>,
    /// The version at the last look, if it was another one.
    waits: Option<Stamp>,
}

/// What tells one version of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp { inode: found.ino(), bytes: found.len(), changed: (found.mtime(), found.mtime_nsec()) })
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Loads a file for the first time. `name` is what it is called in messages.
    ///
    /// # Errors
    /// What `load` says: there is no older version to go on with.
    pub fn open<E: LoadError>(
        path: &Path,
        name: &'static str,
        load: impl Fn(&Path) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, E> {
        // A change while it is read is seen at the next look.
        let seen = stamp(path);
        let current = load(path)?;
        let load = Box::new(move |path: &Path| load(path).map_err(Refusal::of));
        Ok(Arc::new(Self::new(name, current, Some((path.to_owned(), load)), seen)))
    }

    /// What never changes.
    pub fn fixed(name: &'static str, value: T) -> Arc<Self> {
        Arc::new(Self::new(name, value, None, None))
    }

    fn new(name: &'static str, value: T, file: Option<(PathBuf, Load<T>)>, seen: Option<Stamp>) -> Self {
        Reloaded {
            name,
            file,
            current: RwLock::new(Arc::new(value)),
            seen: Mutex::new(Seen { judged: seen, waits: None }),
            refused: Mutex::default(),
            refusals: AtomicU64::new(0),
        }
    }

    /// The version to go by. Whoever holds it keeps it, whatever comes after.
    pub fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the newest version of the file was refused, if it was.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many versions were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Loads the file if it is another one than was judged, and the same one as at the last look. Blocks while it does.
    pub fn look(&self) {
        let Some((path, load)) = &self.file else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(path);
        // A file that is gone is on its way to be replaced, as a rule: what is known goes on.
        if now.is_none() || seen.judged == now {
            seen.waits = None;
            return;
        }
        if seen.waits != now {
            // It may be half written.
            seen.waits = now;
            return;
        }
        let loaded = load(path);
        let after = stamp(path);
        if after != now {
            seen.waits = after;
            return;
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(value) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!(file = %path.display(), "the {} was loaded again", self.name);
                *refused = None;
                seen.judged = now;
            }
            // It is tried again at every look, and said once.
            Err(Refusal { why, passes: true }) if refused.as_ref() == Some(&why) => {}
            Err(Refusal { why, passes }) => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error = why, "the new {} is refused; the old one goes on", self.name);
                *refused = Some(why);
                if !passes {
                    seen.judged = now;
                }
            }
        }
    }

    /// Looks at the file for ever; whoever drops this stops it.
    pub async fn follow(self: Arc<Self>) {
        if self.file.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let this = self.clone();
            // A large file takes seconds, and no answer is to wait for that. A panic in it leaves the old version.
            if let Err(error) = tokio::task::spawn_blocking(move || this.look()).await {
                tracing::error!(%error, "the {} could not be looked at; the old one goes on", self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<i32, io::Error> {
        let text = std::fs::read_to_string(path)?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{text:?} is no number")))
    }

    #[test]
    fn a_good_version_takes_over_and_a_bad_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        assert!(Reloaded::open(&path, "number", number).is_err());
        std::fs::write(&path, "1").unwrap();
        let reloaded = Reloaded::open(&path, "number", number).unwrap();
        let held = reloaded.current();
        let check = |text: Option<&str>, expected: i32, refused: Option<&str>| {
            match text {
                Some(text) => {
                    // A rename, as careful tools do it: another inode.
                    std::fs::write(dir.path().join("new"), text).unwrap();
                    std::fs::rename(dir.path().join("new"), &path).unwrap();
                }
                None => std::fs::remove_file(&path).unwrap(),
            }
            reloaded.look();
            reloaded.look();
            assert_eq!((*reloaded.current(), reloaded.refused().as_deref()), (expected, refused));
        };
        check(Some("2"), 2, None);
        check(Some("x"), 2, Some(r#""x" is no number"#));
        check(None, 2, Some(r#""x" is no number"#));
        check(Some("3"), 3, None);
        assert_eq!((*held, reloaded.refusals()), (1, 1));
    }

    /// The file's lines, however many there are: half of them are as good as all.
    fn lines(path: &Path) -> Result<Vec<String>, io::Error> {
        Ok(std::fs::read_to_string(path)?.lines().map(str::to_owned).collect())
    }

    fn append(path: &Path, line: &str) {
        use std::io::Write;
        writeln!(std::fs::File::options().append(true).open(path).unwrap(), "{line}").unwrap();
    }

    #[test]
    fn a_file_that_is_written_in_place_is_taken_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        std::fs::write(&path, "old\n").unwrap();
        let reloaded = Reloaded::open(&path, "lines", lines).unwrap();
        std::fs::write(&path, "").unwrap();
        for line in ["1", "2", "3"] {
            reloaded.look();
            assert_eq!(*reloaded.current(), ["old"], "before {line}");
            append(&path, line);
        }
        reloaded.look();
        assert_eq!(*reloaded.current(), ["old"]);
        reloaded.look();
        assert_eq!(*reloaded.current(), ["1", "2", "3"]);
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        std::fs::write(&path, "1\n").unwrap();
        let growing = |path: &Path| {
            let read = lines(path);
            if read.as_ref().is_ok_and(|lines| lines.len() == 2) {
                append(path, "3");
            }
            read
        };
        let reloaded = Reloaded::open(&path, "lines", growing).unwrap();
        append(&path, "2");
        for _ in 0..2 {
            reloaded.look();
            assert_eq!(*reloaded.current(), ["1"]);
        }
        reloaded.look();
        assert_eq!(*reloaded.current(), ["1", "2", "3"]);
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_error() {
        // A folder can be opened, and not read.
        let dir = tempfile::tempdir().unwrap();
        assert!(Refusal::of(crate::Catalog::load(dir.path()).err().unwrap()).passes);
        assert!(Refusal::of(crate::block::Blocks::load(dir.path()).err().unwrap()).passes);
        assert!(Refusal::of(crate::country::Countries::load(dir.path()).err().unwrap()).passes);
        let wrong = dir.path().join("wrong");
        std::fs::write(&wrong, b"\xff").unwrap();
        assert!(!Refusal::of(crate::Catalog::load(&wrong).err().unwrap()).passes);
        assert!(!Refusal::of(crate::block::Blocks::load(&wrong).err().unwrap()).passes);
        assert!(!Refusal::of(crate::country::Countries::load(&wrong).err().unwrap()).passes);
    }

    #[test]
    fn a_file_that_could_not_be_read_is_read_again_though_it_did_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let failing = fails.clone();
        let load = move |path: &Path| match failing.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::StaleNetworkFileHandle)),
            false => number(path),
        };
        let reloaded = Reloaded::open(&path, "number", load).unwrap();
        fails.store(true, Ordering::Relaxed);
        std::fs::write(&path, "22").unwrap();
        (0..4).for_each(|_| reloaded.look());
        assert_eq!((*reloaded.current(), reloaded.refusals()), (1, 1), "said once");
        assert!(reloaded.refused().is_some());
        fails.store(false, Ordering::Relaxed);
        reloaded.look();
        assert_eq!((*reloaded.current(), reloaded.refused()), (22, None));
    }
}
