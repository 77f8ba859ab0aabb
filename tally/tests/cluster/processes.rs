//! The servers and processes of a cluster on loopback.

use serde_json::Value;
use services::clickhouse::ClickHouse;
use services::kafka::Kafka;
use services::redis::Redis;
use services::{Server, free_port};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tally_log::kafka::{KafkaLog, Settings};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Kafka,
    Redis,
    ClickHouse,
    Redirect(usize),
    Run,
    Load,
    Reporting(usize),
}

pub struct Cluster {
    /// Two at once would be more than a small machine can run.
    _alone: MutexGuard<'static, ()>,
    dir: tempfile::TempDir,
    kafka: Kafka,
    redis: Redis,
    /// An engine of this test's own: it is killed.
    clickhouse: Option<ClickHouse>,
    clickhouse_port: u16,
    /// Public port, where there is one, and the operators'.
    ports: BTreeMap<Name, [u16; 2]>,
    running: BTreeMap<Name, Server>,
    client: reqwest::Client,
    /// Of the warehouse that counts, and of the folder of the runner's state.
    database: String,
}

/// A binary of the workspace; cargo puts all of them into one folder.
pub fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_tally")).with_file_name(name);
    assert!(path.is_file(), "{} is missing: test the whole workspace, or build it first", path.display());
    path
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Cluster {
    /// Starts everything, or says which server this machine does not have.
    pub fn start() -> Option<Cluster> {
        static ALONE: Mutex<()> = Mutex::new(());
        // Another test that failed leaves nothing behind that matters here.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let clickhouse_port = free_port();
        let clickhouse = Some(ClickHouse::start_in(&folder("clickhouse"), clickhouse_port)?);
        let redis = Redis::start(&folder("redis"), &[])?;
        let kafka = Kafka::start(&folder("kafka"))?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let names =
            [Name::Redirect(0), Name::Redirect(1), Name::Run, Name::Load, Name::Reporting(0), Name::Reporting(1)];
        let ports = names.into_iter().map(|name| (name, [free_port(), free_port()])).collect();
        let running = BTreeMap::new();
        let database = "tally".to_string();
        let mut cluster =
            Cluster { _alone, dir, kafka, redis, clickhouse, clickhouse_port, ports, running, client, database };
        cluster.once(&["topics"]);
        cluster.once(&["topics"]);
        cluster.once(&["load", "--migrate"]);
        for name in names {
            cluster.start_again(name);
        }
        Some(cluster)
    }

    /// Runs a command of `tally` to its end: whether it succeeded, and what it printed.
    pub fn tally(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(binary("tally"), "TALLY_CLUSTER_").args(arguments).output().unwrap();
        let printed = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
        (output.status.success(), printed)
    }

    /// One that succeeds.
    pub fn once(&self, arguments: &[&str]) {
        let (succeeded, printed) = self.tally(arguments);
        assert!(succeeded, "tally {arguments:?}: {printed}");
    }

    /// How its Kafka is reached.
    pub fn settings(&self) -> Settings {
        let brokers = vec![format!("127.0.0.1:{}", self.kafka.port())];
        Settings { brokers, single_node: true, ..Settings::default() }
    }

    /// Its Kafka, as another program would use it.
    pub fn log(&self) -> KafkaLog {
        KafkaLog::new(self.settings()).unwrap()
    }

    /// From here on commands, and processes that are started, use another database of this name and no state of the runner's.
    pub fn begin_anew(&mut self, database: &str) {
        self.database = database.to_string();
    }

    /// All that a process has printed since its first start.
    pub fn printed(&self, name: Name) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name:?}.out"))).unwrap()
    }

    /// What ClickHouse answers to a statement.
    pub fn query(&self, statement: &str) -> String {
        self.clickhouse.as_ref().unwrap().query(statement)
    }

    /// A command with everything that several processes are told, by variables.
    fn command(&self, binary: PathBuf, prefix: &str) -> Command {
        let mut command = Command::new(binary);
        let mut set = |name: &str, value: &str| {
            command.env(format!("{prefix}{name}"), value);
        };
        if prefix != "TALLY_REPORTING_" {
            set("KAFKA__BROKERS", &format!("[\"127.0.0.1:{}\"]", self.kafka.port()));
            set("KAFKA__SINGLE_NODE", "true");
            set("KAFKA__REPLICATION", "1");
        }
        if prefix != "TALLY_REDIRECT_" {
            set("CLICKHOUSE__URL", &format!("http://127.0.0.1:{}", self.clickhouse_port));
            set("CLICKHOUSE__DATABASE", &self.database);
        }
        if prefix == "TALLY_CLUSTER_" {
            set("PIPELINES", &root().join("pipelines").display().to_string());
            set("LATENESS", "3s");
            set("SLACK", "1s");
            set("RUN__DATA", &self.dir.path().join(format!("run-{}", self.database)).display().to_string());
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts a process that does not run.
    pub fn start_again(&mut self, name: Name) {
        self.start_until(name, None);
    }

    /// Starts a process that does not run and is to die at a commit point, as `TALLY_DIE_AT` names it.
    pub fn start_until(&mut self, name: Name, die_at: Option<&str>) {
        self.start_process(name, die_at, &[]);
    }

    /// Starts `tally run` with `--again`.
    pub fn run_again(&mut self) {
        self.start_process(Name::Run, None, &["--again"]);
    }

    fn start_process(&mut self, name: Name, die_at: Option<&str>, arguments: &[&str]) {
        let ports = self.ports.get(&name).copied().unwrap_or_default();
        let [public, admin] = ports.map(|port| format!("127.0.0.1:{port}"));
        let (mut command, port) = match name {
            Name::Kafka => return self.kafka.restart(),
            Name::Redis => return self.redis.start_again(),
            Name::ClickHouse => {
                self.clickhouse = ClickHouse::start_in(&self.dir.path().join("clickhouse"), self.clickhouse_port);
                return;
            }
            Name::Redirect(node) => {
                let mut command = self.command(binary("tally-redirect"), "TALLY_REDIRECT_");
                command.env("TALLY_REDIRECT_LISTEN", public).env("TALLY_REDIRECT_ADMIN_LISTEN", admin);
                command.env("TALLY_REDIRECT_CATALOG", root().join("catalog/sample.csv"));
                command.env("TALLY_REDIRECT_IP_HASH_KEY", "a secret of this test");
                command.env("TALLY_REDIRECT_TRUSTED_PROXIES", "[\"127.0.0.1\"]");
                command.env("TALLY_REDIRECT_SEEN__URL", self.redis.url());
                command.env("TALLY_REDIRECT_SPOOL__DIR", self.dir.path().join(format!("spool-{node}")));
                (command, ports[0])
            }
            Name::Run => {
                let mut command = self.command(binary("tally"), "TALLY_CLUSTER_");
                command.arg("run").env("TALLY_CLUSTER_RUN__ADMIN_LISTEN", admin);
                (command, ports[1])
            }
            Name::Load => {
                let mut command = self.command(binary("tally"), "TALLY_CLUSTER_");
                command.arg("load").env("TALLY_CLUSTER_LOAD__ADMIN_LISTEN", admin);
                // It waits for the first deployment, which `tally run` makes.
                (command, ports[1])
            }
            Name::Reporting(_) => {
                let mut command = self.command(binary("tally-reporting"), "TALLY_REPORTING_");
                command.env("TALLY_REPORTING_LISTEN", public).env("TALLY_REPORTING_ADMIN_LISTEN", admin);
                (command, ports[0])
            }
        };
        command.args(arguments).env("TALLY_LOG", "info");
        if let Some(point) = die_at {
            command.env("TALLY_DIE_AT", point);
        }
        let output = self.dir.path().join(format!("{name:?}.out"));
        self.running.insert(name, Server::start(command, port, &output, Duration::from_secs(60)));
    }

    /// Whether a process that was started has ended by itself; it can be started again then.
    pub fn is_dead(&mut self, name: Name) -> bool {
        let dead = self.running.get_mut(&name).is_some_and(|server| server.has_ended());
        if dead {
            self.running.remove(&name);
        }
        dead
    }

    /// kill -9.
    pub fn kill(&mut self, name: Name) {
        match name {
            Name::Kafka => self.kafka.kill(),
            Name::Redis => self.redis.kill(),
            Name::ClickHouse => self.clickhouse.take().unwrap().kill(),
            name => self.running.remove(&name).unwrap().kill(),
        }
    }

    /// Stops it from running, with its connections open, until [`Cluster::resume`].
    pub fn pause(&self, name: Name) {
        self.signal(name, "STOP");
    }

    pub fn resume(&self, name: Name) {
        self.signal(name, "CONT");
    }

    fn signal(&self, name: Name, signal: &str) {
        match name {
            Name::Kafka => self.kafka.signal(signal),
            Name::Redis if signal == "STOP" => self.redis.pause(),
            Name::Redis => self.redis.resume(),
            Name::ClickHouse => self.clickhouse.as_ref().unwrap().signal(signal),
            name => self.running[&name].signal(signal),
        }
    }

    /// Tells a process to stop, and waits until it has.
    pub fn stop(&mut self, name: Name) {
        let server = self.running.remove(&name).unwrap();
        server.signal("TERM");
        let status = server.wait(Duration::from_secs(30));
        let output = self.printed(name);
        assert!(status.success(), "{name:?} ended with {status}: {output}");
        assert!(output.contains("stopped"), "{name:?}: {output}");
    }

    /// The same for all of them.
    pub fn stop_all(&mut self) {
        for name in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(name);
        }
    }

    pub fn redirect(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[&Name::Redirect(node)][0])
    }

    /// Status and body of what a process says to operators.
    pub async fn admin(&self, name: Name, path: &str) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}{path}", self.ports[&name][1]);
        let answer = self.client.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Asks whether a process is ready until it answers with this status, and gives what it says then.
    pub async fn wait_for_ready(&self, name: Name, status: u16) -> String {
        let began = Instant::now();
        loop {
            let (found, body) = self.admin(name, "/readyz").await;
            if found == status {
                return body;
            }
            // A part that failed is tried again after a pause of up to a minute.
            assert!(began.elapsed() < Duration::from_secs(120), "{name:?}: {found}: {body}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Every cell, by one of the reporting nodes.
    pub async fn report(&self, node: usize) -> Value {
        let port = self.ports[&Name::Reporting(node)][0];
        let group_by = "minute,ad_id,campaign_id,publisher_id,country,device";
        let url = format!("http://127.0.0.1:{port}/api/v1/reports/clicks?groupBy={group_by}&limit=100000");
        let answer = self.client.get(url).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{body}");
        body
    }

    /// Asks until a report says so.
    pub async fn wait_for(&self, node: usize, most: Duration, said: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let report = self.report(node).await;
            if said(&report) {
                println!("a report said so after {:?}", began.elapsed());
                return report;
            }
            if began.elapsed() > most {
                for name in self.running.keys() {
                    let output = std::fs::read_to_string(self.dir.path().join(format!("{name:?}.out")));
                    println!("{name:?}:\n{}", output.unwrap_or_default());
                }
                panic!("no report said so within {most:?}: {report}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
