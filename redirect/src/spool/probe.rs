//! Looks at an idle spool's disk. It is needed when the log fails, and a disk that is full, read-only or gone must be known
//! before that: the first click that finds out is refused.
//!
//! It is asked for what the next file of the spool takes, not for the room that `bytes_max` would: what is free now is anybody's,
//! the log's as well, and promises nothing for later, while a redirect whose disk has room for a minute of clicks is better than
//! none. When the room is gone each look says so, and each click in the spool is a look.

use super::{Spool, SpoolError};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tally_log::durable::{self, File, FileError};
use tokio::task::JoinHandle;

/// How often, while nothing is put in and the last look was good. After a bad one, and after the spool failed, it looks at once
/// again.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// As much as a log makes room for at once.
const PROBE_BYTES: usize = 256 << 10;
/// How long the disk may take for it, the same as for a click.
const PROBE_WAIT: Duration = super::APPEND_WAIT;
const FILE: &str = "probe";

/// What is known of the last looks.
#[derive(Default)]
pub(super) struct Probe {
    looked_at: Option<Instant>,
    /// Clicks that were put in until then. Each is a better look than ours.
    spooled: u64,
    /// A look that is under way: there is never another beside it, however long a disk hangs.
    looking: Option<JoinHandle<Result<(), FileError>>>,
}

impl Spool {
    /// Looks, if it is time to. Waits for no longer than the disk may take.
    pub(super) async fn probe(&self, probe: &mut Probe) {
        let spooled = self.0.spooled.load(Ordering::Relaxed);
        let put_in = spooled != std::mem::replace(&mut probe.spooled, spooled);
        // Since it failed, which was later than any good look and any click that was put in, nothing is known.
        if self.current().is_ok() {
            if put_in {
                probe.looked_at = Some(Instant::now());
                return self.found(Ok(()));
            }
            let was_good = self.0.unfit.read().unwrap_or_else(PoisonError::into_inner).is_none();
            if was_good && probe.looked_at.is_some_and(|at| at.elapsed() < PROBE_EVERY) {
                return;
            }
        }
        let looking = probe.looking.get_or_insert_with(|| {
            let path = self.0.settings.dir.join(FILE);
            tokio::task::spawn_blocking(move || look(&path))
        });
        let found = match tokio::time::timeout(PROBE_WAIT, &mut *looking).await {
            Ok(ended) => {
                probe.looking = None;
                ended.map_err(|error| error.to_string()).and_then(|looked| looked.map_err(|error| error.to_string()))
            }
            Err(_) => Err(SpoolError::TimedOut(PROBE_WAIT).to_string()),
        };
        probe.looked_at = Some(Instant::now());
        self.found(found);
    }

    fn found(&self, found: Result<(), String>) {
        let mut unfit = self.0.unfit.write().unwrap_or_else(PoisonError::into_inner);
        match (&*unfit, &found) {
            (None, Err(error)) => tracing::error!(error, "the spool's disk does not take what would be put into it"),
            (Some(_), Ok(())) => tracing::info!("the spool's disk takes what would be put into it again"),
            _ => {}
        }
        *unfit = found.err();
    }
}

/// Dies the process in between, the file stays, and the next look removes it. Nothing of it has to be durable: the disk is
/// asked to take it, as it will be for a click.
fn look(path: &Path) -> Result<(), FileError> {
    if path.exists() {
        durable::remove_file(path)?;
    }
    // A new file, which needs its own room, as those of the log will.
    let file = File::create_new(path)?;
    let looked = file.write_all_at(&[b'.'; PROBE_BYTES], 0).and_then(|()| file.sync());
    // What the disk said of a click is the one to tell.
    let removed = durable::remove_file(path);
    looked.and(removed)
}
