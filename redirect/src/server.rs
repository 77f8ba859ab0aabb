//! The redirect on its listener, and its stop.

use crate::for_ever::for_ever;
use crate::service::Service;
use serving::Limits;
use std::future::Future;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Serves `service` on `listener`, heartbeats included, until `shutdown` resolves. Then it takes no more connections,
/// finishes the requests under way, waits until the log has answered for every click, and returns; all that for at
/// most [`crate::Settings::drain_wait`]. A click that is cut off by the end of that time was not answered.
pub async fn serve(listener: TcpListener, service: Service, shutdown: impl Future<Output = ()>) {
    let mut beside = JoinSet::new();
    let of = service.clone();
    beside.spawn(for_ever("heartbeats", move || {
        let service = of.clone();
        async move { service.heartbeats().await }
    }));
    let of = service.clone();
    beside.spawn(for_ever("what follows files and sends the spool", move || {
        let service = of.clone();
        async move { service.beside().await }
    }));
    let settings = service.settings();
    let limits = Limits {
        connections_max: settings.connections_max,
        head_wait: settings.head_wait,
        drain_wait: settings.drain_wait,
    };
    let left = serving::serve(listener, service.router(), limits, shutdown).await;
    if tokio::time::timeout(left, service.appender().drained()).await.is_err() {
        tracing::warn!("stopped before the log had answered for every click");
    }
    // Dropping the set ends the heartbeats and what else runs beside. What is in the spool is on disk.
}
