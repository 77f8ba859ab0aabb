//! A machine that tests move, click by click, on a clock of theirs.

use crate::config::Config;
use crate::machine::Machine;
use click::{Click, ClickId, Event, ManualClock, Millis};
use std::path::Path;
use std::time::Duration;
use tally_log::Log;
use tally_log::partitioner::partition_of;
use warehouse::Warehouse;
use warehouse::report::{Order, ReportQuery, Reports, TimeUnit};

/// With a lateness of 3 s and a slack of 1 s.
pub fn config(dir: &Path) -> Config {
    Config {
        data: dir.join("data"),
        pipelines: Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines"),
        lateness: Duration::from_secs(3),
        slack: Duration::from_secs(1),
        ..Config::default()
    }
}

/// A person's click on `ad_9`.
pub fn event(impression: &str, at: Millis) -> Click {
    let id = ClickId::new(at);
    let value = format!(
        r#"{{"clickId":"{id}","impressionId":"{impression}","adId":"ad_9","campaignId":"cmp_7","publisherId":"pub_1","timestamp":"{at}","ipHash":"00","userAgent":"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0","country":"DE","seenBefore":null,"attempt":1,"invalidReason":null}}"#
    );
    serde_json::from_str(&value).unwrap()
}

/// Appends one when it is made.
pub async fn click(machine: &Machine, clock: &ManualClock, impression: &str, at: Millis) -> Click {
    clock.set(at);
    let click = event(impression, at);
    let value = serde_json::to_vec(&Event::Click(click.clone())).unwrap();
    let partition = partition_of(impression.as_bytes(), machine.clicks.partitions);
    machine.log.append(&machine.clicks, partition, None, value.into()).await.unwrap().await.unwrap();
    click
}

/// Lets time pass in every partition, and everything come to rest. Says through when all is final.
pub async fn pass(machine: &mut Machine, clock: &ManualClock, at: Millis) -> Millis {
    clock.set(at);
    for partition in 0..machine.clicks.partitions {
        let value = serde_json::to_vec(&Event::Heartbeat { timestamp: at }).unwrap();
        machine.log.append(&machine.clicks, partition, None, value.into()).await.unwrap().await.unwrap();
    }
    machine.runner.catch_up().await.unwrap();
    machine.loader.step().await.unwrap();
    machine.warehouse.status().complete_through
}

/// Minute, clicks and whether they are provisional, for a day; minutes count from its beginning.
pub async fn by_minute(warehouse: &Warehouse, from: Millis) -> Vec<(i64, i64, bool)> {
    let query = ReportQuery {
        from,
        to: from.plus(86_400_000),
        filters: Default::default(),
        time: Some(TimeUnit::Minute),
        dimensions: Vec::new(),
        limit: 1_000,
        order: Order::Columns,
    };
    let rows = warehouse.report(&query).await.unwrap().rows;
    let minute = |at: Millis| (at.get() - from.get()) / 60_000;
    rows.iter().map(|row| (minute(row.time.unwrap()), row.clicks, row.provisional)).collect()
}
