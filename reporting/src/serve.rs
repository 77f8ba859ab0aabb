//! Connections, and their end.

use axum::Router;
use std::future::{Future, IntoFuture};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How long requests that run at a stop may still take. Reading changes nothing, so one that is cut off loses nothing.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Serves until `shutdown` resolves; then takes no new connection, and returns when the running requests are answered
/// or after five seconds. What still runs then ends with the runtime.
///
/// # Errors
///
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stop, stopping) = oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        // The receiver is gone only if nobody waits for the drain any more.
        let _ = stop.send(());
    });
    let drained_too_long = async {
        if stopping.await.is_err() {
            // The server ended by itself: its own result is the one to return.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = drained_too_long => {
            tracing::warn!(seconds = DRAIN_MAX.as_secs(), "stopped while requests were still running");
            Ok(())
        }
    }
}
