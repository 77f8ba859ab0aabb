//! The process itself on a Kafka that wants a password, which comes from the environment and is shown nowhere.

use crate::leaderless::{Redirect, command};
use services::Server;
use services::kafka::Kafka;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tally_log::kafka::{Settings, topics};

/// Looks like a number, as passwords may.
const PASSWORD: &str = "8675309867";
const WRONG: &str = "8675309868";

fn with_password(dir: &Path, broker: u16, password: &str) -> (Command, u16) {
    let (mut command, port, _) = command(dir, broker);
    command.env("TALLY_REDIRECT_KAFKA__REQUEST_TIMEOUT", "5s");
    for (name, value) in [
        ("SECURITY_PROTOCOL", "sasl_plaintext"),
        ("SASL_MECHANISM", "PLAIN"),
        ("SASL_USERNAME", "tally"),
        ("SASL_PASSWORD", password),
    ] {
        command.env(format!("TALLY_REDIRECT_KAFKA__PROPERTIES__{name}"), value);
    }
    (command, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_of_the_environment_opens_kafka_and_is_never_shown() {
    let [kafka, own] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    let lines = [
        "listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
        "sasl.enabled.mechanisms=PLAIN".to_owned(),
        "sasl.mechanism.inter.broker.protocol=PLAIN".to_owned(),
        format!(
            "listener.name.plaintext.plain.sasl.jaas.config={module} required username=\"tally\" \
             password=\"{PASSWORD}\" user_tally=\"{PASSWORD}\";"
        ),
    ];
    let Some(broker) = Kafka::start_with(kafka.path(), &lines.each_ref().map(String::as_str)) else { return };
    let properties = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "tally"),
        ("sasl.password", PASSWORD),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let brokers = vec![format!("127.0.0.1:{}", broker.port())];
    let settings = Settings { brokers, single_node: true, properties, ..Settings::default() };
    topics::create_or_check(&settings, &["clicks"]).await.unwrap();

    let (command, port) = with_password(own.path(), broker.port(), PASSWORD);
    let output = own.path().join("redirect.out");
    let server = Server::start(command, port, &output, Duration::from_secs(60));
    assert_eq!(Redirect::get(port, "/api/v1/click/imp_1?ad_id=ad_9").await.status, 302);
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(30)).success());
    let printed = std::fs::read_to_string(output).unwrap();
    assert!(printed.contains("answering clicks") && !printed.contains(PASSWORD), "{printed}");

    // It ends by itself when it has not been let in for as long as a request may take.
    let (mut command, _) = with_password(own.path(), broker.port(), WRONG);
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is bounded").unwrap();
    let printed = [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text)).concat();
    assert!(!ended.status.success() && printed.contains("Authentication failed"), "{printed}");
    assert!(!printed.contains(WRONG), "{printed}");
}
