//! When a minute is final, and what is never counted. `crash.rs` lets the loader die, `reports.rs` asks for reports.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Clock, Lateness, Millis};
use serde_json::json;
use std::sync::Arc;
use tally_log::Log;
use warehouse::report::{Dimension, Reports};
use warehouse::{Error, Known, Loader, Settings, Topics, Warehouse};
use world::*;

on_each_kind! {
    a_minute_closes_at_its_time_and_not_before,
    many_silent_minutes_close_and_the_same_digest_changes_nothing,
    a_minute_row_that_does_not_come_is_waited_for,
    a_raw_row_that_does_not_come_is_an_alarm,
    a_partition_that_gives_no_rows_is_named,
    a_raw_row_that_changed_on_its_way_is_seen,
    two_rows_of_one_key_that_differ_stop_the_minute,
    what_is_final_never_changes,
    undecided_rows_hold_the_minute_until_they_are_decided,
    a_billable_row_that_is_late_is_impossible,
    a_late_click_is_a_correction,
    with_a_longer_lateness_a_click_on_time_of_a_final_minute_is_a_correction,
    a_record_that_is_no_click_goes_to_quarantine,
    a_second_loader_stops,
    a_new_version_takes_over_in_the_middle_of_a_minute,
    provisional_numbers_are_the_same_after_a_restart,
    a_topic_that_was_made_anew_is_not_taken_for_the_old_one,
    reports_are_of_one_moment_while_minutes_close,
    append_times_that_go_back_by_the_slack_hold_nothing_up,
    append_times_that_go_back_further_are_named,
    a_click_is_known_by_its_record_or_its_billed_impression,
}

async fn a_minute_closes_at_its_time_and_not_before(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    assert_eq!(world.load().await, minute("11:54"), "5:30 before the deployment");
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(1, at("12:00:59.999"), "ad_1").await;
    world.billable(1, at("12:01:00"), "ad_1").await;
    world.pass(at("12:06:29.999")).await;
    assert_eq!(world.load().await, minute("12:00"), "silent minutes close too");
    let provisional = [("12:00".to_string(), "ad_1".to_string(), 2, true), ("12:01".into(), "ad_1".into(), 1, true)];
    assert_eq!(world.by_minute().await, provisional);

    // One partition alone is not enough.
    world.heartbeat_in(0, at("12:06:30")).await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:06:30")).await;
    assert_eq!(world.load().await, minute("12:00"));
    world.heartbeat_in(1, at("12:06:30")).await;
    world.write_rows(|_| true).await;
    assert_eq!(world.load().await, minute("12:01"));
    let rows = world.by_minute().await;
    assert_eq!(rows.iter().map(|row| (row.2, row.3)).collect::<Vec<_>>(), [(2, false), (1, true)]);
    assert_eq!(world.waiting(), "");
}

async fn many_silent_minutes_close_and_the_same_digest_changes_nothing(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.pass(at("13:00:00")).await;
    assert_eq!(world.load().await, minute("12:54"));
    let again = world.deploy("one").await;
    assert!(!again.new && again.version == 1);
    let mut world = world.restart().await;
    assert_eq!(world.load().await, minute("12:54"));
    assert!(!world.deploy("one").await.new);
    let two = world.deploy("two").await;
    assert!(two.new && two.version == 2 && two.positions.iter().all(|(_, offset)| offset == 0), "{two:?}");
}

/// A click in each of two minutes, all rows written but for what `change` does, and the time in which both close.
async fn two_minutes(world: &mut World) {
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(0, at("12:00:11"), "ad_1").await;
    world.billable(1, at("12:01:10"), "ad_22").await;
    world.heartbeat(at("12:07:30")).await;
}

fn minutes_open_and_refused(world: &World) -> (u64, u64) {
    let status = world.warehouse.status();
    (status.open_minutes, status.refused_minutes)
}

async fn a_minute_row_that_does_not_come_is_waited_for(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    assert_eq!(world.load().await, minute("12:00"));
    assert!(world.waiting().contains("the engine says 0, raw rows say 2"), "{}", world.waiting());
    // Both are due, and neither agrees.
    assert_eq!(minutes_open_and_refused(&world), (2, 2));
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:02"));
    assert_eq!(world.waiting(), "");
    assert_eq!(minutes_open_and_refused(&world), (0, 0));
}

