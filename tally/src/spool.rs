//! `tally spool`: the clicks that a redirect keeps aside, and what is still to be done with them.

use crate::site::Site;
use crate::status::say;
use anyhow::{Context, Result, ensure};
use click::{Clock, Event, SystemClock};
use redirect::spool::aside::{self, Kept};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tally_log::Log;
use tally_log::partitioner::partition_of;
use warehouse::{Known, Topics, Warehouse};

/// How long the log may take for a click.
const SEND_WAIT: Duration = Duration::from_secs(30);

/// Shows the clicks that are kept aside in a spool's folder. A redirect may be running.
///
/// # Errors
/// If they cannot be read.
pub fn list(dir: &Path) -> Result<()> {
    let now = SystemClock.now();
    let kept = aside::list(dir).with_context(|| dir.display().to_string())?;
    let clicks: usize = kept.iter().map(|(_, kept)| kept.len()).sum();
    if clicks == 0 {
        say(&format!("{}: no click is kept aside", dir.display()));
        return Ok(());
    }
    say(
        "click                                 impression            clicked                   age        partition  why",
    );
    for kept in kept.iter().flat_map(|(_, kept)| kept) {
        let Kept { partition, reason, event, .. } = kept;
        let age =
            humantime::format_duration(Duration::from_secs((now.get() - event.timestamp.get()).max(0) as u64 / 1_000));
        say(&format!(
            "{}  {:<20}  {}  {age:<9}  {partition:<9}  {reason}",
            event.click_id,
            event.impression_id.as_str(),
            event.timestamp
        ));
    }
    say(&format!("{clicks} clicks; `tally spool send` adds those that were not counted"));
    Ok(())
}

/// Sends the clicks that are kept aside and were not counted. Each is looked up first: one whose record is there is not sent,
/// nor a valid one whose impression is billed. It would be counted as nothing, but only while the claim of the click that is
/// billed stands; after the dedup horizon it would be billed as well, and nobody knows how long the log takes. Its record is
/// not lost: the file goes to the folder `aside/settled`, and stays there. The others are late, so that they become
/// corrections of their minutes. An invalid one claims nothing, whenever it comes, and is sent as all others are.
///
/// Dies it between a send and the end of its file, the file is gone through again: what was sent is found by its click id
/// once it is final, and until then its claim is younger than the horizon. An invalid one may be logged twice, and counts
/// nothing.
///
/// # Errors
/// If something cannot be read or sent. What was not sent stays aside.
pub async fn send(dir: &Path, site: Site) -> Result<()> {
    let (log, warehouse) = site.open().await?;
    let [recorded, billed, sent] = send_all(dir, &*log, &warehouse, say).await?;
    say(&format!(
        "{sent} clicks were sent, {recorded} were there already, {billed} are of billed impressions and kept in {}",
        aside::settled(dir).display()
    ));
    Ok(())
}

/// The same with log and warehouse open; each click is told. How many were there already, are of billed impressions, and were
/// sent.
///
/// # Errors
/// As [`send`].
pub async fn send_all(dir: &Path, log: &dyn Log, warehouse: &Warehouse, tell: impl Fn(&str)) -> Result<[u64; 3]> {
    let topic = log.topic(&Topics::default().clicks).await?;
    let mut totals = [0_u64; 3];
    for (file, kept) in aside::list(dir)? {
        for Kept { event, .. } in kept {
            let click = event.click_id;
            let known = warehouse.known(&click.to_string(), event.impression_id.as_str()).await?;
            let (told, at) = match known {
                Known::Recorded => ("is in the warehouse already", 0),
                Known::Billed if event.invalid_reason.is_none() => {
                    ("is not sent: its impression is billed; its record stays in the folder aside/settled", 1)
                }
                Known::Billed | Known::Unknown => ("is sent", 2),
            };
            if at == 2 {
                let key = event.impression_id.clone();
                let partition = partition_of(key.as_str().as_bytes(), topic.partitions);
                let again = Event::Click(click::Click { attempt: event.attempt.saturating_add(1), ..event });
                let value = serde_json::to_vec(&again)?.into();
                let acknowledged = log.append(&topic, partition, Some(key.as_str().as_bytes()), value).await?;
                tokio::time::timeout(SEND_WAIT, acknowledged).await.context("the log does not answer")??;
            }
            tell(&format!("{click} {told}"));
            totals[at] += 1;
        }
        aside::settle(&file)?;
    }
    Ok(totals)
}

