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

fn commit_now(settings: &Settings, group: &str, topic: &Topic, next: &Offsets) -> Result<(), LogError> {
    let failed = |error: rdkafka::error::KafkaError| LogError::Kafka {
        brokers: settings.servers(),
        doing: format!("commit offsets of topic {:?} for group {group:?}", topic.name),
        error: error.to_string(),
    };
    let mut config = settings.query();
    config.set("group.id", group);
    let consumer: BaseConsumer = config.create().map_err(refused)?;
    let mut offsets = TopicPartitionList::new();
    for partition in 0..topic.partitions {
        offsets.add_partition_offset(&topic.name, partition, Offset::Offset(next.get(partition))).map_err(failed)?;
    }
    consumer.commit(&offsets, CommitMode::Sync).map_err(failed)?;
    // What was acknowledged is what stands there.
    let committed = consumer.committed_offsets(offsets.clone(), settings.request_timeout).map_err(failed)?;
    for partition in 0..topic.partitions {
        let found = committed.find_partition(&topic.name, partition).map(|found| found.offset());
        if found != Some(Offset::Offset(next.get(partition))) {
            return Err(LogError::Kafka {
                brokers: settings.servers(),
                doing: format!("commit offset {} of partition {partition} for group {group:?}", next.get(partition)),
                error: format!("{found:?} stands there"),
            });
        }
    }
    Ok(())
}