async fn a_raw_row_that_does_not_come_is_an_alarm(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    let rows = world.rows.clone();
    world.write_rows(|row| row.position != (0, 1)).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"), "a gap holds up everything after it");
    assert_eq!(world.waiting(), "", "rows may be on their way");
    world.clock.set(world.clock.now().plus(2_000));
    assert_eq!(world.load().await, minute("11:54"));
    assert!(world.waiting().starts_with("the engine skipped a record at "), "{}", world.waiting());
    assert!(world.waiting().ends_with(":0:1"), "{}", world.waiting());
    let row = rows.iter().find(|row| row.position == (0, 1)).unwrap();
    world.write_raw(&row.json).await;
    assert_eq!(world.load().await, minute("12:02"));
}

async fn a_partition_that_gives_no_rows_is_named(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    let rows = world.rows.clone();
    world.write_rows(|row| row.position.0 == 0).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    world.clock.set(at("12:07:59.999"));
    world.load().await;
    assert_eq!(world.waiting(), "", "rows may be on their way");
    world.clock.set(at("12:08:00"));
    assert_eq!(world.load().await, minute("11:54"));
    let named = "no raw row of partition 1 from offset 0 on since 2026-04-20T12:07:30.000Z, and the log goes to 2";
    assert_eq!(world.waiting(), named);
    let [first, second] = [0, 1].map(|partition| world.warehouse.status().partitions[&partition]);
    assert_eq!((first.reached, first.lag), (Some(at("12:07:30")), 0));
    assert_eq!((second.reached, second.lag), (None, 2));
    for row in rows.iter().filter(|row| row.position.0 == 1) {
        world.write_raw(&row.json).await;
    }
    assert_eq!(world.load().await, minute("12:02"));
    assert_eq!(world.waiting(), "");
}

async fn a_raw_row_that_changed_on_its_way_is_seen(kind: Kind) {
    // The claim was lost: billable became duplicate, the engine's minute says otherwise.
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.rows[1].json["verdict"] = json!("duplicate");
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:00"));
    assert!(world.waiting().contains("the engine says 2, raw rows say 1"), "{}", world.waiting());

    // Half a row is no row.
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    let half = world.rows[1].json.to_string();
    world.write_rows(|row| row.position != (0, 1)).await;
    let raw = world.log.topic("raw_clicks").await.unwrap();
    world.log.append(&raw, 0, None, half.into_bytes()[..100].to_vec().into()).await.unwrap().await.unwrap();
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    assert_eq!(world.warehouse.status().unreadable, 1);
}

async fn two_rows_of_one_key_that_differ_stop_the_minute(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.rows.push(world.rows[0].clone());
    world.rows.last_mut().unwrap().json["ad_id"] = json!("ad_2");
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    assert!(world.waiting().contains("two raw rows of"), "{}", world.waiting());

    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    let (key, clicks) = world.windows.first_key_value().map(|(key, clicks)| (key.clone(), *clicks)).unwrap();
    world.write_minutes(at("12:07:30")).await;
    world.write_minute(&world.minute_row(key.0, &key.1, clicks + 1)).await;
    assert_eq!(world.load().await, minute("12:00"));
    assert!(world.waiting().contains("the engine says 2 and 3"), "{}", world.waiting());
}

