//! `tally claims`: what an operator does with the claims in Redis.

use super::config::Config;
use super::reading;
use super::run::warehouse;
use crate::status::say;
use anyhow::{Context, Result, ensure};
use claims::{Billed, Claims, Deployment, LogRecord};
use click::{Millis, Offsets, Partition};
use futures::stream::{self, Stream, TryStreamExt};
use pipeline_files::PipelineFiles;
use runner::ClaimKeys;
use std::time::{Duration, Instant};
use tally_log::{Consumer, Log, Record, Topic};
use warehouse::Claimant;
use warehouse::clickhouse::ClickHouse;
use warehouse::sequence::Entry;

/// How often it is said how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Restores claims that Redis lost: those before the newest version's start from final rows of the warehouse, those from
/// there on from the log, to its end of this moment. An engine that waits for them goes on by itself meanwhile.
///
/// # Errors
/// If nothing was deployed, the pipeline files are not those of the newest version, or one of Redis, Kafka and ClickHouse
/// fails. Claims that were not restored are missed as before, and it can be run again.
pub async fn rebuild(config: &Config) -> Result<()> {
    let files = PipelineFiles::read(&config.pipelines)?;
    let log = super::kafka(config)?;
    let entries = warehouse(config).await?.deployments().await?;
    let newest = entries.last().context("no pipeline was deployed yet, so there is nothing to rebuild")?;
    let digest = deploy::digest(&files, &deploy::sources(), config.lateness(), config.horizon_ms())?;
    ensure!(
        newest.digest == digest,
        "version {} was deployed with other SQL, functions or settings than {} and this program have, and only with its own \
         it is known what each record claimed: use them, or run `tally deploy` first",
        newest.version,
        config.pipelines.display()
    );
    let mut keys = ClaimKeys::plan(&files, config.lateness(), newest.version, newest.log_id).await?;
    let topic = log.topic(keys.topic()).await?;
    ensure!(
        topic.log_id == newest.log_id,
        "topic {} was made anew: version {} is of log {}, and it is log {} now",
        topic.name,
        newest.version,
        newest.log_id,
        topic.log_id
    );
    let deployments = deployments(&entries, topic.partitions);
    let start = every_partition(&newest.positions, topic.partitions);
    // A record at or after the start was appended after the last minute that was final then, whichever broker's clock it
    // was: so no claim that can still matter is older than this.
    let from = since(config, newest);
    let rows = final_rows(config, newest, &start).await?;
    let consumer = log.consumer(&topic, &start).await.with_context(|| {
        format!("the log from the start of version {}; `tally deploy --again` sets a later one", newest.version)
    })?;
    let ends = tally_log::ends(&*log, &topic).await?;
    let records = records(consumer, &topic, ends).and_then(move |records| {
        let claimed = keys.of(&records).map_err(anyhow::Error::from);
        std::future::ready(claimed.map(|claimed| stream::iter(claimed.into_iter().map(Ok))))
    });
    let records = records.try_flatten().map_ok(|claimed| LogRecord {
        claim_key: claimed.key,
        partition: claimed.partition,
        offset: claimed.offset,
        appended_at: claimed.appended_at,
    });
    tracing::info!(version = newest.version, log = %topic.log_id, %from, "restoring claims");
    let mut claims = Claims::connect(&config.claims.url).await.context("claims.url")?;
    let rows = telling("final rows", rows);
    let records = telling("records of the log", records);
    let rebuilt = claims.rebuild(&deployments, config.horizon_ms(), from, rows, records).await?;
    say(&format!(
        "restored {} claims of {} final rows from {from} on; claimed {} of {} records of the log from version {} on",
        rebuilt.restored, rebuilt.rows, rebuilt.claimed, rebuilt.records, newest.version
    ));
    Ok(())
}

/// Restores the claims of what a repair billed, and of all that was final before it: the engine may have skipped it, and
/// billed other clicks on its impressions since.
pub(crate) async fn restore(config: &Config, repair: &Entry) -> Result<()> {
    let rows = telling("final rows", final_rows(config, repair, &repair.positions).await?);
    let mut claims = Claims::connect(&config.claims.url).await.context("claims.url")?;
    let restored = claims.restore(rows).await?;
    say(&format!("restored {restored} claims of final rows from {} on", since(config, repair)));
    Ok(())
}

/// The append time from which on claims still matter to records behind an entry.
fn since(config: &Config, entry: &Entry) -> Millis {
    entry.through.start().plus(-config.horizon_ms())
}

/// Final rows that hold a claim, those before the entry's positions.
async fn final_rows(
    config: &Config,
    entry: &Entry,
    before: &Offsets,
) -> Result<impl Stream<Item = Result<Billed>> + use<>> {
    let tables = ClickHouse::open(&config.clickhouse.server()).await?;
    let rows = tables.claimants(entry.log_id, before, since(config, entry));
    let billed = |row: Claimant| Billed {
        impression_id: row.impression_id,
        position: row.position,
        appended_at: row.appended_at,
        version: row.version,
    };
    Ok(rows.map_ok(billed).map_err(anyhow::Error::from))
}

/// The recorded versions, as the claims want them: with every partition.
pub(super) fn deployments(entries: &[Entry], partitions: Partition) -> Vec<Deployment> {
    let deployment = |entry: &Entry| Deployment {
        version: entry.version,
        log_id: entry.log_id,
        positions: every_partition(&entry.positions, partitions),
    };
    entries.iter().map(deployment).collect()
}

/// A partition that is not named starts at its beginning.
fn every_partition(positions: &Offsets, partitions: Partition) -> Offsets {
    (0..partitions).map(|partition| (partition, positions.get(partition))).collect()
}

/// The records of a topic up to these ends, as they come.
fn records(
    consumer: Box<dyn Consumer>,
    topic: &Topic,
    ends: Offsets,
) -> impl Stream<Item = Result<Vec<Record>>> + use<> {
    stream::try_unfold((consumer, topic.name.clone(), ends), async |(mut consumer, topic, ends)| {
        let records = reading::next(&mut *consumer, &topic, &ends, reading::RECORDS_MAX).await?;
        Ok(records.map(|records| (records, (consumer, topic, ends))))
    })
}

/// Says now and then how many there were.
fn telling<T, E>(of: &'static str, items: impl Stream<Item = Result<T, E>>) -> impl Stream<Item = Result<T, E>> {
    let (mut read, mut said) = (0_u64, Instant::now());
    items.inspect_ok(move |_| {
        read += 1;
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            tracing::info!(read, "reading {of}");
        }
    })
}
