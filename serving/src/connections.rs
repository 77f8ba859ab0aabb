//! Connections: bounded in number, in the size and time of what they may send, in the time that they may leave answers unread,
//! and drained at a stop.

use axum::Router;
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
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

/// Largest request line and headers together. nginx allows about as much. Their number is hyper's default, 100:
/// setting it would cost an allocation a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long to wait after the kernel refused a connection, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Open files that connections must leave to everything else: a process writes to some, and must be able to open more.
const FILES_KEPT: usize = 512;

/// Connections that are allowed however few files may be open: with fewer a service is none.
const CONNECTIONS_MIN: usize = 64;

/// As many connections as asked for, or as the limit on open files (`ulimit -n`) leaves room for: clients must not be able
/// to take the files that their clicks are written to.
pub fn connections_max(asked: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // Where nothing is said, or "unlimited", there is no limit to keep to.
    let files = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    files.map_or(asked, |files| fitting(asked, files))
}

fn fitting(asked: usize, files: usize) -> usize {
    asked.min(files.saturating_sub(FILES_KEPT).max(CONNECTIONS_MIN))
}

/// What connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that may be open at once, at least one. Others wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a request's head may take to arrive, and so how long a connection may be idle. As long a client may take
    /// nothing of an answer.
    pub head_wait: Duration,
    /// How long a stop waits for answers under way.
    pub drain_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections_max: 1_000, head_wait: Duration::from_secs(30), drain_wait: Duration::from_secs(5) }
    }
}

/// Listens on an address.
///
/// # Errors
///
/// Those of the system, with the address and `what` was to listen there.
pub async fn bind(what: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let refused =
        |error: io::Error| io::Error::new(error.kind(), format!("{what}: cannot listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(refused)
}

/// Serves `router` on `listener` until `shutdown` resolves. Each request carries the client's address as
/// [`ConnectInfo<SocketAddr>`](ConnectInfo). Then it takes no more connections, finishes the requests under way for at
/// most [`Limits::drain_wait`], and returns how much of that time is left; what still runs then is cut off.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Duration {
    let connections_max = limits.connections_max.max(1);
    // Connections learn of the stop from this channel.
    let (stop, stopping) = watch::channel(false);
    let router = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
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
                    connections.spawn(connection(stream, answer, limits.head_wait, stopping.clone()));
                }
                Err(error) => refused(error).await,
            },
        }
    }
    drop(listener);
    // Nobody listens when there are no connections.
    let _ = stop.send(true);
    let until = Instant::now() + limits.drain_wait;
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout_at(until, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "stopped before everything was answered");
    }
    // Dropping the set ends what is left in it.
    until.saturating_duration_since(Instant::now())
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
        .serve_connection(TokioIo::new(Written::within(head_wait, stream)), service_fn(answer));
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

/// A stream that fails when it could write nothing for some time. hyper bounds how long a request may take to arrive, and not
/// how long an answer may take to leave: a client that sends requests and reads no answers would keep its connection for ever.
/// The kernel's TCP_USER_TIMEOUT is no bound either, since a living client with a full buffer acknowledges the probes.
struct Written<S> {
    stream: S,
    wait: Duration,
    /// Runs from the first write that had to wait until the next that did not: the usual answer, which the kernel takes at
    /// once, has none.
    over: Option<Pin<Box<Sleep>>>,
}

impl<S> Written<S> {
    fn within(wait: Duration, stream: S) -> Self {
        Written { stream, wait, over: None }
    }

    /// What a write comes to.
    fn bounded(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.over = None;
            return written;
        }
        let wait = self.wait;
        let over = self.over.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        std::task::ready!(over.as_mut().poll(context));
        let message = format!("the client took nothing of its answers for {wait:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Written<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Written<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.bounded(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_the_rest() {
        let check = |asked, files, expected| assert_eq!(fitting(asked, files), expected, "{asked} of {files}");
        check(10_000, 1_048_576, 10_000);
        check(10_000, 1_024, 512);
        check(10_000, 256, 64);
        check(8, 1_024, 8);
        check(8, 256, 8);
    }
}