async fn what_is_final_never_changes(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    let (rows, windows) = (world.rows.clone(), world.windows.clone());
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:02"));
    let before = world.by_minute().await;

    // A replay says the same: nothing happens.
    for row in &rows {
        world.write_raw(&row.json).await;
    }
    for ((minute, values), clicks) in &windows {
        world.write_minute(&world.minute_row(*minute, values, *clicks)).await;
    }
    world.load().await;
    let status = world.warehouse.status();
    // The heartbeats at the end are not in the warehouse yet; they are replayed all the same.
    assert_eq!((status.refused, status.replayed), (0, rows.len() as u64 + windows.len() as u64));
    assert_eq!(status.rows, rows.len() as u64);

    // Something else is refused.
    let ((minute, values), clicks) = windows.first_key_value().unwrap();
    world.write_minute(&world.minute_row(*minute, values, clicks + 1)).await;
    world.write_minute(&world.minute_row(*minute, &values.clone().map(|_| "other".into()), 1)).await;
    world.load().await;
    assert_eq!(world.warehouse.status().refused, 2);
    // So is a click that was billed and now is said not to be.
    let replayed = world.warehouse.status().replayed;
    for row in rows.iter().filter(|row| row.json["verdict"] == "billable") {
        let mut other = row.json.clone();
        other["verdict"] = json!("duplicate");
        world.write_raw(&other).await;
    }
    world.load().await;
    let status = world.warehouse.status();
    assert_eq!((status.refused, status.replayed), (2 + 3, replayed));
    // And one that is billed in another group, or in another minute.
    let billed = rows.iter().find(|row| row.json["verdict"] == "billable").unwrap();
    for (column, value) in [("device", "tablet"), ("ad_id", "ad_other"), ("timestamp", "2026-04-20T11:59:59")] {
        let mut other = billed.json.clone();
        assert_ne!(other[column], value);
        other[column] = json!(value);
        world.write_raw(&other).await;
    }
    // In another second of its minute it counts for the same.
    let mut same = billed.json.clone();
    same["timestamp"] = json!("2026-04-20T12:00:09");
    world.write_raw(&same).await;
    world.load().await;
    let status = world.warehouse.status();
    assert_eq!((status.refused, status.replayed), (2 + 3 + 3, replayed + 1));
    assert_eq!(world.by_minute().await, before);
    assert!(before.iter().all(|row| !row.3));
}

async fn undecided_rows_hold_the_minute_until_they_are_decided(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    let decided = world.rows[1].json.clone();
    world.rows[1].json["verdict"] = json!("undecided");
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    assert!(world.waiting().contains("no answer about the claim"), "{}", world.waiting());
    world.write_raw(&decided).await;
    assert_eq!(world.load().await, minute("12:02"));
    let raw = &site.dump().await["raw_clicks"];
    assert!(!raw.iter().any(|row| row.contains("undecided")), "{raw:?}");
}

