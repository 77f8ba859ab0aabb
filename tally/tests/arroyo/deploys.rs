//! `tally deploy`: by position, once, and carried on where it broke off.

use crate::fake::{Fake, Fault};
use crate::site::{PARTITIONS, Site};
use click::{Clock, Offsets, Partition, SystemClock};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::kafka::{KafkaLog, groups};
use tally_log::{Log, Topic};
use tokio::sync::Mutex;
use warehouse::backend::Backend;
use warehouse::clickhouse::ClickHouse;
use warehouse::sequence::{Entry, Kind};

/// Writes rows of the newest version as its pipeline does, from its creation on: of partition 0 up to the log's end, and of
/// partition 1 up to the record before. Each needs a record that was not there before. Holds `working` while it does so.
async fn engine(fake: Fake, log: Arc<KafkaLog>, topics: [Topic; 2], tables: Arc<ClickHouse>, working: Arc<Mutex<()>>) {
    let [clicks, raw_clicks] = topics;
    let append = async |topic: &Topic, partition: Partition, value: String| {
        log.append(topic, partition, None, value.into()).await.unwrap().await.unwrap()
    };
    loop {
        let at_work = working.lock().await;
        let entries = tables.entries().await.unwrap();
        let newest =
            entries.into_iter().filter(|entry| entry.kind == Kind::Deployment).map(|entry| entry.version).max();
        let name = format!("tally-clicks-{}", newest.unwrap_or_default());
        if fake.world().pipelines.iter().any(|pipeline| pipeline.name == name) {
            for partition in 0..PARTITIONS {
                let heartbeat = append(&clicks, partition, r#"{"kind":"heartbeat"}"#.into()).await;
                let offset = heartbeat.offset - i64::from(partition);
                let row = json!({"log_partition": partition, "log_offset": offset, "version": newest});
                append(&raw_clicks, 0, row.to_string()).await;
            }
        }
        drop(at_work);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_are_deployed_by_position() {
    let fake = Fake::default();
    let Some(site) = Site::start(&fake.listen().await).await else { return };
    for number in 0..8 {
        site.append(&site.clicks, number % PARTITIONS, r#"{"kind":"heartbeat"}"#.into()).await;
    }
    let working = Arc::new(Mutex::new(()));
    let topics = [site.clicks.clone(), site.raw_clicks.clone()];
    // A task of its own: a command that runs keeps this one.
    let engine = tokio::spawn(engine(fake.clone(), site.log.clone(), topics, site.tables.clone(), working.clone()));
    deployments(&site, &fake, &working).await;
    repairs_and_closings(&site, &fake).await;
    engine.abort();
}

async fn deployments(site: &Site, fake: &Fake, working: &Mutex<()>) {
    site.tally(&["deploy", "--status"]).refused("no pipeline was deployed yet: run `tally deploy`");
    let plan = site.tally(&["deploy", "--dry-run"]);
    plan.said("version 1\n");
    plan.said("record version 1: the first");
    assert_eq!((site.deployments().await.len(), fake.journal().len()), (0, 0), "a plan changes nothing");

    site.tally(&["deploy"]).said("version 1 counts");
    assert_eq!(fake.journal(), ["compile", "create tally-clicks-1"]);
    let query = fake.world().pipelines[0].query.clone();
    for filled in [
        format!("bootstrap_servers = '127.0.0.1:{}'", site.kafka.port()),
        "'source.group_id' = 'tally-clicks-1'".into(),
        format!("'{}' AS log_id", site.clicks.log_id),
    ] {
        assert!(query.contains(&filled), "{filled}: {query}");
    }
    let sources: Vec<_> = deploy::sources().iter().map(|function| function.source.to_string()).collect();
    let uploads = fake.world().uploads.clone();
    assert!(uploads.iter().all(|upload| *upload == sources), "every query comes with the functions' sources");
    // Unchanged it is left alone.
    site.tally(&["deploy"]).said("version 1 counts");
    assert_eq!((site.deployments().await.len(), fake.journal().len()), (1, 0));

    // A closing, then other SQL: the new version starts where the closing ended.
    let first = site.deployments().await.remove(0);
    let positions = Offsets::from_iter([(0, 3), (1, 2)]);
    let through = first.through.next();
    let closing = Entry { number: 1, kind: Kind::Closing, positions, through, ..first };
    site.tables.put_entry(&closing).await.unwrap();
    let sql = std::fs::read_to_string(site.pipeline()).unwrap();
    let changed = sql.replace("ELSE bot_reason(", "WHEN country = 'ZZ' THEN 'nowhere' ELSE bot_reason(");
    assert_ne!(changed, sql);
    std::fs::write(site.pipeline(), changed).unwrap();
    site.tally(&["deploy", "--dry-run"]).said("record version 2: SQL, a function or a setting has changed");
    site.tally(&["deploy"]).said("version 2 counts");
    assert_eq!(fake.journal(), ["compile", "checkpoint tally-clicks-1", "create tally-clicks-2"]);
    site.tally(&["deploy", "--again"]).said("version 3 counts");
    assert_eq!(fake.journal(), ["compile", "checkpoint tally-clicks-2", "create tally-clicks-3"]);

    // The claims cannot be told: it breaks off with the version recorded, and the next run carries it on.
    site.redis.pause();
    let broken = site.tally(&["deploy", "--again"]);
    site.redis.resume();
    broken.refused("telling the claims of version 4");
    assert_eq!(fake.journal(), ["compile", "checkpoint tally-clicks-3"]);
    site.tally(&["deploy", "--dry-run"]).said("tell the claims of version 4 and its start");
    site.tally(&["deploy"]).said("version 4 counts");
    assert_eq!(fake.journal(), ["compile", "create tally-clicks-4"]);
    // Arroyo refuses to create it, when all else is done.
    fake.set(Fault::BadSqlAtCreation);
    site.tally(&["deploy", "--again"]).refused("clicks.sql: Arroyo: Failed to plan query");
    fake.set(Fault::None);
    site.tally(&["deploy"]).said("version 5 counts");

    // Each version started where the closing ended, for the warehouse, for the claims and for Kafka.
    let deployments = site.deployments().await;
    let starts: Vec<Vec<_>> = deployments.iter().map(|entry| entry.positions.iter().collect()).collect();
    let after = vec![(0, 3), (1, 2)];
    assert_eq!(starts, [vec![(0, 0), (1, 0)], after.clone(), after.clone(), after.clone(), after]);
    let start = |version: i64, partition: i32| if version == 1 { 0 } else { i64::from(3 - partition) };
    for version in 1..=5 {
        let group = format!("tally-clicks-{version}");
        let committed = groups::committed(&site.settings, &group, &site.clicks).await.unwrap();
        let expected = (0..PARTITIONS).map(|partition| (partition, start(version, partition))).collect();
        assert_eq!(committed, expected, "version {version}");
        for partition in 0..PARTITIONS {
            let place = format!("{}:{partition}", site.clicks.log_id);
            let told = site.redis.call(&["HGET", &format!("claims:start:{version}"), &place]);
            assert_eq!(told, format!("$1\r\n{}\r\n", start(version, partition)), "version {version}");
        }
    }

    // How it is doing: the recorded checkpoint is long ago, until one is completed now. Nothing moves meanwhile.
    let _still = working.lock().await;
    site.tally(&["deploy", "--status"]).refused("there is a problem");
    let now = SystemClock.now().get() * 1_000;
    let completed = |checkpoint: &mut serde_json::Value| checkpoint["finish_time"] = json!(now);
    fake.world().pipelines.last_mut().unwrap().checkpoints.iter_mut().for_each(completed);
    // Whatever the file has become: what is deployed is another.
    let sql = std::fs::read_to_string(site.pipeline()).unwrap();
    std::fs::write(site.pipeline(), "SELECT nothing FROM nowhere").unwrap();
    let status = site.tally(&["deploy", "--status"]);
    site.tally(&["deploy", "--dry-run"]).refused("clicks.sql:1:");
    std::fs::write(site.pipeline(), sql).unwrap();
    status.said("version 5\ntally-clicks-5 (pl_4): Running");
    status.said("lag in records: 0: 0 1: 1\n");
    fake.world().pipelines.last_mut().unwrap().state = "Failed".into();
    let failed = site.tally(&["deploy", "--status"]);
    failed.refused("there is a problem");
    assert!(failed.out.contains("problem: tally-clicks-5 is Failed"), "{}", failed.out);
}

async fn newest(site: &Site) -> Entry {
    site.tables.entries().await.unwrap().into_iter().max_by_key(|entry| entry.number).unwrap()
}

/// What a new version finds in the warehouse beside older versions.
async fn repairs_and_closings(site: &Site, fake: &Fake) {
    // A repair is under way: it is given up only if that is asked for, and then that is said.
    let last = newest(site).await;
    let begun = Entry { number: last.number + 1, kind: Kind::RepairBegun, through: last.through.next(), ..last };
    site.tables.put_entry(&begun).await.unwrap();
    fake.journal();
    let repair = format!("repair {} of the minutes before {}", begun.number, begun.through);
    site.tally(&["deploy"]).refused(&format!("{repair} began and did not end, and version 6 would give it up"));
    assert_eq!((fake.journal().len(), site.deployments().await.len()), (0, 5));
    site.tally(&["deploy", "--again", "--dry-run"]).said(&format!("give up {repair}, which began and did not end"));
    let again = site.tally(&["deploy", "--again"]);
    again.said(&format!("{repair} was given up: version 6 counts its minutes"));
    again.said("version 6 counts\n");

    // A loader puts closings while a version is recorded: it is recorded after them.
    let (tables, of) = (site.tables.clone(), fake.clone());
    let mut last = newest(site).await;
    let loader = tokio::spawn(async move {
        while !of.world().journal.iter().any(|line| line == "checkpoint tally-clicks-6") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let until = Instant::now() + Duration::from_millis(1_500);
        while Instant::now() < until {
            last = Entry { number: last.number + 1, kind: Kind::Closing, through: last.through.next(), ..last };
            match tables.put_entry(&last).await {
                Ok(()) => {}
                Err(warehouse::Error::Taken { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        last.number
    });
    site.tally(&["deploy", "--again"]).said("version 7 counts\n");
    let closings = loader.await.unwrap();
    assert!(closings > begun.number + 1 && newest(site).await.number >= closings, "{closings}");
}
