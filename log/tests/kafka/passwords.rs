//! A Kafka that wants a password, by SASL PLAIN, which every build can.

use crate::support::{Test, settings};
use services::kafka::Kafka;
use std::time::Duration;
use tally_log::Log;
use tally_log::kafka::{KafkaLog, Settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_opens_and_a_wrong_one_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        "listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms=PLAIN",
        "sasl.mechanism.inter.broker.protocol=PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         username=\"tally\" password=\"one of this test\" user_tally=\"one of this test\";",
    ];
    let Some(broker) = Kafka::start_with(dir.path(), &lines) else { return };
    let with = |password: &str| {
        let properties = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "tally"),
            ("sasl.password", password),
        ];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Settings { properties, request_timeout: Duration::from_secs(3), ..settings(broker.port()) }
    };
    let test = Test::with(with("one of this test")).await;
    assert_eq!(test.log.append(&test.topic, 0, None, "x".into()).await.unwrap().await.unwrap().offset, 0);
    let error = KafkaLog::new(with("hunter2")).unwrap().topic(&test.topic.name).await.unwrap_err().to_string();
    assert!(error.contains("Authentication failed") && !error.contains("hunter2"), "{error}");
}