async fn a_billable_row_that_is_late_is_impossible(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.click(0, at("12:00:10"), at("12:05:10.001"), "ad_1", "billable").await;
    world.pass(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    assert!(world.waiting().contains("came too late"), "{}", world.waiting());
}

async fn a_late_click_is_a_correction(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:02"));
    world.click(1, at("12:00:30"), at("12:08:00"), "ad_1", "late").await;
    world.write_rows(|_| true).await;
    world.load().await;
    let rows = world.by_minute().await;
    assert_eq!((rows[0].2, rows[0].3), (3, true), "closed and pending: {rows:?}");
    let report = world.report(&total()).await;
    assert_eq!((report.clicks, report.provisional_clicks), (4, 1));

    world.pass(at("12:14:00")).await;
    assert_eq!(world.load().await, minute("12:08"));
    let rows = world.by_minute().await;
    assert_eq!((rows[0].2, rows[0].3), (3, false), "{rows:?}");
    let report = world.report(&total()).await;
    assert_eq!((report.clicks, report.provisional_clicks), (4, 0));
    let tables = site.dump().await;
    assert_eq!(tables["click_corrections"].len(), 2, "a head and a row: {:?}", tables["click_corrections"]);
    assert!(tables["clicks_by_minute"].iter().any(|row| row.contains("2026-04-20T12:00:00Z") && row.contains("| 2 ")));
}

async fn with_a_longer_lateness_a_click_on_time_of_a_final_minute_is_a_correction(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:02"));
    let clock = world.clock.clone();
    drop(world);
    let lateness = Lateness { lateness_ms: 600_000, slack_ms: 30_000 };
    let longer = Settings { lateness, ..settings() };
    let warehouse = site.warehouse_with(longer, &clock).await.unwrap();
    let log = World::open_log(site.path(), &clock);
    let mut world = World::with(&site, clock, log, warehouse).await;
    let deployment = world.deploy("longer").await;
    for partition in 0..PARTITIONS {
        world.judge(partition, deployment.positions.get(partition), at("12:07:30"), at("12:07:30"), None, "heartbeat");
    }
    world.click(1, at("12:00:30"), at("12:08:00"), "ad_1", "billable").await;
    world.write_rows(|_| true).await;
    world.load().await;
    assert_eq!(world.waiting(), "");
    let report = world.report(&total()).await;
    assert_eq!((report.clicks, report.provisional_clicks), (4, 1));
    world.windows.clear();
    world.pass(at("12:20:00")).await;
    assert_eq!(world.load().await, minute("12:09"), "{}", world.waiting());
    let report = world.report(&total()).await;
    assert_eq!((report.clicks, report.provisional_clicks), (4, 0));
    let tables = site.dump().await;
    assert_eq!(tables["click_corrections"].len(), 2, "{:?}", tables["click_corrections"]);
    // With the shorter one again more minutes are complete.
    let mut world = world.restart().await;
    assert_eq!(world.load().await, minute("12:14"));
    assert_eq!(world.report(&total()).await.clicks, 4);
}

async fn a_record_that_is_no_click_goes_to_quarantine(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.record(0, at("12:00:11"), b"{\"kind\":\"click\",\"clickId\":\xff").await;
    world.record(0, at("12:00:11"), b"").await;
    world.billable(0, at("12:00:12"), "ad_1").await;
    world.pass(at("12:06:30")).await;
    assert_eq!(world.load().await, minute("11:54"));
    world.clock.set(world.clock.now().plus(2_000));
    assert_eq!(world.load().await, minute("12:01"));
    assert_eq!(world.warehouse.status().quarantined, 2);
    let tables = site.dump().await;
    assert_eq!((tables["quarantine"].len(), world.by_minute().await[0].2), (3, 2));
}

async fn a_second_loader_stops(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    if kind == Kind::Delta {
        let second = site.warehouse(&world.clock).await;
        assert!(matches!(second.err().unwrap(), Error::InUse(_)));
    }

    // One that got past the lock, on another machine: its number is taken.
    let second = Warehouse::open_on(site.backend().await.unwrap(), settings(), world.clock.clone()).await.unwrap();
    let log: Arc<dyn Log> = world.log.clone();
    let mut second = Loader::start(&second, log, Topics::default()).await.unwrap();
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(world.load().await, minute("12:02"));
    let error = second.step().await.unwrap_err();
    assert!(matches!(error, Error::Taken { .. }), "{error}");
    assert_eq!(world.report(&total()).await.clicks, 3);
}

async fn a_new_version_takes_over_in_the_middle_of_a_minute(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(0, at("12:05:20"), "ad_1").await;
    world.pass(at("12:06:30")).await;
    // Before P in p0: the clicks of 12:00 and 12:05; the closing's P is the heartbeat at 12:06:30.
    assert_eq!(world.load().await, minute("12:01"));
    world.billable(0, at("12:06:40"), "ad_1").await;
    world.write_rows(|_| true).await;
    world.load().await;
    assert_eq!(world.report(&total()).await.clicks, 3);

    let deployment = world.deploy("two").await;
    assert_eq!(deployment.positions.get(0), 2);
    let old_windows = std::mem::take(&mut world.windows);
    world.load().await;
    assert_eq!(world.report(&total()).await.clicks, 2, "rows from P on are void");
    // The new engine starts at P with empty windows; its rule finds the last click to be a bot.
    world.judge(0, 2, at("12:06:30"), at("12:06:30"), None, "heartbeat");
    world.judge(0, 3, at("12:06:40"), at("12:06:40"), Some("ad_1"), "bot");
    world.judge(1, 0, at("12:06:30"), at("12:06:30"), None, "heartbeat");
    world.billable(0, at("12:06:45"), "ad_1").await;
    world.write_rows(|_| true).await;
    // A stray row of the old version is ignored, also if it is of an open minute.
    for ((minute, values), clicks) in old_windows {
        let mut row = world.minute_row(minute, &values, clicks);
        row["version"] = json!(1);
        world.write_minute(&row).await;
    }
    world.pass(at("12:13:00")).await;
    assert_eq!(world.load().await, minute("12:07"), "{}", world.waiting());
    let rows: Vec<_> = world.by_minute().await.into_iter().map(|row| (row.0, row.2, row.3)).collect();
    let expected = [("12:00", 1, false), ("12:05", 1, false), ("12:06", 1, false)];
    assert_eq!(rows, expected.map(|(time, clicks, provisional)| (time.to_string(), clicks, provisional)));

    // The same again after a restart, and the old version's share of an open minute survives one.
    let mut world = world.restart().await;
    world.load().await;
    assert_eq!(world.by_minute().await.len(), 3);
}

async fn provisional_numbers_are_the_same_after_a_restart(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    for second in 0..40 {
        let clicked = at("12:00:05").plus(second * 20_000);
        world.billable((second % 2) as i32, clicked, ["ad_1", "ad_22"][(second % 3 == 0) as usize]).await;
        if second % 10 == 9 {
            let late = clicked.plus(-400_000);
            world.click(0, late, clicked, "ad_1", "late").await;
        }
        world.write_rows(|_| true).await;
        world.write_minutes(clicked).await;
        world.heartbeat(clicked.plus(1_000)).await;
        world.load().await;
    }
    world.write_rows(|_| true).await;
    let through = world.load().await;
    assert_eq!(through, minute("12:07"));
    let (rows, report) = (world.by_minute().await, world.report(&total()).await);
    assert!(report.provisional_clicks > 0 && report.provisional_clicks < 44 && report.clicks == 44, "{report:?}");
    let mut world = world.restart().await;
    assert_eq!(world.load().await, through);
    assert_eq!(world.by_minute().await, rows);
    assert_eq!(world.report(&total()).await.provisional_clicks, report.provisional_clicks);
}

#[tokio::test]
async fn damage_is_named() {
    let site = temp(Kind::Delta).await;
    let mut world = World::new(&site).await;
    two_minutes(&mut world).await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:07:30")).await;
    world.load().await;
    let clock = world.clock.clone();
    drop(world);
    let find = |folder: &str, ends: &str| {
        let list = std::fs::read_dir(site.path().join("warehouse").join(folder)).unwrap();
        let mut paths: Vec<_> = list.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.to_str().unwrap().ends_with(ends));
        paths.sort();
        paths.pop().unwrap()
    };
    let entry = find("raw_clicks/_delta_log", "json");
    let data = find("clicks_by_minute/date=2026-04-20", "parquet");
    let open = async || site.warehouse(&clock).await.err().map(|e| e.to_string());
    assert_eq!(open().await, None);
    for path in [&entry, &data] {
        let whole = std::fs::read(path).unwrap();
        for damaged in [Some(&whole[..whole.len() / 2]), Some(&[]), None] {
            if damaged.is_none() && path == &entry {
                continue;
            }
            match damaged {
                Some(bytes) => std::fs::write(path, bytes).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            let error = open().await.unwrap_or_default();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("damaged"), "{error}");
        }
        std::fs::write(path, whole).unwrap();
    }
    assert_eq!(open().await, None);
}

