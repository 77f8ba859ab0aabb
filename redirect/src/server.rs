//! Connections: bounded in number, in the size and time of what they may send, and drained at a stop.

use crate::service::Service;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Largest request line and headers together. nginx allows about as much. Their number is hyper's default, 100:
/// setting it would cost an allocation a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long to wait after the kernel refused a connection, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `service` on `listener`, heartbeats included, until `shutdown` resolves. Then it takes no more connections,
/// finishes the requests under way, waits until the log has answered for every click, and returns; all that for at
/// most [`crate::Settings::drain_wait`]. A click that is cut off by the end of that time was not answered.
pub async fn serve(listener: TcpListener, service: Service, shutdown: impl Future<Output = ()>) {
    let connections_max = service.settings().connections_max.max(1);
    // Connections learn of the stop from this channel.
    let (stop, stopping) = watch::channel(false);
    let router = TowerToHyperService::new(service.router());
    let mut connections = JoinSet::new();
    let mut heartbeats = JoinSet::new();
    let beating = service.clone();
    heartbeats.spawn(async move { beating.heartbeats().await });
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                Ok((stream, peer)) => {
                    let router = router.clone();
                    let answer = move |mut request: Request<Incoming>| {
                        request.extensions_mut().insert(ConnectInfo(peer));
                        router.call(request)
                    };
                    connections.spawn(connection(stream, answer, service.settings().head_wait, stopping.clone()));
                }
                Err(error) => refused(error).await,
            },
        }
    }
    drop(listener);
    // Nobody listens when there are no connections.
    let _ = stop.send(true);
    let drained = async {
        while connections.join_next().await.is_some() {}
        service.appender().drained().await;
    };
    if tokio::time::timeout(service.settings().drain_wait, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "stopped before everything was answered");
    }
    // Dropping the sets ends what is left in them.
}

/// One connection, until it ends or is told to stop after the request under way.
async fn connection<A, F>(stream: TcpStream, answer: A, head_wait: Duration, mut stopping: watch::Receiver<bool>)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    // An answer is one small packet: waiting for more would only delay it. Without the option it works, too.
    let _ = stream.set_nodelay(true);
    let served = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(head_wait)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut served = pin!(served);
    let ended = tokio::select! {
        outcome = &mut served => Some(outcome),
        // The channel ends with `serve`, which is a stop as well.
        _ = async { stopping.wait_for(|stop| *stop).await.is_ok() } => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        // A client that went away or sent no HTTP: usual on the open internet.
        tracing::debug!(%error, "connection ended");
    }
}

/// A connection that was not accepted is the client's loss, or the lack of something that others will give back.
async fn refused(error: io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "connection not accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
