//! Topics are made right, or it is said what is wrong and what mends it.

use crate::support::{Test, make, settings, unique};
use std::process::Command;
use std::time::Duration;
use tally_log::kafka::{KafkaLog, Settings, topics};
use tally_log::{Log, LogError};

/// A cluster of one broker that is not said to be one.
fn cluster(port: u16) -> Settings {
    Settings { single_node: false, ..settings(port) }
}

#[tokio::test]
async fn topics_that_are_missing_are_made_and_then_are_right() {
    let Some(port) = services::kafka::shared() else { return };
    let (first, second) = (unique(), unique());
    let names = [&*first, &*second];
    let report = topics::create_or_check(&settings(port), &names).await.unwrap();
    assert_eq!((report.created, report.checked), (vec![first.clone(), second.clone()], vec![]));
    assert_eq!(report.problems, []);
    assert!(report.warnings[0].starts_with("single_node = true: Kafka has one copy of everything."));
    let report = topics::create_or_check(&settings(port), &names).await.unwrap();
    assert_eq!((report.created, report.checked), (vec![], vec![first.clone(), second]));
    assert_eq!((report.problems, report.warnings.len()), (vec![], 1));
    let log = KafkaLog::new(settings(port)).unwrap();
    assert_eq!(log.topic(&first).await.unwrap().partitions, 4);
}

#[tokio::test]
async fn a_cluster_that_cannot_hold_three_copies_makes_no_topic() {
    let Some(port) = services::kafka::shared() else { return };
    let name = unique();
    let error = topics::create_or_check(&cluster(port), &[&name]).await.unwrap_err().to_string();
    let expected = format!("Kafka at 127.0.0.1:{port}: cannot make topic {name:?}: ");
    assert!(error.starts_with(&expected) && error.contains("replication factor"), "{error}");
    let log = KafkaLog::new(settings(port)).unwrap();
    assert!(matches!(log.topic(&name).await.unwrap_err(), LogError::UnknownTopic(unknown) if unknown == name));
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_command_that_mends_it() {
    let Some(test) = Test::new().await else { return };
    let name = unique();
    let wrong = [
        ("message.timestamp.type", "CreateTime"),
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "1000000"),
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
        ("retention.ms", "3600000"),
        ("retention.bytes", "1000"),
    ];
    make(&test.settings, &name, 3, &wrong).await;
    let settings = Settings { single_node: false, ..test.settings.clone() };
    let report = topics::create_or_check(&settings, &[&name]).await.unwrap();
    assert_eq!((report.created, report.checked), (vec![], vec![name.clone()]));
    let servers = settings.brokers.join(",");
    let alter = |set: &str| {
        format!(
            "kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {name} --add-config {set}"
        )
    };
    let found: Vec<(&str, &str)> = report.problems.iter().map(|p| (p.what.as_str(), p.mend.as_str())).collect();
    let expected = [
        (
            "it has 3 partitions, not 4; ",
            "kafka.partitions = 3 in the settings of every process, if it was made so; partitions that were added to it cannot be \
             taken away again: it has to be made anew, and `clicks` for a new warehouse"
                .to_owned(),
        ),
        ("its records carry CreateTime, not the time of appending", alter("message.timestamp.type=LogAppendTime")),
        ("cleanup.policy is compact, which leaves holes", alter("cleanup.policy=delete")),
        ("max.message.bytes is 1000000: ", alter("max.message.bytes=1114112")),
        ("a partition of it has 1 replicas: ", "kafka-reassign-partitions.sh".to_owned()),
        ("min.insync.replicas is 1: ", alter("min.insync.replicas=2")),
        ("a replica that is behind may become leader", alter("unclean.leader.election.enable=false")),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((what, mend), (expected_what, expected_mend)) in found.iter().zip(&expected) {
        assert!(what.starts_with(expected_what), "{what}");
        assert!(mend.contains(expected_mend.as_str()), "{mend}");
    }
    let warnings = report.warnings;
    assert_eq!(warnings.len(), 2);
    assert_eq!(
        warnings[0],
        format!("topic {name:?} keeps records for 1h, not for 7days: {}", alter("retention.ms=604800000"))
    );
    // For a single node, what it cannot have is no problem; the rest is.
    let single = Settings { partitions: 3, ..test.settings.clone() };
    let report = topics::create_or_check(&single, &[&name]).await.unwrap();
    assert_eq!(report.problems.len(), 3, "{:?}", report.problems);
    // The commands do mend it, with Kafka's own tool.
    let commands = report.problems.iter().map(|problem| problem.mend.clone());
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/kafka tool kafka.admin.ConfigCommand");
    let mended = commands.map(|command| {
        let command = command.replace("kafka-configs.sh", tool);
        tokio::task::spawn_blocking(move || Command::new("bash").args(["-c", &command]).output().unwrap())
    });
    for mended in mended.collect::<Vec<_>>() {
        let output = mended.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let report = topics::create_or_check(&single, &[&name]).await.unwrap();
    assert_eq!(report.problems, []);
}

#[tokio::test]
async fn settings_that_are_not_possible_are_refused_before_anything_is_asked() {
    let wrong = Settings { check_every: Duration::ZERO, ..settings(1) };
    let error = topics::create_or_check(&wrong, &["clicks"]).await.unwrap_err().to_string();
    assert_eq!(error, r#"Kafka setting check_every = "0" is not valid: 10 to 60000 ms"#);
    let tls = Settings { properties: [("security.protocol".into(), "nonsense".into())].into(), ..settings(1) };
    let error = KafkaLog::new(tls).err().unwrap().to_string();
    assert!(error.starts_with("Kafka setting security.protocol = "), "{error}");
}

/// A broker that makes topics by itself is named, with what mends it.
#[tokio::test]
async fn a_broker_that_makes_topics_by_itself_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let Some(kafka) = services::kafka::Kafka::start_with(dir.path(), &["auto.create.topics.enable=true"]) else {
        return;
    };
    let settings = settings(kafka.port());
    let report = topics::create_or_check(&settings, &["clicks"]).await.unwrap();
    assert_eq!((report.created.len(), report.warnings.len()), (1, 2), "{:?}", report.warnings);
    let warning = &report.warnings[1];
    assert!(warning.starts_with("broker 1 makes a topic of any name"), "{warning}");
    assert!(warning.ends_with("Put auto.create.topics.enable=false into its server.properties and restart it"));
}