async fn a_topic_that_was_made_anew_is_not_taken_for_the_old_one(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.pass(at("12:06:30")).await;
    world.load().await;
    let clock = world.clock.clone();
    drop(world);
    std::fs::remove_dir_all(site.path().join("log")).unwrap();
    let mut world = World::open(&site, clock.now()).await;
    assert!(matches!(world.try_load().await.unwrap_err(), Error::OtherLog { .. }));
    let deployed = world.warehouse.deploy(&*world.log, &Topics::default(), "two").await;
    assert!(matches!(deployed.unwrap_err(), Error::OtherLog { .. }));
}

async fn reports_are_of_one_moment_while_minutes_close(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    let mut end = Millis::default();
    for second in 0..120 {
        end = at("12:00:00").plus(second * 10_000);
        world.billable((second % 2) as i32, end, "ad_1").await;
    }
    world.heartbeat(end.plus(1)).await;
    world.write_rows(|_| true).await;
    world.load().await;
    let warehouse = world.warehouse.clone();
    let reader = tokio::spawn(async move {
        let (mut through, mut steps) = (Millis::default(), 0);
        while through < minute("12:14") {
            let report = warehouse.report(&total()).await.unwrap();
            assert_eq!(report.clicks, 120, "{report:?}");
            steps += usize::from(report.complete_through > through);
            through = report.complete_through;
        }
        steps
    });
    for minutes in 0..15 {
        world.write_minutes(at("12:06:30").plus(minutes * 60_000)).await;
        world.load().await;
        tokio::task::yield_now().await;
    }
    world.write_minutes(end.plus(600_000)).await;
    world.load().await;
    assert!(reader.await.unwrap() >= 1);
    let report = world.report(&world::by_minute_and_ad()).await;
    assert_eq!((report.clicks, report.rows.len()), (120, 20));
    let filters = [(Dimension::AdId, vec!["ad_2' OR '1'='1".to_string()])].into();
    assert_eq!(world.report(&warehouse::report::ReportQuery { filters, ..total() }).await.clicks, 0);
}

