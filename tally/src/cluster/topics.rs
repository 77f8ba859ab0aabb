//! `tally topics`: makes the topics, or says what is wrong with them and the command that mends it.
//!
//! Positions in the warehouse are of one life of each topic. So a topic that the warehouse has counted is compared with what
//! is recorded of it, and `clicks` is not made in its place: that would be another log.

use super::config::Config;
use crate::status::say;
use anyhow::{Result, bail};
use click::{LogId, Offset, Offsets, Partition};
use std::ops::Range;
use std::time::{Duration, Instant};
use tally_log::kafka::KafkaLog;
use tally_log::kafka::topics::{Problem, Report, create_or_check, id};
use tally_log::{Log, LogError};
use warehouse::clickhouse::ClickHouse;
use warehouse::sequence::Entry;
use warehouse::{Error, Topics};

/// How long a ClickHouse that does not answer is waited for: one that is started beside this is there by then.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the warehouse says of the topics.
enum Recorded {
    /// Nothing was deployed to it yet.
    Nothing,
    Last(Box<Entry>),
    /// It does not say; why.
    Unknown(String),
}

pub async fn topics(config: &Config) -> Result<()> {
    let Topics { clicks, raw_clicks, clicks_by_minute } = Topics::default();
    let found = id(&config.kafka, &clicks).await?;
    // Before a topic is made it has to be known. Redirects, which need the topics and not the warehouse, wait for no more.
    let recorded = recorded(config, if found.is_some() { Duration::ZERO } else { WAIT_MAX }).await;
    let other_life = other_life(config, &recorded, &clicks, found);
    let mut names: Vec<&str> = vec![&raw_clicks, &clicks_by_minute];
    if found.is_some() || other_life.is_none() {
        names.insert(0, &clicks);
    }
    let mut report = create_or_check(&config.kafka, &names).await?;
    report.problems.extend(other_life);
    match &recorded {
        Recorded::Nothing => {}
        Recorded::Last(last) => {
            let log = KafkaLog::new(config.kafka.clone())?;
            let results = &last.result_positions;
            for (name, needed) in [(&raw_clicks, &results.raw_clicks), (&clicks_by_minute, &results.clicks_by_minute)] {
                report.problems.extend(unread(&log, name, needed).await?);
            }
        }
        Recorded::Unknown(why) => report.warnings.push(format!(
            "it is not known whether these are the topics that the warehouse counts, which says nothing: {why}"
        )),
    }
    tell(&report)
}

async fn recorded(config: &Config, wait: Duration) -> Recorded {
    let began = Instant::now();
    loop {
        match ClickHouse::sequence(&config.clickhouse.server()).await {
            Ok(Some(sequence)) => return Recorded::Last(Box::new(sequence.last)),
            Ok(None) => return Recorded::Nothing,
            Err(Error::Statement { .. }) if began.elapsed() < wait => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => return Recorded::Unknown(error.to_string()),
        }
    }
}

fn tell(report: &Report) -> Result<()> {
    for topic in &report.created {
        say(&format!("created   {topic}"));
    }
    for topic in &report.checked {
        say(&format!("checked   {topic}"));
    }
    for warning in &report.warnings {
        say(&format!("warning   {warning}"));
    }
    for problem in &report.problems {
        say(&format!("wrong     {}: {}\n          {}", problem.topic, problem.what, problem.mend));
    }
    match report.problems.len() {
        0 => Ok(()),
        problems => {
            bail!(
                "what is wrong with the topics ({problems}) could lose or misplace clicks; nothing was changed in those that are there"
            )
        }
    }
}

/// What is wrong if this is not the topic that the warehouse counts.
fn other_life(config: &Config, recorded: &Recorded, clicks: &str, found: Option<LogId>) -> Option<Problem> {
    let database = &config.clickhouse.database;
    let (what, mend) = match (recorded, found) {
        (Recorded::Last(last), Some(found)) if last.log_id != found => {
            let counted = last.log_id;
            let what = format!(
                "it was made anew: it is log {found}, and the warehouse in database {database} counts log {counted}, so no \
                 minute closes any more, and what is appended now is counted by nobody"
            );
            (what, begin_anew(config))
        }
        (Recorded::Last(last), None) => {
            let (counted, positions) = (last.log_id, shown(&last.positions));
            let what = format!(
                "it is gone: the warehouse in database {database} counts it as log {counted}, and has its records before \
                 {positions}. It is not made again, since that would be another log"
            );
            (what, begin_anew(config))
        }
        (Recorded::Unknown(why), None) => {
            let what = format!(
                "it is missing, and was not made: whether the warehouse counts one of this name, which is gone, is not known: \
                 {why}"
            );
            (what, format!("run `tally topics` again when clickhouse.url = {:?} answers", config.clickhouse.url))
        }
        _ => return None,
    };
    Some(Problem { topic: clicks.to_owned(), what, mend })
}

/// There is no way back to a log whose records are gone: what is final stays where it is, and a new warehouse begins.
fn begin_anew(config: &Config) -> String {
    format!(
        "is kafka.brokers = {:?} the right cluster? Then bring back the brokers' disks as they were. If that cannot be, what was \
         not final is lost with the log: keep database {} for its reports, and begin a new warehouse, with another \
         clickhouse.database, another arroyo.name (or an empty run.data), and a claims.url without claims, by `tally topics`, \
         `tally load --migrate`, and `tally deploy` (or `tally run`). Then start the redirects again, which keep clicks in their \
         spools until then",
        config.kafka.brokers.join(","),
        config.clickhouse.database
    )
}

/// What is wrong if rows that the next closing needs are not in a result topic.
async fn unread(log: &KafkaLog, name: &str, needed: &Offsets) -> Result<Option<Problem>> {
    let topic = match log.topic(name).await {
        Ok(topic) => topic,
        // It is among the problems already.
        Err(LogError::PartitionsChanged { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for partition in 0..topic.partitions {
        let (held, from) = (log.held(&topic, partition).await?, needed.get(partition));
        if let Some(what) = missing(partition, &held, from) {
            let mend = "`tally deploy --again` (or `tally run --again`) has the rows made again from the log".into();
            return Ok(Some(Problem { topic: name.to_owned(), what, mend }));
        }
    }
    Ok(None)
}

fn missing(partition: Partition, held: &Range<Offset>, from: Offset) -> Option<String> {
    let why = if from < held.start {
        "rows expired before they were read"
    } else if from > held.end {
        "it was made anew, or has lost rows"
    } else {
        return None;
    };
    let Range { start, end } = held;
    Some(format!("partition {partition} holds {start} to {end}, and the warehouse reads on at {from}: {why}"))
}

fn shown(positions: &Offsets) -> String {
    let positions: Vec<String> = positions.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
    positions.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_missing_on_either_side() {
        let missing = |from| missing(1, &(10..20), from).unwrap_or_default();
        assert_eq!([missing(10), missing(15), missing(20)], ["", "", ""]);
        let expired = "partition 1 holds 10 to 20, and the warehouse reads on at 9: rows expired before they were read";
        assert_eq!(missing(9), expired);
        assert!(missing(21).ends_with("it was made anew, or has lost rows"));
    }
}