/// The folder of a spool.
///
/// # Errors
/// If it is none.
pub fn folder(given: Option<PathBuf>, default: PathBuf) -> Result<PathBuf> {
    let dir = given.unwrap_or(default);
    ensure!(dir.join("aside").is_dir(), "{} is not the folder of a spool: it has no folder `aside`", dir.display());
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::in_virtual_time::{by_minute, click, config, event, pass};
    use crate::machine::Machine;
    use click::{Click, InvalidReason, ManualClock};
    use std::sync::Arc;

    fn aside(config: &Config, events: &[&Click]) -> PathBuf {
        let dir = config.data.join("spool");
        std::fs::create_dir_all(dir.join("aside/settled")).unwrap();
        let kept = |event: &&Click| {
            let reason = "older than a day".to_string();
            let kept = Kept { partition: 0, spooled_at: event.timestamp, reason, event: (*event).clone() };
            kept.line().unwrap() + "\n"
        };
        std::fs::write(dir.join("aside/1.jsonl"), events.iter().map(kept).collect::<String>()).unwrap();
        dir
    }

    /// Of a click whose record arrived after all, another of its impression, an invalid one of it, and one that never arrived,
    /// the last two are sent, once; the last becomes a correction of its minute, and the invalid one counts nothing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clicks_that_were_not_counted_become_corrections() {
        let dir = tempfile::tempdir().unwrap();
        let from = SystemClock.now().plus(-2 * 3_600_000).minute().start();
        let (config, clock) = (config(dir.path()), Arc::new(ManualClock::new(from)));
        let mut machine = Machine::open(&config, clock.clone()).await.unwrap();
        let recorded = click(&machine, &clock, "imp_1", from.plus(1_000)).await;
        assert_eq!(pass(&mut machine, &clock, from.plus(70_000)).await, from.plus(60_000));
        drop(machine);

        let [billed, lost] = ["imp_1", "imp_2"].map(|impression| event(impression, from.plus(5_000)));
        let blocked = Click { invalid_reason: Some(InvalidReason::Blocked), ..event("imp_1", from.plus(6_000)) };
        let folder = aside(&config, &[&recorded, &billed, &blocked, &lost]);
        list(&folder).unwrap();
        send(&folder, Site::Machine(Box::new(config.clone()))).await.unwrap();
        assert_eq!(aside::list(&folder).unwrap(), [], "it is settled");
        let kept = std::fs::read_to_string(aside::settled(&folder).join("1.jsonl")).unwrap();
        assert!(kept.contains(&billed.click_id.to_string()), "{kept}");

        let now = SystemClock.now().plus(1_000);
        clock.set(now);
        let mut machine = Machine::open(&config, clock.clone()).await.unwrap();
        pass(&mut machine, &clock, now).await;
        assert_eq!(by_minute(&machine.warehouse, from).await, [(0, 2, true)], "a final click and a correction to come");
        pass(&mut machine, &clock, now.plus(70_000)).await;
        assert_eq!(by_minute(&machine.warehouse, from).await, [(0, 2, false)]);
        for (click, expected) in [(&recorded, Known::Recorded), (&billed, Known::Billed), (&blocked, Known::Recorded)] {
            let known = machine.warehouse.known(&click.click_id.to_string(), "imp_1").await.unwrap();
            assert_eq!(known, expected, "{click:?}");
        }
        drop(machine);
        // What was sent is found, should its file come back.
        let folder = aside(&config, &[&lost]);
        send(&folder, Site::Machine(Box::new(config.clone()))).await.unwrap();
        let mut machine = Machine::open(&config, clock.clone()).await.unwrap();
        pass(&mut machine, &clock, now.plus(140_000)).await;
        assert_eq!(by_minute(&machine.warehouse, from).await, [(0, 2, false)]);
    }

    #[tokio::test]
    async fn what_is_no_spool_or_no_site_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = folder(Some(dir.path().into()), PathBuf::new()).unwrap_err().to_string();
        assert!(error.ends_with("is not the folder of a spool: it has no folder `aside`"), "{error}");
        let config = config(dir.path());
        let folder = aside(&config, &[]);
        let error = send(&folder, Site::Machine(Box::new(config))).await.unwrap_err().to_string();
        assert!(error.ends_with("is no data folder of `tally up`"), "{error}");
    }
}
