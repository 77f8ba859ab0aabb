//! A Kafka that speaks TLS alone and wants to know who asks, with certificates that an authority of the test's made.

use crate::conformance::conformance;
use crate::support::{LONG, Test, settings};
use services::kafka::Kafka;
use services::tls::Authority;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings};
use tally_log::{Log, LogError, Topic};

const PASSWORD: &str = "the password of this test";

struct Secured {
    kafka: Kafka,
    /// The certificate that the broker's is signed by.
    authority: PathBuf,
    /// Has a user `tally` with [`PASSWORD`], by PLAIN from the start and by SCRAM since it was added.
    _dir: tempfile::TempDir,
}

impl Secured {
    fn start() -> Option<Secured> {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::make(dir.path())?;
        let issued = authority.issue("broker", "IP:127.0.0.1");
        // Kafka wants both in one file.
        let keystore = dir.path().join("keystore.pem");
        let parts = [&issued.key, &issued.certificate].map(|part| std::fs::read_to_string(part).unwrap());
        std::fs::write(&keystore, parts.concat()).unwrap();
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required";
        let authority = authority.certificate;
        let lines = [
            // The listener keeps the name that dev/kafka gives it.
            "listener.security.protocol.map=PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT".into(),
            "ssl.keystore.type=PEM".into(),
            format!("ssl.keystore.location={}", keystore.display()),
            "ssl.truststore.type=PEM".into(),
            format!("ssl.truststore.location={}", authority.display()),
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256".into(),
            "sasl.mechanism.inter.broker.protocol=PLAIN".into(),
            format!(
                "listener.name.plaintext.plain.sasl.jaas.config={plain} username=\"tally\" password=\"{PASSWORD}\" \
                 user_tally=\"{PASSWORD}\";"
            ),
            format!("listener.name.plaintext.scram-sha-256.sasl.jaas.config={scram};"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let kafka = Kafka::start_with(dir.path(), &lines)?;
        let client = dir.path().join("client.properties");
        let properties = format!(
            "security.protocol=SASL_SSL\nssl.truststore.type=PEM\nssl.truststore.location={}\nsasl.mechanism=PLAIN\n\
             sasl.jaas.config={plain} username=\"tally\" password=\"{PASSWORD}\";\n",
            authority.display()
        );
        std::fs::write(&client, properties).unwrap();
        add_scram_user(kafka.port(), &client);
        Some(Secured { kafka, authority, _dir: dir })
    }

    fn settings(&self, mechanism: &str, password: &str, authority: &Path) -> Settings {
        let properties = [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", authority.to_str().unwrap()),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "tally"),
            ("sasl.password", password),
        ];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Settings { properties, request_timeout: Duration::from_secs(3), ..settings(self.kafka.port()) }
    }
}

fn add_scram_user(port: u16, client: &Path) {
    let mut command = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/kafka"));
    command.args(["tool", "kafka.admin.ConfigCommand", "--bootstrap-server", &format!("127.0.0.1:{port}")]);
    command.arg("--command-config").arg(client);
    command.args(["--alter", "--entity-type", "users", "--entity-name", "tally", "--add-config"]);
    let output = command.arg(format!("SCRAM-SHA-256=[password={PASSWORD}]")).output().unwrap();
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
    assert!(output.status.success(), "{said}");
}

/// What the log says that these settings do not open, to whoever asks for a topic, and to whoever appends to one.
async fn refused(settings: Settings, topic: &Topic) -> String {
    let log = KafkaLog::new(settings).unwrap();
    let asked = tokio::time::timeout(LONG, log.topic(&topic.name)).await.expect("it is bounded").unwrap_err();
    let appended = tokio::time::timeout(LONG, log.append(topic, 0, None, "x".into())).await.expect("it is bounded");
    for error in [&asked, &appended.err().unwrap()] {
        assert!(matches!(error, LogError::Kafka { .. }), "{error}");
    }
    asked.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kafka_with_tls_and_passwords_conforms_and_refuses_clearly() {
    let Some(secured) = Secured::start() else { return };
    let test = Test::with(secured.settings("SCRAM-SHA-256", PASSWORD, &secured.authority)).await;
    conformance(&test.log, &test.topic).await;
    let plain = KafkaLog::new(secured.settings("PLAIN", PASSWORD, &secured.authority)).unwrap();
    assert_eq!(plain.topic(&test.topic.name).await.unwrap(), test.topic);

    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let error = refused(secured.settings(mechanism, "hunter2", &secured.authority), &test.topic).await;
        assert!(error.contains("Authentication failed") && !error.contains("hunter2"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let other = Authority::make(folder.path()).unwrap();
    let error = refused(secured.settings("PLAIN", PASSWORD, &other.certificate), &test.topic).await;
    assert!(error.contains("certificate verify failed") && !error.contains(PASSWORD), "{error}");
    // Who does not know that it speaks TLS.
    let mut open = secured.settings("PLAIN", PASSWORD, &secured.authority);
    open.properties = [("security.protocol".into(), "plaintext".into())].into();
    let error = refused(open, &test.topic).await;
    assert!(error.contains("Disconnected"), "{error}");
}
