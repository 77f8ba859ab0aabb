//! Minutes that would never close by themselves: what a repair makes of them, and what it refuses.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Millis, Minute};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tally_log::Log;
use tally_log::local::{LocalLog, Settings as LogSettings};
use warehouse::sequence::Kind as EntryKind;
use warehouse::{Deploying, Error, Recount, Repaired, Topics};
use world::*;

on_each_kind! {
    a_minute_that_cannot_agree_is_final_by_a_recount,
    a_record_that_the_engine_skips_is_counted,
    a_repair_is_carried_out_whatever_dies,
    a_repair_that_began_is_no_closing,
    what_cannot_be_repaired_is_refused,
}

fn of(text: &str) -> Minute {
    minute(text).minute()
}

/// A log with the rows of a recount.
async fn recounted(rows: &[Row]) -> (tempfile::TempDir, LocalLog) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(click::ManualClock::new(at("20:00:00")));
    let log = LocalLog::open(dir.path(), LogSettings::default(), clock).unwrap().0;
    let topic = log.create_topic("raw_clicks", 1).await.unwrap();
    for row in rows {
        log.append(&topic, 0, None, row.json.to_string().into()).await.unwrap().await.unwrap();
    }
    (dir, log)
}

/// Repairs all minutes up to one with these rows.
async fn repair(world: &World, minute: &str, rows: &[Row]) -> warehouse::Result<Repaired> {
    let topics = Topics::default();
    let recount: Recount = world.warehouse.to_recount(&*world.log, &topics, of(minute)).await?;
    let (_dir, log) = recounted(rows).await;
    world.warehouse.repair(&*world.log, &topics, &recount, &log).await
}

async fn last_kind(site: &Site) -> EntryKind {
    let entries = site.backend().await.unwrap().entries().await.unwrap();
    entries.into_iter().filter(|entry| !entry.kind.is_begun()).max_by_key(|entry| entry.number).unwrap().kind
}