/// A click as the engine has it from a broker whose clock says another time than the log of these tests.
async fn click_by_another_clock(world: &mut World, clicked: Millis, appended: Millis, verdict: &str) {
    let value = json!({"kind": "click", "clickId": "c", "impressionId": "imp", "adId": "ad_1"}).to_string();
    let now = world.clock.now();
    let offset = world.record(0, now, value.as_bytes()).await;
    world.judge(0, offset, clicked, appended, Some("ad_1"), verdict);
}

async fn append_times_that_go_back_by_the_slack_hold_nothing_up(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:59"), "ad_1").await;
    world.heartbeat(at("12:06:30")).await;
    // Complete by the clock of the leader before, which was 30 seconds ahead. The first of these clicks is as late as one on
    // time can be, and the minute has closed by then.
    click_by_another_clock(&mut world, at("12:01:00"), at("12:06:00"), "billable").await;
    click_by_another_clock(&mut world, at("12:00:59.999"), at("12:06:00"), "late").await;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:06:30")).await;
    assert_eq!(world.load().await, minute("12:01"), "{}", world.waiting());
    click_by_another_clock(&mut world, at("12:06:20"), at("12:06:20"), "billable").await;
    world.pass(at("12:08:00")).await;
    assert_eq!(world.load().await, minute("12:02"), "{}", world.waiting());
    // The same by a loader that begins behind the step.
    let mut world = world.restart().await;
    world.pass(at("12:13:00")).await;
    assert_eq!(world.load().await, minute("12:07"), "{}", world.waiting());
    let rows: Vec<_> = world.by_minute().await.into_iter().map(|row| (row.0, row.2, row.3)).collect();
    let expected = [("12:00", 2, false), ("12:01", 1, false), ("12:06", 1, false)];
    assert_eq!(rows, expected.map(|(time, clicks, provisional)| (time.to_string(), clicks, provisional)));
}

async fn append_times_that_go_back_further_are_named(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:59"), "ad_1").await;
    world.heartbeat(at("12:06:30")).await;
    click_by_another_clock(&mut world, at("12:02:00"), at("12:05:59.999"), "billable").await;
    world.pass(at("12:13:00")).await;
    world.load().await;
    let named = "partition 0: offset 2 was appended at 2026-04-20T12:05:59.999Z, and an earlier one at 2026-04-20T12:06:30.000Z";
    assert!(world.waiting().starts_with(named) && world.waiting().contains("30000 ms"), "{}", world.waiting());
    assert_eq!(world.warehouse.status().complete_through, minute("11:54"));
}

/// What `tally spool send` asks before it adds a click.
async fn a_click_is_known_by_its_record_or_its_billed_impression(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    for (click, impression, verdict) in
        [("c", "imp", "billable"), ("c2", "it's \\ a ? \"2\"", "billable"), ("c3", "imp3", "duplicate")]
    {
        world.click(0, at("12:00:12"), at("12:00:12"), "ad_1", verdict).await;
        let row = &mut world.rows.last_mut().unwrap().json;
        (row["click_id"], row["impression_id"]) = (json!(click), json!(impression));
    }
    let known = async |click, impression| world.warehouse.known(click, impression).await.unwrap();
    assert_eq!(known("c", "imp").await, Known::Unknown, "nothing is final");
    world.pass(at("12:07:31")).await;
    assert_eq!(world.load().await, minute("12:02"));
    let known = async |click, impression| world.warehouse.known(click, impression).await.unwrap();
    assert_eq!(known("c", "imp").await, Known::Recorded);
    assert_eq!(known("c4", "it's \\ a ? \"2\"").await, Known::Billed);
    assert_eq!(known("c3", "imp4").await, Known::Recorded, "a click that is not billed has a record");
    assert_eq!(known("c4", "imp3").await, Known::Unknown, "and leaves its impression to others");
}
