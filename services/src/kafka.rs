//! Apache Kafka, one broker, started by `dev/kafka`.

use crate::{Server, free_port, skip};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// A Java machine starts in seconds; in many when others want the processors.
const START_WAIT: Duration = Duration::from_secs(120);

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
        let mut kafka = Kafka { dir: dir.to_owned(), port: free_port(), lines, server: None };
        kafka.restart();
        Some(kafka)
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

    /// Starts it again, if it was killed.
    pub fn restart(&mut self) {
        if self.server.is_none() {
            let mut command = dev_kafka();
            command.args(["run", "--port", &self.port.to_string(), "--dir"]).arg(&self.dir).arg("--").args(&self.lines);
            self.server = Some(Server::start(command, self.port, &self.dir.join("broker.out"), START_WAIT));
        }
    }

    /// Sends a signal, e.g. `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        if let Some(server) = &self.server {
            server.signal(name);
        }
    }
}
