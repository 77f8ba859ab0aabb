//! The servers of a cluster, and the command line on them.

use click::Partition;
use services::clickhouse::{ClickHouse as Server, Database};
use services::kafka::Kafka;
use services::redis::{DURABLE, Redis};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tally_log::kafka::{KafkaLog, Settings};
use tally_log::{Appended, Log, Topic};
use warehouse::backend::Backend;
use warehouse::clickhouse::{ClickHouse, ServerSettings};
use warehouse::sequence::{Entry, Kind};

pub const PARTITIONS: Partition = 2;

pub struct Site {
    dir: tempfile::TempDir,
    pub kafka: Kafka,
    pub redis: Redis,
    database: Database,
    arroyo: String,
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
        let server = ServerSettings {
            user: database.server.user.clone(),
            ..ServerSettings::new(&database.server.url, &database.name)
        };
        ClickHouse::migrate(&server).await.unwrap();
        let tables = Arc::new(ClickHouse::open(&server).await.unwrap());
        let arroyo = arroyo.to_string();
        Some(Site { dir, kafka, redis, database, arroyo, settings, log, clicks, raw_clicks, tables })
    }

    /// The pipeline file that is deployed.
    pub fn pipeline(&self) -> PathBuf {
        self.dir.path().join("pipelines/clicks.sql")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `tally` to its end.
    pub fn tally(&self, arguments: &[&str]) -> Ran {
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
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        Ran { succeeded: output.status.success(), out, err }
    }

    pub async fn append(&self, topic: &Topic, partition: Partition, value: String) -> Appended {
        self.log.append(topic, partition, None, value.into_bytes().into()).await.unwrap().await.unwrap()
    }

    /// Deployments, oldest first.
    pub async fn deployments(&self) -> Vec<Entry> {
        let mut entries = self.tables.entries().await.unwrap();
        entries.retain(|entry| entry.kind == Kind::Deployment);
        entries.sort_by_key(|entry| entry.number);
        entries
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
