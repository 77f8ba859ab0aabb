//! Files that an operator changes while the service runs: a good new version takes the place of the old one between two
//! requests, a bad one is refused, and said so.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Load<T> = Box<dyn Fn(&Path) -> Result<T, String> + Send + Sync>;

/// What a file says, as it was when it was last good.
pub struct Reloaded<T> {
    name: &'static str,
    /// None for what does not come from a file.
    file: Option<(PathBuf, Load<T>)>,
    current: RwLock<Arc<T>>,
    /// What tells one version of the file from the next, as it was before the last try.
    seen: Mutex<Option<Stamp>>,
    /// Why the newest version was refused.
    refused: Mutex<Option<String>>,
    refusals: AtomicU64,
}

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
    pub fn open<E: Display + From<std::io::Error>>(
        path: &Path,
        name: &'static str,
        load: impl Fn(&Path) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, E> {
        // A change while it is read is seen at the next look.
        let seen = stamp(path);
        let current = load(path)?;
        let load = Box::new(move |path: &Path| load(path).map_err(|error| error.to_string()));
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
            seen: Mutex::new(seen),
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

    /// Loads the file if it is another one than at the last look. Blocks while it does.
    pub fn look(&self) {
        let Some((path, load)) = &self.file else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(path);
        // A file that is gone is on its way to be replaced, as a rule: what is known goes on.
        if now.is_none() || *seen == now {
            return;
        }
        *seen = now;
        let loaded = load(path);
        let refused = match loaded {
            Ok(value) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!(file = %path.display(), "the {} was loaded again", self.name);
                None
            }
            Err(error) => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error, "the new {} is refused; the old one goes on", self.name);
                Some(error)
            }
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
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
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<i32, std::io::Error> {
        let text = std::fs::read_to_string(path)?;
        text.trim().parse().map_err(|_| std::io::Error::other(format!("{text:?} is no number")))
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
            assert_eq!((*reloaded.current(), reloaded.refused().as_deref()), (expected, refused));
        };
        check(Some("2"), 2, None);
        check(Some("x"), 2, Some(r#""x" is no number"#));
        check(None, 2, Some(r#""x" is no number"#));
        check(Some("3"), 3, None);
        assert_eq!((*held, reloaded.refusals()), (1, 1));
    }
}
