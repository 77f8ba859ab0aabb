//! Parts of the redirect that have no end.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a part that died stays away: long enough not to fill the log, short enough for heartbeats.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a part, and begins it again if it panics, which is said: without heartbeats time stands still for the pipeline, and
/// what waits in the spool may not wait for an operator. The part ends with whoever drops this.
pub(crate) async fn for_ever<P: Future<Output = ()> + Send + 'static>(what: impl Display, begin: impl Fn() -> P) {
    loop {
        // A set of one, which ends it when this is dropped.
        let mut running = JoinSet::new();
        running.spawn(begin());
        if let Some(Err(error)) = running.join_next().await {
            tracing::error!(%what, %error, "a part of the redirect died; it begins again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