/// Clicks in three minutes, of which the engine says one more in the second than its raw rows do; they come minutes after
/// they were clicked, so that the minute before them is final without them. With it what a recount says.
async fn disagreeing(site: &Site) -> (World, Vec<Row>) {
    let mut world = World::new(site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.heartbeat(at("12:06:30")).await;
    world.click(0, at("12:01:50"), at("12:06:40"), "ad_1", "billable").await;
    world.click(1, at("12:01:55"), at("12:06:45"), "ad_22", "billable").await;
    world.click(1, at("12:02:50"), at("12:07:35"), "ad_22", "billable").await;
    world.record(0, at("12:07:36"), b"no click").await;
    world.click(1, at("11:50:00"), at("12:07:40"), "ad_1", "late").await;
    world.heartbeat(at("12:08:30")).await;
    let rows = world.rows.clone();
    let (key, _) = world.windows.iter().find(|(key, _)| key.0 == minute("12:01")).unwrap();
    *world.windows.get_mut(&key.clone()).unwrap() += 1;
    world.write_rows(|_| true).await;
    world.write_minutes(at("12:08:30")).await;
    assert_eq!(all(&mut world).await, minute("12:01"));
    assert!(world.waiting().contains("minute 2026-04-20T12:01:00Z: the engine says 2, raw rows say 1"));
    (world, rows)
}

/// Lets the loader do all that it can do, holes included.
async fn all(world: &mut World) -> Millis {
    world.load().await;
    world.clock.set(click::Clock::now(&*world.clock).plus(2_000));
    world.load().await
}

async fn a_minute_that_cannot_agree_is_final_by_a_recount(kind: Kind) {
    let site = temp(kind).await;
    let (mut world, rows) = disagreeing(&site).await;
    world.loader = None;
    let repaired = repair(&world, "12:01", &rows).await.unwrap();
    assert_eq!(repaired.clicks, [(of("12:01"), 2)].into());
    assert_eq!((repaired.entry.kind, repaired.entry.through), (EntryKind::Repair, of("12:02")));
    assert_eq!(world.warehouse.status().complete_through, minute("12:02"));
    // What is not final is the next loader's to count.
    let expected = [("12:00", false), ("12:01", false), ("12:01", false)];
    let rows = world.by_minute().await;
    assert_eq!(rows.iter().map(|row| (&*row.0, row.3)).collect::<Vec<_>>(), expected);
    assert!(rows.iter().all(|row| row.2 == 1), "{rows:?}");

    // The loader goes on behind it, and what the engine says of the repaired minute is refused.
    let mut world = world.restart().await;
    assert_eq!(all(&mut world).await, minute("12:03"), "{}", world.waiting());
    assert_eq!(world.warehouse.status().refused, 1);
    world.pass(at("12:20:00")).await;
    assert_eq!(world.load().await, minute("12:14"), "{}", world.waiting());
    assert_eq!(world.report(&total()).await.clicks, 5, "four on time, and a late one");
    // So does a new version, from the new P on.
    let two = world.warehouse.deploy_again(&*world.log, &Topics::default(), "one").await.unwrap();
    assert_eq!(two.version, 2);
    assert_eq!(world.report(&total()).await.clicks, 5);
    drop(world);
    if kind == Kind::Delta {
        let tables = site.dump().await;
        assert_eq!(tables["closings"].iter().filter(|row| row.contains(" repair ")).count(), 1);
        assert_eq!((tables["click_corrections"].len(), tables["quarantine"].len()), (2, 2), "a head and a row each");
    }
}

async fn a_record_that_the_engine_skips_is_counted(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(0, at("12:00:11"), "ad_1").await;
    world.record(0, at("12:00:12"), b"no click").await;
    world.billable(1, at("12:01:10"), "ad_22").await;
    world.heartbeat(at("12:07:30")).await;
    let rows = world.rows.clone();
    world.write_rows(|row| row.position != (0, 1)).await;
    world.write_minutes(at("12:07:30")).await;
    assert_eq!(all(&mut world).await, minute("11:54"), "a gap holds up everything after it");
    assert!(world.waiting().starts_with("the engine skipped a record"), "{}", world.waiting());
    world.loader = None;
    let repaired = repair(&world, "12:00", &rows).await.unwrap();
    assert_eq!(repaired.clicks.values().sum::<i64>(), 2);
    assert_eq!(repaired.clicks.len(), 7, "with the silent minutes before it");
    assert_eq!(repaired.entry.quarantined, [(0, 2)]);
    assert_eq!(world.load().await, minute("12:02"), "{}", world.waiting());
    assert_eq!(world.report(&total()).await.clicks, 3);
}

async fn a_repair_is_carried_out_whatever_dies(kind: Kind) {
    let start = temp(kind).await;
    let (world, rows) = disagreeing(&start).await;
    let now = click::Clock::now(&*world.clock);
    drop(world);
    let whole = start.copy().await;
    let world = World::open(&whole, now).await;
    let expected = repair(&world, "12:02", &rows).await.unwrap();
    let (by_minute, clicks) = (world.by_minute().await, world.report(&total()).await.clicks);
    drop(world);
    let tables = whole.dump().await;
    let mut died = 0;
    for places in 0.. {
        let site = start.copy().await;
        let (world, left) = dying(&site, now, places).await;
        let first = repair(&world, "12:02", &rows).await;
        drop(world);
        if left.load(Ordering::SeqCst) >= 0 {
            first.unwrap();
            break;
        }
        died += 1;
        let world = World::open(&site, now).await;
        match repair(&world, "12:02", &rows).await {
            Ok(again) => assert_eq!(again.clicks, expected.clicks),
            // It died after its last step.
            Err(error) => assert!(matches!(error, Error::NoRepair { .. }), "{error}"),
        }
        assert_eq!((world.by_minute().await, world.report(&total()).await.clicks), (by_minute.clone(), clicks));
        drop(world);
        let (mut found, mut expected) = (site.dump().await, tables.clone());
        assert_eq!(found.remove("closings").unwrap().len(), expected.remove("closings").unwrap().len());
        assert_eq!(found, expected, "died at place {places}");
        assert_eq!(last_kind(&site).await, EntryKind::Repair);
    }
    assert!(died > 8, "{died} places");
}

/// It dies with its raw rows written. The loader must not finish it with the engine's, nor a recount that says otherwise.
async fn a_repair_that_began_is_no_closing(kind: Kind) {
    let site = temp(kind).await;
    let (world, rows) = disagreeing(&site).await;
    let now = click::Clock::now(&*world.clock);
    drop(world);
    let (world, _) = dying(&site, now, 6).await;
    assert!(matches!(repair(&world, "12:02", &rows).await, Err(Error::Died(_))));
    drop(world);
    let mut world = World::open(&site, now).await;
    let error = world.try_load().await.unwrap_err();
    assert!(matches!(error, Error::RepairBegun { .. }), "{error}");
    assert!(error.to_string().contains("of the minutes before 2026-04-20T12:03:00Z began"), "{error}");
    let other = repair(&world, "12:01", &rows).await.unwrap_err();
    assert!(matches!(other, Error::RepairBegun { .. }), "{other}");
    let mut changed = rows.clone();
    changed.iter_mut().find(|row| row.position == (0, 2)).unwrap().json["verdict"] = json!("bot");
    let changed = repair(&world, "12:02", &changed).await.unwrap_err();
    assert!(matches!(changed, Error::Contradiction { .. }), "{changed}");
    assert!(world.warehouse.deploy(&*world.log, &Topics::default(), "two").await.is_err());
    assert_eq!(world.warehouse.status().complete_through, minute("12:01"), "nothing became final");

    // A new version is not asked to give it up, also where it is to be made though nothing has changed.
    let begun = world.warehouse.begun().await.unwrap();
    assert_eq!((begun.kind, begun.through), (EntryKind::RepairBegun, of("12:03")));
    let unchanged = Deploying { though_unchanged: true, ..Deploying::default() };
    let error = world.warehouse.deploy_as(&*world.log, &Topics::default(), "one", unchanged).await.unwrap_err();
    assert!(matches!(error, Error::RepairBegun { .. }), "{error}");
    // Nor is anything given up for a version that somebody else was faster with.
    let late = Deploying { give_up_begun: true, as_version: Some(1), ..unchanged };
    let error = world.warehouse.deploy_as(&*world.log, &Topics::default(), "one", late).await.unwrap_err();
    assert!(matches!(error, Error::OtherVersion { expected: 1, next: 2 }), "{error}");
    assert_eq!((world.deployed().await.version, world.warehouse.begun().await), (1, Some(begun.clone())));

    // Only a deployment that is asked for it gives it up; the new version counts its minutes.
    let asked = Deploying { as_version: Some(2), ..late };
    let two = world.warehouse.deploy_as(&*world.log, &Topics::default(), "one", asked).await.unwrap();
    assert_eq!((two.given_up, world.warehouse.begun().await), (Some(begun), None));
    let deployment = world.deployed().await;
    assert_eq!(deployment.version, 2);
    let rows: Vec<_> = rows.into_iter().map(|row| row.json).collect();
    world.judge_again(rows, &deployment).await;
    assert_eq!(all(&mut world).await, minute("12:03"), "{}", world.waiting());
    assert_eq!(world.report(&total()).await.clicks, 5);
}

async fn what_cannot_be_repaired_is_refused(kind: Kind) {
    let site = temp(kind).await;
    let (mut world, rows) = disagreeing(&site).await;
    world.loader = None;
    let refused = async |minute: &str, rows: &[Row]| {
        let error = repair(&world, minute, rows).await.unwrap_err();
        assert!(matches!(error, Error::NoRepair { .. }), "{error}");
        error.to_string()
    };
    let told = refused("12:00", &rows).await;
    assert!(
        told.ends_with("12:00:00Z cannot be repaired: it is final, as all minutes before 2026-04-20T12:01:00Z are")
    );
    let told = refused("12:03", &rows).await;
    assert!(
        told.contains("partition 0 of clicks has no record that was appended at 2026-04-20T12:09:30.000Z"),
        "{told}"
    );
    let missing: Vec<Row> = rows.iter().filter(|row| row.position != (1, 1)).cloned().collect();
    let told = refused("12:01", &missing).await;
    assert!(told.ends_with(":1:1, though it can be decoded"), "{told}");
    let mut other: Vec<Row> = rows.clone();
    other.iter_mut().for_each(|row| row.json["version"] = json!(7));
    refused("12:01", &other).await;

    // A closing came in between.
    let topics = Topics::default();
    let recount = world.warehouse.to_recount(&*world.log, &topics, of("12:02")).await.unwrap();
    repair(&world, "12:01", &rows).await.unwrap();
    let (_dir, log) = recounted(&rows).await;
    let error = world.warehouse.repair(&*world.log, &topics, &recount, &log).await.unwrap_err();
    assert!(error.to_string().contains("minutes became final"), "{error}");
    assert_eq!(world.warehouse.status().complete_through, minute("12:02"));
}
