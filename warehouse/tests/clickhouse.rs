//! What is ClickHouse's own: the schema, late and repeated inserts, races for a number, and readers in other processes.
//! Everything else that holds of it is in the tests of both kinds of tables.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Clock, Millis, Offsets};
use services::clickhouse::{ClickHouse as Service, Database};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use warehouse::backend::{Backend, Provisional};
use warehouse::clickhouse::{ClickHouse, ClickHouseReports, ServerSettings};
use warehouse::report::{Report, Reports};
use warehouse::rows::Count;
use warehouse::sequence::{Entry, Kind as EntryKind, ResultPositions};
use warehouse::{Error, Warehouse};
use world::*;

/// A site on ClickHouse, if this machine has it.
async fn site() -> Option<Site> {
    if Kind::ClickHouse.is_there() { Some(temp(Kind::ClickHouse).await) } else { None }
}

impl Site {
    /// Runs a statement on the tables.
    fn run(&self, statement: &str) -> String {
        let database = self.server().unwrap().database;
        Service::shared().unwrap().query(&statement.replace("db.", &format!("{database}.")))
    }

    async fn reader(&self) -> ClickHouseReports {
        ClickHouseReports::open(&self.server().unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn a_schema_is_migrated_or_refused() {
    let Some(server) = Service::shared() else { return };
    let database = Database::new(server);
    let settings = ServerSettings { user: server.user.clone(), ..ServerSettings::new(&server.url, &database.name) };
    let refused = async || ClickHouse::open(&settings).await.err().unwrap().to_string();
    assert!(refused().await.contains("run `tally load --migrate`"), "no database: {}", refused().await);
    server.query(&format!("CREATE DATABASE {}", database.name));
    assert!(refused().await.contains("has schema 0"), "an empty one: {}", refused().await);
    let reader = ClickHouseReports::open(&settings).await.err().unwrap().to_string();
    assert_eq!(reader, refused().await);

    // A migration that died half-way is carried out by the next one.
    ClickHouse::migrate(&settings).await.unwrap();
    server.query(&format!("DROP TABLE {}.publications", database.name));
    server.query(&format!("TRUNCATE TABLE {}.schema_migrations", database.name));
    assert!(refused().await.contains("has schema 0"));
    assert_eq!(ClickHouse::migrate(&settings).await.unwrap(), 1);
    assert_eq!(ClickHouse::migrate(&settings).await.unwrap(), 0);
    ClickHouse::open(&settings).await.unwrap();

    server.query(&format!("INSERT INTO {}.schema_migrations (number, name) VALUES (7, 'later')", database.name));
    assert!(refused().await.contains("has schema 7, made by a newer version"), "{}", refused().await);
    let error = ClickHouse::migrate(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Schema { .. }), "{error}");
}

#[tokio::test]
async fn an_error_names_the_server_and_the_statement() {
    let nowhere = ServerSettings::new("http://127.0.0.1:9", "tally");
    let error = ClickHouse::open(&nowhere).await.err().unwrap().to_string();
    assert!(error.contains("http://127.0.0.1:9/tally") && error.contains("schema_migrations"), "{error}");
    let error = ClickHouse::migrate(&ServerSettings::new("http://127.0.0.1:9", "a b")).await.unwrap_err().to_string();
    assert!(error.contains("letters, digits and underscores"), "{error}");
    let secret = ServerSettings { user: Some(("me".into(), "secret".into())), ..nowhere };
    assert!(!format!("{secret:?}").contains("secret"), "{secret:?}");

    let Some(site) = site().await else { return };
    let reader = site.reader().await;
    site.run("RENAME TABLE db.corrections_by_day TO db.elsewhere");
    let error = reader.report(&total()).await.unwrap_err().to_string();
    assert!(error.contains("UNKNOWN_TABLE") && error.contains("SELECT at, texts"), "{error}");
    site.run("RENAME TABLE db.elsewhere TO db.corrections_by_day");
    assert_eq!(reader.report(&total()).await.unwrap().clicks, 0);

    let short = ServerSettings { statement_timeout: Duration::from_secs(1), ..site.server().unwrap() };
    let reader = ClickHouseReports::open(&short).await.unwrap();
    site.run("CREATE OR REPLACE VIEW db.abandoned_closings AS SELECT toUInt64(sleep(2)) AS number");
    let error = reader.report(&total()).await.unwrap_err().to_string();
    assert!(error.contains("TIMEOUT_EXCEEDED") && error.contains("SELECT at, texts"), "{error}");
}

/// Two clicks in a minute and one in the next, late ones after it, all closed.
async fn closed(site: &Site) -> World {
    let mut world = World::new(site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(0, at("12:00:11"), "ad_1").await;
    world.billable(1, at("12:01:10"), "ad_22").await;
    world.click(1, at("11:40:30"), at("12:02:00"), "ad_1", "late").await;
    world.record(0, at("12:02:00"), b"no click").await;
    world.pass(at("12:22:30")).await;
    world.load().await;
    world.clock.set(world.clock.now().plus(2_000));
    assert_eq!(world.load().await, minute("12:17"), "{}", world.waiting());
    world
}

#[tokio::test]
async fn rows_that_come_again_change_nothing_merged_or_not() {
    let Some(site) = site().await else { return };
    let mut world = closed(&site).await;
    // The day is over too, and has its sums.
    world.pass(at("12:22:30").plus(12 * 3_600_000)).await;
    world.load().await;
    let (report, rows, tables) = (world.report(&total()).await, world.by_minute().await, site.dump().await);
    assert_eq!(report.clicks, 4);
    let counted = ["clicks_by_minute", "clicks_by_quarter_hour", "clicks_by_day"];
    let corrected = ["click_corrections", "corrections_by_minute", "corrections_by_quarter_hour", "corrections_by_day"];
    let written: Vec<&str> = ["raw_clicks", "quarantine"].into_iter().chain(counted).chain(corrected).collect();
    for table in &written {
        // Every insert again, long after its token was forgotten, in one block instead of many.
        site.run(&format!("SYSTEM STOP MERGES db.{table}"));
        let again = format!("INSERT INTO db.{table} SELECT * FROM db.{table} SETTINGS insert_deduplicate = 0");
        let count = |table: &str| site.run(&format!("SELECT count() FROM db.{table}")).trim().parse::<u64>().unwrap();
        let before = count(table);
        site.run(&again);
        assert_eq!((count(table), before > 0), (before * 2, true), "{table}");
    }
    for merged in [false, true] {
        if merged {
            for table in &written {
                site.run(&format!("SYSTEM START MERGES db.{table}"));
                site.run(&format!("OPTIMIZE TABLE db.{table} FINAL"));
            }
        }
        assert_eq!(site.dump().await, tables, "merged: {merged}");
        let Report { clicks, provisional_clicks, complete_through, .. } = world.report(&total()).await;
        assert_eq!((clicks, provisional_clicks, complete_through), (4, 0, report.complete_through));
        assert_eq!(world.by_minute().await, rows);
        world = world.restart().await;
        world.load().await;
        assert_eq!(world.report(&total()).await.clicks, 4);
    }
}

#[tokio::test]
async fn rows_of_a_closing_that_was_overtaken_never_count() {
    let Some(site) = site().await else { return };
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.click(1, at("11:40:30"), at("12:02:00"), "ad_1", "late").await;
    world.pass(at("12:07:30")).await;
    // A loader begins closing 1, another one deploys a version with that number, then the first goes on writing.
    let backend = site.backend().await.unwrap();
    let stale = Warehouse::open_on(site.backend().await.unwrap(), settings(), world.clock.clone()).await.unwrap();
    let mut entries = backend.entries().await.unwrap();
    let deployment = entries.pop().unwrap();
    let begun = Entry { number: 1, kind: EntryKind::Begun, through: at("12:02:00").minute(), ..deployment.clone() };
    world.deploy("two").await;
    backend.put_entry(&begun).await.unwrap();
    let count = Count { minute: at("12:01:00").minute(), dimensions: dimensions("ad_1"), clicks: 7 };
    let mut minutes = backend.clicks_by_minute(1).await.unwrap().unwrap();
    minutes.write(&[count]).await.unwrap();
    minutes.commit().await.unwrap();
    let closing = Entry { kind: EntryKind::Closing, ..begun };
    assert!(matches!(backend.put_entry(&closing).await.unwrap_err(), Error::Taken { number: 1, .. }));
    assert!(stale.report(&total()).await.is_ok());

    world.windows.clear();
    for (partition, offset, clicked, verdict) in [(0, 0, "12:00:10", "billable"), (1, 0, "11:40:30", "late")] {
        let appended = if verdict == "late" { "12:02:00" } else { clicked };
        world.judge(partition, offset, at(clicked), at(appended), Some("ad_1"), verdict);
    }
    for partition in 0..PARTITIONS {
        world.judge(partition, 1, at("12:07:30"), at("12:07:30"), None, "heartbeat");
    }
    world.pass(at("12:08:30")).await;
    assert_eq!(world.load().await, minute("12:03"), "{}", world.waiting());
    assert_eq!(world.report(&total()).await.clicks, 2);
    assert_eq!(site.reader().await.report(&total()).await.unwrap(), world.report(&total()).await);
}

fn dimensions(ad: &str) -> click::Dimensions {
    let text = |text: &str| Arc::from(text);
    click::Dimensions {
        ad_id: text(ad),
        campaign_id: text(&campaign(ad)),
        publisher_id: text("pub"),
        country: text("DE"),
        device: text("mobile"),
    }
}

fn entry(number: u64, kind: EntryKind, digest: &str) -> Entry {
    Entry {
        number,
        kind,
        through: at("12:00:00").minute(),
        log_id: click::LogId::random(),
        positions: Offsets::from_iter([(0, 7), (1, 9)]),
        result_positions: ResultPositions::default(),
        version: 1,
        digest: digest.to_string(),
        totals: "sum".into(),
        quarantined: vec![(0, 3)],
        finalized_at: at("12:06:00"),
    }
}

/// What `entries` rests on where two inserts see at one moment that a number is free.
#[tokio::test]
async fn of_two_inserts_with_one_token_the_server_makes_one_also_of_what_is_selected() {
    let Some(site) = site().await else { return };
    site.backend().await.unwrap().put_entry(&entry(0, EntryKind::Deployment, "first")).await.unwrap();
    for writer in ["one", "two"] {
        site.run(&format!(
            "INSERT INTO db.closings SELECT * REPLACE (7 AS number, '{writer}' AS writer) FROM db.closings \
             ORDER BY ALL SETTINGS async_insert = 0, insert_deduplicate = 1, insert_deduplication_token = 'seven'"
        ));
    }
    assert_eq!(site.run("SELECT writer FROM db.closings WHERE number = 7").trim(), "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_who_put_one_number_one_has_it() {
    let Some(site) = site().await else { return };
    let first = entry(0, EntryKind::Deployment, "it's \\ a ? \"digest\"");
    let backend = site.backend().await.unwrap();
    backend.put_entry(&first).await.unwrap();
    assert_eq!(backend.entries().await.unwrap(), std::slice::from_ref(&first), "read back as it was written");
    for round in 1..4_u64 {
        let mut tasks = Vec::new();
        for writer in 0..8 {
            let backend = site.backend().await.unwrap();
            let kind = if writer % 2 == 0 { EntryKind::Closing } else { EntryKind::Deployment };
            tasks.push(tokio::spawn(async move {
                let entry = entry(round, kind, &writer.to_string());
                backend.put_entry(&entry).await.map(|()| entry)
            }));
        }
        let mut won = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(entry) => won.push(entry),
                Err(Error::Taken { number, .. }) => assert_eq!(number, round),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert!(backend.entries().await.unwrap().contains(&won[0]));
    }
    // What arrives when the server has forgotten all tokens finds the number taken too.
    site.run("ALTER TABLE db.closings MODIFY SETTING non_replicated_deduplication_window = 0");
    let late = backend.put_entry(&entry(2, EntryKind::Closing, "late")).await.unwrap_err();
    assert!(matches!(late, Error::Taken { number: 2, .. }), "{late}");
    backend.put_entry(&entry(4, EntryKind::Begun, "")).await.unwrap();
    backend.put_entry(&entry(4, EntryKind::Closing, "")).await.unwrap();

    // Two entries of one number are not of this code's making, and are refused.
    site.run("INSERT INTO db.closings SELECT * REPLACE ('other' AS writer) FROM db.closings WHERE number = 4");
    let error = backend.entries().await.unwrap_err().to_string();
    assert!(error.contains("entry 4 is there twice"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_another_process_sees_one_moment_while_minutes_close() {
    let Some(site) = site().await else { return };
    let mut world = World::new(&site).await;
    let reader = site.reader().await;
    let mut end = Millis::default();
    for second in 0..120 {
        end = at("12:00:00").plus(second * 10_000);
        world.billable((second % 2) as i32, end, "ad_1").await;
        if second % 10 == 0 {
            world.click(1, end.plus(-600_000), end, "ad_22", "late").await;
        }
    }
    world.heartbeat(end.plus(1)).await;
    world.write_rows(|_| true).await;
    world.load().await;
    let stop = Arc::new(AtomicBool::new(false));
    let reading = {
        let stop = stop.clone();
        tokio::spawn(async move {
            let (mut through, mut moments) = (Millis::default(), 0);
            while !stop.load(Ordering::SeqCst) {
                let report = reader.report(&total()).await.unwrap();
                assert_eq!(report.clicks, 132, "{report:?}");
                assert!(report.complete_through >= through, "time goes on");
                moments += usize::from(report.complete_through > through);
                through = report.complete_through;
            }
            moments
        })
    };
    for minutes in 0..15 {
        world.write_minutes(at("12:06:30").plus(minutes * 60_000)).await;
        world.load().await;
        same_everywhere(&world, &site).await;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(reading.await.unwrap() > 3);
    // The loader dies; what it published stays, and a new one goes on.
    let before = site.reader().await.report(&by_minute_and_ad()).await.unwrap();
    let mut world = world.restart().await;
    assert_eq!(site.reader().await.report(&by_minute_and_ad()).await.unwrap(), before);
    world.load().await;
    same_everywhere(&world, &site).await;
    world.deploy("two").await;
    world.load().await;
    same_everywhere(&world, &site).await;
}

/// What the loader's own process answers, a reader does.
async fn same_everywhere(world: &World, site: &Site) {
    let reader = site.reader().await;
    for query in [total(), by_minute_and_ad()] {
        let strip = |report: Report| Report { refreshed_at: Millis::default(), ..report };
        assert_eq!(strip(reader.report(&query).await.unwrap()), strip(world.report(&query).await));
    }
}

#[tokio::test]
async fn an_epoch_outlives_a_newer_one_by_ten_minutes() {
    let Some(site) = site().await else { return };
    let backend = site.backend().await.unwrap();
    let publish = async |backend: &Arc<dyn Backend>, last: u64, whole: bool, clicks: i64| {
        let count = Count { minute: at("12:01:00").minute(), dimensions: dimensions("ad_1"), clicks };
        let (through, refreshed_at) = (at("12:00:00").minute(), at("12:01:30"));
        backend.publish(&Provisional { last, through, refreshed_at, whole, counts: vec![count] }).await
    };
    let seen = async || site.reader().await.report(&total()).await.unwrap().clicks;
    let epochs = || site.run("SELECT DISTINCT epoch FROM db.provisional ORDER BY epoch").replace('\n', " ");
    assert!(publish(&backend, 1, false, 1).await.is_err(), "changes of nothing");
    publish(&backend, 1, true, 5).await.unwrap();
    publish(&backend, 1, false, 2).await.unwrap();
    assert_eq!((seen().await, epochs()), (7, "1 ".into()));
    publish(&backend, 2, true, 8).await.unwrap();
    assert_eq!((seen().await, epochs()), (8, "1 2 ".into()));
    // Another loader, which has closed less, is not believed, whatever its epoch is.
    let other = site.backend().await.unwrap();
    publish(&other, 1, true, 100).await.unwrap();
    assert_eq!((seen().await, epochs()), (8, "1 2 3 ".into()));

    // Eleven minutes later: 2 was the newest ten minutes ago. Nobody reads 1 any more, nor 3, whoever wrote it; rows that
    // were never published are gone as well.
    site.run("ALTER TABLE db.publications UPDATE published_at = now64(3) - INTERVAL 11 MINUTE WHERE 1 SETTINGS mutations_sync = 1");
    site.run("INSERT INTO db.provisional (epoch, loader, sequence) VALUES (0, 'dead', 0)");
    publish(&backend, 3, true, 9).await.unwrap();
    assert_eq!((seen().await, epochs()), (9, "2 4 ".into()));
    let kept: BTreeMap<&str, usize> = BTreeMap::from([("2", 1), ("4", 1)]);
    let published = site.run("SELECT epoch FROM db.publications ORDER BY epoch");
    assert_eq!(published.lines().map(|line| (line, 1)).collect::<BTreeMap<_, _>>(), kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_has_all_that_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let port = services::free_port();
    let Some(mut server) = Service::start_in(folder.path(), port) else { return };
    let settings =
        ServerSettings { statement_timeout: Duration::from_secs(20), ..ServerSettings::new(&server.url, "t") };
    ClickHouse::migrate(&settings).await.unwrap();
    let backend = ClickHouse::open(&settings).await.unwrap();
    let count = |number: u64, ad: usize| Count {
        minute: at("12:00:00").minute().start().plus(number as i64 * 60_000).minute(),
        dimensions: dimensions(&format!("ad_{ad}")),
        clicks: 1 + ad as i64,
    };
    for number in 0..6_u64 {
        backend.put_entry(&entry(number, EntryKind::Begun, "")).await.unwrap();
        let mut minutes = backend.clicks_by_minute(number).await.unwrap().unwrap();
        minutes.write(&(0..100).map(|ad| count(number, ad)).collect::<Vec<_>>()).await.unwrap();
        minutes.commit().await.unwrap();
        if number % 2 == 1 {
            // It died before it noted that the step was done.
            server.query("TRUNCATE TABLE t.closing_steps");
        }
        server.kill();
        let error = backend.entries().await.unwrap_err().to_string();
        assert!(error.contains(&settings.url) && error.contains("FROM closings"), "{error}");
        server = Service::start_in(folder.path(), port).unwrap();
        let begun = backend.entries().await.unwrap().into_iter().filter(|entry| entry.kind == EntryKind::Begun);
        assert_eq!(begun.map(|entry| entry.number).max(), Some(number));
        match backend.clicks_by_minute(number).await.unwrap() {
            None => assert_eq!(number % 2, 0),
            Some(mut minutes) => {
                minutes.write(&(0..100).map(|ad| count(number, ad)).collect::<Vec<_>>()).await.unwrap();
                minutes.commit().await.unwrap();
            }
        }
        backend.put_entry(&entry(number, EntryKind::Closing, "")).await.unwrap();
    }
    let counted = server.query("SELECT count(), sum(clicks) FROM t.clicks_by_minute FINAL");
    assert_eq!(counted, "600\t30300\n");
    assert_eq!(
        backend.view(5).await.unwrap().report(&total(), at("12:06:00").minute(), vec![]).await.unwrap().clicks,
        30300
    );
    server.kill();
}
