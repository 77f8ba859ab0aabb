//! Parts that count may fail and begin again; the redirect goes on meanwhile.
//!
//! What they work on is durable: a runner goes on from its checkpoint, a loader from the last closing, and whatever
//! was answered waits for them in the log. So a failure of theirs costs time, not clicks, and must not cost any.

use anyhow::{Error, Result};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pauses between tries, the shortest and the longest.
pub const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The parts that do not work at the moment, and why.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Troubles {
    /// The first of them, as a sentence.
    pub fn first(&self) -> Option<String> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().next().map(|(part, why)| format!("the {part} failed and is tried again: {why}"))
    }

    fn set(&self, part: &'static str, why: Option<String>) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => troubles.insert(part, why),
            None => troubles.remove(part),
        };
    }
}

/// Runs a part until it ends by itself, which it does when it is told to stop. One that fails is opened again after a
/// pause, which doubles while it fails at once. Without a `first` it is opened at once.
///
/// # Errors
///
/// The last failure, if `stop` resolves before the part works again.
pub async fn supervise<T, O, R>(
    part: &'static str,
    troubles: Troubles,
    [pause_min, pause_max]: [Duration; 2],
    first: Option<T>,
    open: impl Fn() -> O,
    run: impl Fn(T) -> R,
    stop: impl Future<Output = ()>,
) -> Result<()>
where
    O: Future<Output = Result<T>>,
    R: Future<Output = Result<()>>,
{
    let mut stop = std::pin::pin!(stop);
    let mut opened = first;
    let mut pause = pause_min;
    loop {
        let began = Instant::now();
        let opening = async {
            match opened.take() {
                Some(opened) => Ok(opened),
                None => open().await,
            }
        };
        let result = tokio::select! {
            () = &mut stop => return Ok(()),
            opened = opening => opened,
        };
        let result = match result {
            Ok(opened) => {
                troubles.set(part, None);
                run(opened).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = result else { return Ok(()) };
        if began.elapsed() > pause_max {
            pause = pause_min;
        }
        tracing::error!(part, error = describe(&error), again_in_s = pause.as_secs(), "failed; clicks are taken on");
        troubles.set(part, Some(describe(&error)));
        tokio::select! {
            () = &mut stop => return Err(error),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(pause_max);
    }
}

fn describe(error: &Error) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_part_that_failed_begins_again_and_its_trouble_is_known_meanwhile() {
        let troubles = Troubles::default();
        let opened = AtomicU32::new(0);
        let open = || async {
            match opened.fetch_add(1, Ordering::SeqCst) {
                0 => Err(anyhow!("not yet")),
                n => Ok(n),
            }
        };
        let seen = Mutex::new(Vec::new());
        let run = |n: u32| {
            seen.lock().unwrap().push((n, troubles.first()));
            async move { if n == 2 { Ok(()) } else { Err(anyhow!("disk").context("loader")) } }
        };
        let pauses = [Duration::from_millis(1), Duration::from_millis(2)];
        supervise("loader", troubles.clone(), pauses, Some(0), open, run, std::future::pending()).await.unwrap();
        assert_eq!(seen.into_inner().unwrap(), [(0, None), (1, None), (2, None)]);

        let stop = tokio::time::sleep(Duration::from_millis(20));
        let failing =
            supervise("loader", troubles.clone(), PAUSES, Some(1), open, |_| async { Err(anyhow!("disk")) }, stop);
        assert_eq!(failing.await.unwrap_err().to_string(), "disk");
        assert_eq!(troubles.first().unwrap(), "the loader failed and is tried again: disk");
    }
}
