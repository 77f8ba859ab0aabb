//! The loader dies before and after each step of a closing; the next one carries it out. Every table is then what it
//! would have been, once.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Millis, Minute};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tally_log::LogError;
use warehouse::report::{ReportQuery, TimeUnit};
use warehouse::sequence::Sequence;
use warehouse::{Error, Result, Topics};
use world::*;

on_each_kind! {
    each_step_is_done_once_whatever_dies,
    a_closing_that_began_reaches_no_further_when_it_goes_on,
    what_was_counted_before_a_crash_is_compared_after_it,
    a_closing_whose_rows_are_gone_is_given_up,
}

/// Everything that a closing can hold: clicks of two versions, late ones, undecodable records, the end of a quarter
/// hour and of a day; nothing of it is closed yet.
async fn prepare(site: &Site) -> Millis {
    let evening = at("23:40:00");
    let mut world = World::open(site, evening).await;
    world.deploy("one").await;
    world.billable(0, at("23:40:10"), "ad_1").await;
    world.billable(1, at("23:45:10"), "ad_22").await;
    world.pass(at("23:46:30")).await;
    assert_eq!(world.load().await, minute("23:41"));
    world.loader = None;
    world.windows.clear();
    let deployment = world.deploy("two").await;
    // What the first version read from P on, the second one reads again.
    for partition in 0..PARTITIONS {
        let offset = deployment.positions.get(partition);
        world.judge(partition, offset, at("23:46:30"), at("23:46:30"), None, "heartbeat");
    }
    for second in 0..60 {
        let clicked = at("23:47:00").plus(second * 17_000);
        world.billable((second % 2) as i32, clicked, ["ad_1", "ad_22"][(second % 3 == 0) as usize]).await;
        if second % 7 == 0 {
            world.click(1, clicked.plus(-400_000), clicked, "ad_1", "late").await;
        }
        if second % 20 == 0 {
            world.record(0, clicked, b"no click").await;
        }
    }
    let end = at("23:59:00").plus(14 * 60_000);
    world.heartbeat(end).await;
    world.write_rows(|_| true).await;
    world.write_minutes(end).await;
    end.plus(10_000)
}

/// Lets the loader do all that it can do, holes included.
async fn to_the_end(world: &mut World) -> Result<Millis> {
    world.try_load().await?;
    world.clock.set(click::Clock::now(&*world.clock).plus(2_000));
    world.try_load().await
}

async fn each_step_is_done_once_whatever_dies(kind: Kind) {
    let start = temp(kind).await;
    let now = prepare(&start).await;

    let whole = start.copy().await;
    let mut world = World::open(&whole, now).await;
    assert_eq!(to_the_end(&mut world).await.unwrap(), minute("23:59").plus(8 * 60_000));
    let (rows, report) = (world.by_minute().await, world.report(&total()).await);
    assert_eq!(report.clicks, 2 + 60 + 9);
    drop(world);
    let expected = whole.dump().await;
    for table in [
        "raw_clicks",
        "quarantine",
        "click_corrections",
        "corrections_by_day",
        "clicks_by_quarter_hour",
        "clicks_by_day",
    ] {
        assert!(expected[table].len() > 1, "{table} has no rows");
    }

    let (mut died, mut merging) = (0, 0);
    for places in 0.. {
        let site = start.copy().await;
        let (mut world, left) = dying(&site, now, places).await;
        let ended = to_the_end(&mut world).await;
        if left.load(Ordering::SeqCst) >= 0 {
            ended.unwrap();
            break;
        }
        // Files that are not merged are no failure; whatever else dies is one.
        merging += usize::from(ended.is_ok());
        died += 1;
        drop(world);
        // More rows have come meanwhile: the closing that began must not reach further for it.
        let mut world = World::open(&site, now).await;
        // Every second time the next thing is a deployment, which carries it out as well.
        if places % 2 == 1 {
            let same = world.deploy("two").await;
            assert!(!same.new);
        }
        to_the_end(&mut world).await.unwrap();
        assert_eq!((world.by_minute().await, world.report(&total()).await.clicks), (rows.clone(), report.clicks));
        drop(world);
        let mut found = site.dump().await;
        let mut expected = expected.clone();
        // The same minutes may be cut into closings in another way, if it died before the first began.
        for tables in [&mut found, &mut expected] {
            let closings = tables.remove("closings").unwrap();
            assert!(closings.len() > 3);
        }
        assert_eq!(found, expected, "died at place {places}");
    }
    assert!(died > 20 && merging < died / 2, "{died} places, {merging} of them while files were merged");
}

async fn a_closing_that_began_reaches_no_further_when_it_goes_on(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.pass(at("12:06:30")).await;
    let now = at("12:06:30");
    drop(world);
    // Dies with the raw rows of a closing through 12:01 written, and nothing else.
    let (mut world, _) = dying(&site, now, 7).await;
    assert!(world.try_load().await.is_err());
    drop(world);
    let mut world = World::open(&site, now).await;
    let raw = site.dump().await["raw_clicks"].len();
    assert_eq!(raw, 2, "a head and a row");
    // An hour goes by before it is started again.
    world.billable(0, at("12:07:10"), "ad_1").await;
    world.billable(0, at("12:30:10"), "ad_1").await;
    world.pass(at("13:06:30")).await;
    // A deployment in between finishes the closing by its own rules.
    let deployment = world.deploy("two").await;
    assert_eq!(deployment.positions.get(0), 1, "{deployment:?}");
    assert_eq!(world.warehouse.status().complete_through, minute("12:01"));
    assert_eq!(world.report(&total()).await.clicks, 1);
}

