//! The servers of a cluster, and the command line on them.

use click::Partition;
use services::clickhouse::{ClickHouse as Server, Database};
use services::kafka::Kafka;
use services::redis::{DURABLE, Redis};
use services::{Server as Process, free_port};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings};
use tally_log::{Appended, Log, Topic};
use warehouse::backend::Backend;
use warehouse::clickhouse::{ClickHouse, ClickHouseReports, ServerSettings};
use warehouse::sequence::{Entry, Kind, Sequence};

pub const PARTITIONS: Partition = 2;

pub struct Site {
    dir: tempfile::TempDir,
    pub kafka: Kafka,
    pub redis: Redis,
    database: Database,
    arroyo: String,
    /// Further settings of every command, by the names of their variables.
    further: Vec<(&'static str, &'static str)>,
    pub settings: Settings,
    pub log: Arc<KafkaLog>,
    pub clicks: Topic,
    pub raw_clicks: Topic,
    pub tables: Arc<ClickHouse>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub succeeded: bool,
    pub out: String,
    pub err: String,
}

impl Site {
    /// Starts everything with topics and tables made; `None`, said aloud, where this machine has not all of it.
    pub async fn start(arroyo: &str) -> Option<Site> {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let database = Database::new(Server::shared()?);
        let redis = Redis::start(&folder("redis"), &DURABLE)?;
        let kafka = Kafka::start(&folder("kafka"))?;
        let pipelines = folder("pipelines");
        std::fs::copy(root().join("pipelines/clicks.sql"), pipelines.join("clicks.sql")).unwrap();
        let settings = Settings {
            brokers: vec![format!("127.0.0.1:{}", kafka.port())],
            single_node: true,
            partitions: PARTITIONS,
            ..Settings::default()
        };
        let names = ["clicks", "raw_clicks", "clicks_by_minute"];
        tally_log::kafka::topics::create_or_check(&settings, &names).await.unwrap();
        let log = Arc::new(KafkaLog::new(settings.clone()).unwrap());
        let clicks = log.topic("clicks").await.unwrap();
        let raw_clicks = log.topic("raw_clicks").await.unwrap();
        let server = server(&database);
        ClickHouse::migrate(&server).await.unwrap();
        let tables = Arc::new(ClickHouse::open(&server).await.unwrap());
        let (arroyo, further) = (arroyo.to_string(), Vec::new());
        Some(Site { dir, kafka, redis, database, arroyo, further, settings, log, clicks, raw_clicks, tables })
    }

    /// The same, with minutes that close four seconds after their end.
    pub async fn start_quick(arroyo: &str) -> Option<Site> {
        let mut site = Site::start(arroyo).await?;
        site.further = vec![("LATENESS", "3s"), ("SLACK", "1s")];
        Some(site)
    }

    /// What answers reports, as a reporting node has it.
    pub async fn reports(&self) -> ClickHouseReports {
        ClickHouseReports::open(&server(&self.database)).await.unwrap()
    }

    /// The pipeline file that is deployed.
    pub fn pipeline(&self) -> PathBuf {
        self.dir.path().join("pipelines/clicks.sql")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `tally` with these arguments and the settings of the site.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
        let mut set = |name: &str, value: &str| {
            command.env(format!("TALLY_CLUSTER_{name}"), value);
        };
        set("PIPELINES", &self.dir.path().join("pipelines").display().to_string());
        set("KAFKA__BROKERS", &format!("[\"127.0.0.1:{}\"]", self.kafka.port()));
        set("KAFKA__SINGLE_NODE", "true");
        set("KAFKA__PARTITIONS", &PARTITIONS.to_string());
        set("ARROYO__URL", &self.arroyo);
        set("CLAIMS__URL", &self.redis.url());
        set("CLICKHOUSE__URL", &self.database.server.url);
        set("CLICKHOUSE__DATABASE", &self.database.name);
        if let Some((user, password)) = &self.database.server.user {
            set("CLICKHOUSE__USER", user);
            set("CLICKHOUSE__PASSWORD", password);
        }
        for (name, value) in &self.further {
            set(name, value);
        }
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts `tally load`.
    pub fn load(&self) -> Load {
        let (port, output) = (free_port(), self.dir.path().join("load.out"));
        let mut command = self.command(&["load"]);
        command.env("TALLY_CLUSTER_LOAD__ADMIN_LISTEN", format!("127.0.0.1:{port}")).env("TALLY_LOG", "info");
        let start = || Process::start(command, port, &output, Duration::from_secs(60));
        let process = tokio::task::block_in_place(start);
        Load { process, output, client: reqwest::Client::new() }
    }

    /// Runs `tally` to its end.
    pub fn tally(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        Ran { succeeded: output.status.success(), out, err }
    }

    pub async fn append(&self, topic: &Topic, partition: Partition, value: String) -> Appended {
        self.log.append(topic, partition, None, value.into_bytes().into()).await.unwrap().await.unwrap()
    }

    /// Runs a statement in the database.
    pub fn query(&self, statement: &str) -> String {
        let statement = statement.replacen("TABLE ", &format!("TABLE {}.", self.database.name), 1);
        tokio::task::block_in_place(|| self.database.server.query(&statement))
    }

    /// The last entry that counts.
    pub async fn last(&self) -> Entry {
        Sequence::of(self.tables.entries().await.unwrap()).unwrap().last
    }

    /// Deployments, oldest first.
    pub async fn deployments(&self) -> Vec<Entry> {
        let mut entries = self.tables.entries().await.unwrap();
        entries.retain(|entry| entry.kind == Kind::Deployment);
        entries.sort_by_key(|entry| entry.number);
        entries
    }
}

/// Where the tables are.
fn server(database: &Database) -> ServerSettings {
    let settings = ServerSettings::new(&database.server.url, &database.name);
    ServerSettings { user: database.server.user.clone(), ..settings }
}

/// A `tally load` that runs.
pub struct Load {
    process: Process,
    output: PathBuf,
    client: reqwest::Client,
}

impl Load {
    /// All that it has printed since its first start.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Whether its metrics have this line.
    pub async fn tells(&mut self, line: &str) -> bool {
        assert!(!self.process.has_ended(), "it ended: {}", self.printed());
        let url = format!("http://127.0.0.1:{}/metrics", self.process.port);
        let metrics = self.client.get(url).send().await.unwrap().text().await.unwrap();
        metrics.lines().any(|told| told == line)
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(self) {
        self.process.signal("TERM");
        let status = self.process.wait(Duration::from_secs(30));
        assert!(status.success(), "{status}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Ran {
    /// It must have failed, saying this.
    #[track_caller]
    pub fn refused(&self, expected: &str) {
        assert!(!self.succeeded && self.err.contains(expected), "{expected:?} in {self:?}");
    }

    /// It must have ended well, with these words.
    #[track_caller]
    pub fn said(&self, expected: &str) {
        assert!(self.succeeded && self.out.contains(expected), "{expected:?} in {self:?}");
    }
}
