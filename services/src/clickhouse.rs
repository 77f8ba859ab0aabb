//! ClickHouse: the server that `CLICKHOUSE_URL` names, with `CLICKHOUSE_USER` and `CLICKHOUSE_PASSWORD`; else its engine
//! behind `dev/clickhouse`, started once a test binary, which ends with the binary.

use crate::{Server, free_port, skip};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// A server that answers.
pub struct ClickHouse {
    /// `http://host:port`
    pub url: String,
    /// User and password.
    pub user: Option<(String, String)>,
    server: Option<Server>,
}

/// A statement that the server did not carry out is a mistake of the test's.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

impl ClickHouse {
    /// The one that all tests of this binary share, or `None` after saying why there is none.
    pub fn shared() -> Option<&'static ClickHouse> {
        static SHARED: OnceLock<Option<ClickHouse>> = OnceLock::new();
        SHARED.get_or_init(ClickHouse::start).as_ref()
    }

    fn start() -> Option<ClickHouse> {
        if let Ok(url) = std::env::var("CLICKHOUSE_URL") {
            let password = std::env::var("CLICKHOUSE_PASSWORD").unwrap_or_default();
            let user = std::env::var("CLICKHOUSE_USER").ok().map(|user| (user, password));
            return Some(ClickHouse { url: url.trim_end_matches('/').to_string(), user, server: None });
        }
        let output = std::env::temp_dir().join(format!("tally-clickhouse-{}.log", std::process::id()));
        ClickHouse::engine(&[], free_port(), &output)
    }

    /// An engine of a test's own with its tables in this folder, so that it can be killed and started again.
    pub fn start_in(folder: &Path, port: u16) -> Option<ClickHouse> {
        let tables = folder.join("tables");
        ClickHouse::engine(&["--dir".as_ref(), tables.as_os_str()], port, &folder.join("clickhouse.log"))
    }

    fn engine(arguments: &[&OsStr], port: u16, output: &Path) -> Option<ClickHouse> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/clickhouse");
        let fetched = Command::new(&program).arg("check").output();
        match fetched {
            Ok(output) if output.status.success() => {}
            Ok(output) => return skip("ClickHouse", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => return skip("ClickHouse", &format!("cannot run {}: {error}", program.display())),
        }
        let mut command = Command::new(&program);
        command.args(["run", "--follow", "--port"]).arg(port.to_string()).args(arguments);
        let server = Server::start(command, port, output, Duration::from_secs(60));
        let url = format!("http://127.0.0.1:{port}");
        Some(ClickHouse { url, user: None, server: Some(server) })
    }

    /// kill -9, if it is an engine of this test's.
    pub fn kill(self) {
        if let Some(server) = self.server {
            server.kill();
        }
    }

    /// Sends a signal, e.g. `STOP` or `CONT`, if it is an engine of this test's.
    pub fn signal(&self, name: &str) {
        if let Some(server) = &self.server {
            server.signal(name);
        }
    }

    /// Runs a statement and answers its text.
    pub fn query(&self, statement: &str) -> String {
        let address = self.url.trim_start_matches("http://");
        let asked = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(STATEMENT_TIMEOUT))?;
            let user = self
                .user
                .as_ref()
                .map(|(user, password)| format!("X-ClickHouse-User: {user}\r\nX-ClickHouse-Key: {password}\r\n"));
            let (user, length) = (user.unwrap_or_default(), statement.len());
            // In version 1.0 an answer comes as it is, and ends with the connection.
            let head = format!("POST / HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n{user}\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(statement.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        });
        let answer = asked.unwrap_or_else(|error| panic!("{}: {error}: {statement}", self.url));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.split(' ').nth(1) == Some("200"), "{statement}: {answer}");
        body.to_string()
    }
}

/// A database of a test's own, dropped with it.
pub struct Database {
    pub server: &'static ClickHouse,
    pub name: String,
}

impl Database {
    /// A name that no other test has. The database itself is for the test to make.
    pub fn new(server: &'static ClickHouse) -> Database {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("tally_test_{}_{}_{number}", std::process::id(), since.as_millis());
        Database { server, name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A test that fails is told of its own failure, not of this one's.
        if !std::thread::panicking() {
            self.server.query(&format!("DROP DATABASE IF EXISTS {}", self.name));
        }
    }
}