async fn what_was_counted_before_a_crash_is_compared_after_it(kind: Kind) {
    let site = temp(kind).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.billable(0, at("12:05:20"), "ad_1").await;
    world.pass(at("12:06:30")).await;
    // The click of 12:05 is in the tables, and its minute is open.
    assert_eq!(world.load().await, minute("12:01"));
    world.pass(at("12:13:00")).await;
    let now = at("12:13:00");
    drop(world);
    // Dies when the closing has begun, and nothing of it is written.
    let (mut world, _) = dying(&site, now, 2).await;
    assert!(world.try_load().await.is_err());
    drop(world);
    let clock = Arc::new(click::ManualClock::new(now));
    let warehouse = dying_tables(&site, &clock, Arc::new(AtomicI64::new(i64::MAX)), true).await;
    let log = World::open_log(site.path(), &clock);
    let mut world = World::with(&site, clock, log, warehouse).await;
    let error = world.try_load().await.unwrap_err();
    assert!(matches!(error, Error::Contradiction { number: 2, .. }), "{error}");
    assert_eq!(world.warehouse.status().complete_through, minute("12:01"), "nothing became final");
    drop(world);
    let mut world = World::open(&site, now).await;
    assert_eq!(world.load().await, minute("12:07"));
    assert_eq!(world.by_minute().await.iter().map(|row| (row.2, row.3)).collect::<Vec<_>>(), [(1, false), (1, false)]);
}

/// Everything that is reported, in every unit of time, and how many raw rows are billed.
async fn counted(world: &World) -> (Vec<(String, String, i64, bool)>, Vec<Vec<(Option<Millis>, i64)>>, i64) {
    let mut sums = Vec::new();
    for time in [None, Some(TimeUnit::Hour), Some(TimeUnit::Day)] {
        let report = world.report(&ReportQuery { time, ..total() }).await;
        sums.push(report.rows.iter().map(|row| (row.time, row.clicks)).collect());
    }
    let tables = world.site.backend().await;
    // On Delta Lake the folder is in use, and its dump is compared.
    let billed = match world.site.kind() {
        Kind::Delta => 0,
        Kind::ClickHouse => {
            let all = Minute::from_number(0)..Minute::from_number(100_000_000);
            let before = (0..PARTITIONS).map(|partition| (partition, i64::MAX)).collect();
            let rows = tables.unwrap().billable(all, Millis::new(i64::MAX), &before).await.unwrap();
            rows.iter().map(|row| row.count.clicks).sum()
        }
    };
    (world.by_minute().await, sums, billed)
}

/// Wherever a closing died: when the result topics no longer hold its rows, a deployment of the same pipeline gives it up,
/// and what the new version counts is what the closing would have, once. It may die itself in between.
async fn a_closing_whose_rows_are_gone_is_given_up(kind: Kind) {
    let start = temp(kind).await;
    let now = prepare(&start).await;
    let whole = start.copy().await;
    let mut world = World::open(&whole, now).await;
    to_the_end(&mut world).await.unwrap();
    let expected = counted(&world).await;
    drop(world);
    let tables = whole.dump().await;

    let (topics, mut given_up, mut died_again) = (Topics::default(), 0, 0);
    for round in 0.. {
        let site = start.copy().await;
        let (mut world, _) = dying(&site, now, round * 3).await;
        if to_the_end(&mut world).await.is_ok() {
            break;
        }
        drop(world);
        let world = World::open(&site, now).await;
        let (rows, version) = (world.raw_rows().await, world.deployed().await.version);
        drop(world);
        World::lose_raw_rows(&site, now).await;
        let entries = site.backend().await.unwrap().entries().await.unwrap();
        let is_begun = Sequence::of(entries).unwrap().begun.is_some();
        let mut world = World::open(&site, now).await;
        let error = world.try_load().await.unwrap_err();
        let is_gone =
            matches!(&error, Error::Unread(LogError::OutOfRange { topic, .. }) if *topic == topics.raw_clicks);
        assert!(is_gone || matches!(error, Error::RowGone { .. }), "{error}");
        if is_begun {
            // Nothing is given up unasked.
            assert!(world.warehouse.deploy(&*world.log, &topics, "three").await.is_err());
            given_up += 1;
        }
        drop(world);
        if round % 2 == 1 {
            let (world, _) = dying(&site, now, round / 2 % 4).await;
            died_again += usize::from(world.warehouse.deploy_again(&*world.log, &topics, "two").await.is_err());
        }
        let mut world = World::open(&site, now).await;
        if world.deployed().await.version == version {
            world.warehouse.deploy_again(&*world.log, &topics, "two").await.unwrap();
        }
        let deployment = world.deployed().await;
        assert_eq!(deployment.version, version + 1);
        // The new version reads the log from its start on.
        world.judge_again(rows, &deployment).await;
        to_the_end(&mut world).await.unwrap();
        assert_eq!(counted(&world).await, expected, "died at place {}", round * 3);
        drop(world);
        if kind == Kind::Delta {
            let found = site.dump().await;
            for table in ["clicks_by_minute", "clicks_by_quarter_hour", "clicks_by_day", "quarantine"] {
                assert_eq!(found[table], tables[table], "{table}, died at place {}", round * 3);
            }
            for table in ["raw_clicks", "click_corrections"] {
                assert_eq!(found[table].len(), tables[table].len(), "{table}, died at place {}", round * 3);
            }
        }
    }
    assert!(given_up > 3 && died_again > 1, "{given_up} given up, {died_again} died again");
}
