//! Consumer groups of others. Tally's own consumers have no group: what reads a topic for somebody else, as Arroyo does,
//! begins where its group's offsets say.

use super::Settings;
use super::settings::refused;
use crate::{LogError, Topic};
use click::Offsets;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

/// Commits, for a group that has no members, the offset of the record that it shall read next in each partition. Blocks for
/// up to the request timeout.
///
/// # Errors
///
/// A partition that is missing in `next`, a group that has members, or what the brokers say. Nothing is committed then.
pub async fn commit(settings: &Settings, group: &str, topic: &Topic, next: &Offsets) -> Result<(), LogError> {
    settings.check()?;
    let (settings, group, topic, next) = (settings.clone(), group.to_owned(), topic.clone(), next.clone());
    super::blocking(move || commit_now(&settings, &group, &topic, &next)).await
}

/// The offset of the record that a group reads next, in each partition that has one committed. Blocks for up to the request
/// timeout.
///
/// # Errors
///
/// What the brokers say.
pub async fn committed(settings: &Settings, group: &str, topic: &Topic) -> Result<Offsets, LogError> {
    settings.check()?;
    let (settings, group, topic) = (settings.clone(), group.to_owned(), topic.clone());
    super::blocking(move || committed_now(&settings, &consumer(&settings, &group)?, &group, &topic)).await
}

fn consumer(settings: &Settings, group: &str) -> Result<BaseConsumer, LogError> {
    let mut config = settings.query();
    config.set("group.id", group);
    config.create().map_err(refused)
}

fn committed_now(
    settings: &Settings,
    consumer: &BaseConsumer,
    group: &str,
    topic: &Topic,
) -> Result<Offsets, LogError> {
    let mut asked = TopicPartitionList::new();
    for partition in 0..topic.partitions {
        asked.add_partition(&topic.name, partition);
    }
    let found = consumer.committed_offsets(asked, settings.request_timeout).map_err(|error| LogError::Kafka {
        brokers: settings.servers(),
        doing: format!("read offsets of topic {:?} for group {group:?}", topic.name),
        error: error.to_string(),
    })?;
    let mut committed = Offsets::default();
    for partition in 0..topic.partitions {
        if let Some(Offset::Offset(next)) = found.find_partition(&topic.name, partition).map(|found| found.offset()) {
            committed.set(partition, next);
        }
    }
    Ok(committed)
}

fn commit_now(settings: &Settings, group: &str, topic: &Topic, next: &Offsets) -> Result<(), LogError> {
    let failed = |error: rdkafka::error::KafkaError| LogError::Kafka {
        brokers: settings.servers(),
        doing: format!("commit offsets of topic {:?} for group {group:?}", topic.name),
        error: error.to_string(),
    };
    let consumer = consumer(settings, group)?;
    let mut offsets = TopicPartitionList::new();
    for partition in 0..topic.partitions {
        offsets.add_partition_offset(&topic.name, partition, Offset::Offset(next.get(partition))).map_err(failed)?;
    }
    consumer.commit(&offsets, CommitMode::Sync).map_err(failed)?;
    // What was acknowledged is what stands there.
    let found = committed_now(settings, &consumer, group, topic)?;
    for (partition, next) in (0..topic.partitions).map(|partition| (partition, next.get(partition))) {
        let stands = found.iter().find(|(known, _)| *known == partition).map(|(_, offset)| offset);
        if stands != Some(next) {
            return Err(LogError::Kafka {
                brokers: settings.servers(),
                doing: format!("commit offset {next} of partition {partition} for group {group:?}"),
                error: stands.map_or("none stands there".into(), |offset| format!("{offset} stands there")),
            });
        }
    }
    Ok(())
}
