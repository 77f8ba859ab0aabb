//! Apache Kafka, one broker or several, started by `dev/kafka`.

use crate::{Server, free_port, skip};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A Java machine starts in seconds; in many when others want the processors.
const START_WAIT: Duration = Duration::from_secs(120);

/// What a broker prints when it has started.
const STARTED: &str = "Kafka Server started";

fn dev_kafka() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/kafka"))
}

/// Why no broker can be started here.
fn missing() -> Option<String> {
    match dev_kafka().arg("ready").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("cannot run dev/kafka: {error}")),
    }
}

/// The port of a broker that all tests of this process share, each with topics of its own. It ends with the process.
pub fn shared() -> Option<u16> {
    static BROKER: OnceLock<Result<Server, String>> = OnceLock::new();
    let broker = BROKER.get_or_init(|| {
        if let Some(why) = missing() {
            return Err(why);
        }
        let port = free_port();
        let output = std::env::temp_dir().join(format!("kafka-{}-{port}.out", std::process::id()));
        let mut command = dev_kafka();
        command.args(["run", "--temporary", "--port", &port.to_string()]);
        let server = Server::start(command, port, &output, START_WAIT);
        // It is written to, and read by nobody, once the broker is there.
        let _ = std::fs::remove_file(output);
        Ok(server)
    });
    match broker {
        Ok(server) => Some(server.port),
        Err(why) => skip("Kafka", why),
    }
}

/// A broker of a test's own, which can be killed, stopped and started again on the same port and data.
pub struct Kafka {
    dir: PathBuf,
    port: u16,
    /// Its number in the cluster; node 1 is the controller, too.
    node: u32,
    /// Where node 1 has its data, if this is another one.
    first: Option<PathBuf>,
    /// Further lines of server.properties.
    lines: Vec<String>,
    server: Option<Server>,
}

impl Kafka {
    /// Starts a broker with its data in `dir`.
    pub fn start(dir: &Path) -> Option<Kafka> {
        Kafka::start_with(dir, &[])
    }

    /// The same, with these lines of server.properties, which win.
    pub fn start_with(dir: &Path, lines: &[&str]) -> Option<Kafka> {
        if let Some(why) = missing() {
            return skip("Kafka", &why);
        }
        let lines = lines.iter().map(|line| line.to_string()).collect();
        let mut kafka = Kafka { dir: dir.to_owned(), port: free_port(), node: 1, first: None, lines, server: None };
        kafka.restart();
        Some(kafka)
    }

    /// Starts another broker of the cluster that this one is node 1 of, with the same lines: a number from 2 on, which no
    /// other has, and a folder of its own.
    pub fn join(&self, node: u32, dir: &Path) -> Kafka {
        let (first, lines) = (Some(self.dir.clone()), self.lines.clone());
        let mut kafka = Kafka { dir: dir.to_owned(), port: free_port(), node, first, lines, server: None };
        kafka.restart();
        kafka
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts it again, if it was killed, and waits until it takes part in its cluster: it listens a moment before that, and
    /// is given no partition until then.
    pub fn restart(&mut self) {
        if self.server.is_none() {
            let mut command = dev_kafka();
            command.args(["run", "--port", &self.port.to_string(), "--dir"]).arg(&self.dir);
            if let Some(first) = &self.first {
                command.args(["--node", &self.node.to_string(), "--join"]).arg(first);
            }
            command.arg("--").args(&self.lines);
            let output = self.dir.join("broker.out");
            // It stays from one start to the next.
            let starts = || std::fs::read_to_string(&output).unwrap_or_default().matches(STARTED).count();
            let before = starts();
            let until = Instant::now() + START_WAIT;
            let mut server = Server::start(command, self.port, &output, START_WAIT);
            while starts() == before {
                let waits = Instant::now() < until && !server.has_ended();
                assert!(waits, "the broker did not start:\n{}", std::fs::read_to_string(&output).unwrap_or_default());
                std::thread::sleep(Duration::from_millis(20));
            }
            self.server = Some(server);
        }
    }

    /// Sends a signal, e.g. `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        if let Some(server) = &self.server {
            server.signal(name);
        }
    }
}
