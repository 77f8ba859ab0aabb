//! A redis-server of a test's own.

use crate::{Server, found, free_port, skip};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long redis-server may take to listen, on a busy machine.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long it may take to answer a command.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// What makes a Redis keep every claim that it has acknowledged.
pub const DURABLE: [(&str, &str); 3] =
    [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")];

/// A redis-server on a port of loopback, with its files in a folder of the test. Killed when dropped.
pub struct Redis {
    /// None while it is stopped.
    server: Option<Server>,
    dir: PathBuf,
    options: Vec<(String, String)>,
    port: u16,
}

impl Redis {
    /// Starts redis-server with `options` of its configuration, on what `dir` holds; `None`, said aloud, where there is
    /// no such program.
    pub fn start(dir: &Path, options: &[(&str, &str)]) -> Option<Redis> {
        if !found("redis-server") {
            return skip("redis-server", "it is not in PATH");
        }
        let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let mut redis = Redis { server: None, dir: dir.to_path_buf(), options, port: free_port() };
        redis.start_again();
        Some(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it after [`Redis::kill`], on the same port, with what is in its folder now.
    pub fn start_again(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--dir"]).arg(&self.dir);
        for (name, value) in &self.options {
            command.args([&format!("--{name}"), value]);
        }
        self.server = Some(Server::start(command, self.port, &self.dir.join("redis.log"), START_WAIT));
        // It listens before it has loaded its data.
        let until = Instant::now() + START_WAIT;
        while !self.try_call(&["PING"]).is_ok_and(|answer| answer.starts_with("+PONG")) {
            assert!(Instant::now() < until, "redis-server does not load {}", self.dir.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Stops it from running, with its connections open, until [`Redis::resume`].
    pub fn pause(&self) {
        self.running().signal("STOP");
    }

    pub fn resume(&self) {
        self.running().signal("CONT");
    }

    /// Sends one command, and gives the answer as it comes: `+OK`, `:1`, `-ERR …`, `$5`, each ended with CR LF.
    pub fn call(&self, command: &[&str]) -> String {
        self.try_call(command).unwrap_or_else(|error| panic!("redis-server does not answer {command:?}: {error}"))
    }

    fn try_call(&self, command: &[&str]) -> std::io::Result<String> {
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER_WAIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = vec![0; 64 * 1024];
        let bytes = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..bytes]).into_owned())
    }

    fn running(&self) -> &Server {
        self.server.as_ref().expect("redis-server was not killed")
    }
}
