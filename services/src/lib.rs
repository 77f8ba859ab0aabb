//! The real servers that tests run against: started on loopback, stopped with the test.
//!
//! A machine may not have one. Then the test passes and says what it skipped, unless `TALLY_SERVICES=required`, as in
//! `.ci/run`: then it fails.

#![forbid(unsafe_code)]

pub mod clickhouse;
pub mod kafka;
pub mod nginx;
pub mod redis;
pub mod tls;

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Answers `None` after saying that a test is skipped, and why; panics where every service must be there.
pub fn skip<T>(service: &str, why: &str) -> Option<T> {
    let required = std::env::var("TALLY_SERVICES").is_ok_and(|value| value == "required");
    assert!(!required, "TALLY_SERVICES=required, but {service}: {why}");
    eprintln!("skipped, no {service}: {why}");
    None
}

/// A program found in `PATH`.
pub fn found(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

/// A port on loopback that nothing listens on now. It is below those that the kernel gives to outgoing connections, one of
/// which could take it before a server does, and no two calls of a process get the same.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let ports = (0..COUNT).map(|_| {
        // Processes begin far from each other.
        let number = std::process::id().wrapping_mul(997).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
        (FIRST + number % COUNT) as u16
    });
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("loopback has a free port")
}

/// A server process of a test's own. Killed when dropped, by its id.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Starts a program that listens on `port`, and waits until something answers there. What it prints goes to
    /// `output`.
    pub fn start(mut command: Command, port: u16, output: &Path, wait: Duration) -> Server {
        let file = std::fs::File::options().create(true).append(true).open(output);
        let file = file.unwrap_or_else(|error| panic!("cannot write {}: {error}", output.display()));
        let again = file.try_clone().expect("a file can be opened twice");
        // A pipe that nobody writes to: it is closed when this process ends, however it ends, and a server may take that
        // for its own end.
        let child = command.stdin(Stdio::piped()).stdout(file).stderr(again).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut server = Server { child, port };
        let until = Instant::now() + wait;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let printed = || std::fs::read_to_string(output).unwrap_or_default();
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("{command:?} ended with {status}:\n{}", printed());
            }
            assert!(Instant::now() < until, "{command:?} does not listen on {port}:\n{}", printed());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, e.g. `STOP` or `CONT`.
    pub fn signal(&self, name: impl AsRef<OsStr>) {
        let mut kill = Command::new("kill");
        let status = kill.arg("-s").arg(name).arg(self.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot signal process {}", self.id());
    }

    /// Waits for a process that was told to stop; after `wait` it is killed, which its status tells.
    pub fn wait(mut self, wait: Duration) -> ExitStatus {
        let until = Instant::now() + wait;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                _ => {
                    let _ = self.child.kill();
                    return self.child.wait().expect("a killed child can be waited for");
                }
            }
        }
    }

    /// Whether it is no more.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// kill -9, as a crash.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
