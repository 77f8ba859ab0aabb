//! Reports against a recount of the clicks by hand.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Millis, Minute};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use warehouse::Warehouse;
use warehouse::clickhouse::ClickHouseReports;
use warehouse::report::{Dimension, Order, Report, ReportQuery, ReportRow, Reports, TimeUnit};
use world::*;

/// What was billed: minute, ad, campaign.
type Billed = Vec<(Minute, String, String)>;

struct Played {
    warehouse: Warehouse,
    reader: Option<Arc<dyn Reports>>,
    billed: Billed,
    through: Millis,
    site: Site,
}

/// Twenty-eight hours of clicks, so that a whole day, hours and quarter hours are closed, with ragged ends, late
/// clicks that are corrected or not yet, and open minutes.
async fn play(site: &Site) -> (Warehouse, Billed, Millis) {
    let start = at("21:07:00").plus(-24 * 60 * Minute::MS);
    let mut world = World::open(site, start).await;
    world.deploy("one").await;
    let (mut billed, mut random) = (Vec::new(), 88_172_645_463_325_252_u64);
    let mut now = start;
    for step in 0..560 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        now = now.plus(60_000 + (random % 240_000) as i64);
        let (ad, partition) =
            (["ad_1", "ad_22", "ad_333", "ad_4"][(random >> 20) as usize % 4], (random >> 30) as i32 & 1);
        let (clicked, verdict) = match (random >> 40) % 10 {
            0 => (now.plus(-600_000), "late"),
            1 => (now, "duplicate"),
            2 => (now.plus(-250_000), "billable"),
            _ => (now, "billable"),
        };
        world.click(partition, clicked, now, ad, verdict).await;
        if verdict != "duplicate" {
            billed.push((clicked.minute(), ad.to_string(), campaign(ad)));
        }
        if step % 9 == 0 {
            world.pass(now.plus(1)).await;
        }
        if step % 90 == 0 {
            world.load().await;
        }
    }
    world.pass(now.plus(1)).await;
    let through = world.load().await;
    (world.warehouse, billed, through)
}

/// A row: time, values, clicks.
type Row = (Option<Millis>, Vec<Arc<str>>, i64);

/// The answer by hand: rows, all clicks, those that are not final.
fn recount(billed: &Billed, through: Millis, query: &ReportQuery) -> (Vec<Row>, i64, i64) {
    let mut groups: BTreeMap<(Option<Millis>, Vec<Arc<str>>), i64> = BTreeMap::new();
    let (mut total, mut open) = (0, 0);
    for (minute, ad, campaign) in billed {
        let value = |dimension: &Dimension| -> Arc<str> {
            match dimension {
                Dimension::AdId => ad.as_str().into(),
                Dimension::CampaignId => campaign.as_str().into(),
                Dimension::PublisherId => "pub".into(),
                Dimension::Country => "DE".into(),
                Dimension::Device => "mobile".into(),
            }
        };
        let at = minute.start();
        let wanted = query.filters.iter().all(|(dimension, allowed)| allowed.iter().any(|a| **a == *value(dimension)));
        if at < query.from || at >= query.to || !wanted {
            continue;
        }
        let unit = query.time.map(|unit| match unit {
            TimeUnit::Minute => 60_000,
            TimeUnit::Hour => 3_600_000,
            TimeUnit::Day => 86_400_000,
        });
        let time = unit.map(|ms| Millis::new(at.get().div_euclid(ms) * ms));
        *groups.entry((time, query.dimensions.iter().map(value).collect())).or_default() += 1;
        total += 1;
        open += i64::from(at >= through);
    }
    let mut rows: Vec<_> = groups.into_iter().map(|((time, values), clicks)| (time, values, clicks)).collect();
    if query.order == Order::ClicksDescending {
        rows.sort_by_key(|row| std::cmp::Reverse(row.2));
    }
    (rows, total, open)
}

fn queries() -> impl Strategy<Value = ReportQuery> {
    let dimension = || {
        prop::sample::select(vec![
            Dimension::AdId,
            Dimension::CampaignId,
            Dimension::PublisherId,
            Dimension::Country,
            Dimension::Device,
        ])
    };
    let filters = prop::collection::btree_map(
        prop::sample::select(vec![Dimension::AdId, Dimension::CampaignId, Dimension::Device]),
        prop::collection::vec(prop::sample::select(vec!["ad_1", "ad_22", "cmp_1", "cmp_2", "mobile", "x'; --"]), 0..4),
        0..2,
    );
    let unit = prop::sample::select(vec![None, Some(TimeUnit::Minute), Some(TimeUnit::Hour), Some(TimeUnit::Day)]);
    let dimensions = prop::collection::btree_set(dimension(), 0..4);
    let order = prop::sample::select(vec![Order::Columns, Order::ClicksDescending]);
    let limit = prop::sample::select(vec![1_usize, 3, 1_000]);
    let range = (-1_600_i64..1_600, 0_i64..3_300, any::<bool>());
    (range, filters, unit, dimensions, order, limit).prop_map(
        |((from, length, days), filters, time, dimensions, order, limit)| {
            let midnight = at("00:00:00").minute().number();
            let whole = |number: i64| if days { number.div_euclid(1440) * 1440 } else { number };
            let (from, to) = (midnight + whole(from), midnight + whole(from + length));
            let filters =
                filters.into_iter().map(|(d, allowed)| (d, allowed.into_iter().map(String::from).collect())).collect();
            let [from, to] = [from, to].map(|number| Minute::from_number(number).start());
            ReportQuery { from, to, filters, time, dimensions: dimensions.into_iter().collect(), limit, order }
        },
    )
}

#[test]
fn reports_equal_a_recount_on_delta() {
    reports_equal_a_recount(Kind::Delta);
}

#[test]
fn reports_equal_a_recount_on_clickhouse() {
    if Kind::ClickHouse.is_there() {
        reports_equal_a_recount(Kind::ClickHouse);
    }
}

fn reports_equal_a_recount(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let played = runtime.block_on(async {
        let site = temp(kind).await;
        let (warehouse, billed, through) = play(&site).await;
        // Another process reads what the loader has published.
        let reader: Option<Arc<dyn Reports>> = match site.server() {
            Some(server) => Some(Arc::new(ClickHouseReports::open(&server).await.unwrap())),
            None => None,
        };
        Played { warehouse, reader, billed, through, site }
    });
    runtime.block_on(the_tables_agree_with_each_other(&played));
    runtime.block_on(sums_of_corrections_equal_the_corrections(&played));
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let equals = |query| {
        let report = runtime.block_on(played.warehouse.report(&query)).unwrap();
        if let Some(reader) = &played.reader {
            prop_assert_eq!(&runtime.block_on(reader.report(&query)).unwrap(), &report);
        }
        equals_a_recount(&played, &query, &report)
    };
    proptest::test_runner::TestRunner::new(config).run(&queries(), equals).unwrap();
    // The database is dropped by a call that blocks.
    drop(played);
}

fn equals_a_recount(played: &Played, query: &ReportQuery, report: &Report) -> Result<(), TestCaseError> {
    let Played { billed, through, .. } = played;
    let (mut expected, total, open) = recount(billed, *through, query);
    prop_assert_eq!(report.complete_through, *through);
    prop_assert_eq!(report.clicks, total);
    // Late clicks whose correction is not written count as well.
    prop_assert!(report.provisional_clicks >= open);
    prop_assert_eq!(report.truncated, expected.len() > query.limit);
    expected.truncate(query.limit);
    let row = |ReportRow { time, values, clicks, .. }: &ReportRow| (*time, values.clone(), *clicks);
    let rows: Vec<_> = report.rows.iter().map(row).collect();
    prop_assert_eq!(rows, expected);
    if query.to <= *through && report.provisional_clicks == 0 {
        prop_assert!(report.rows.iter().all(|row| !row.provisional));
    }
    if query.from >= *through {
        prop_assert!(report.rows.iter().all(|row| row.provisional));
    }
    Ok(())
}

async fn the_tables_agree_with_each_other(played: &Played) {
    let Played { warehouse, site, .. } = played;
    let tables = site.dump().await;
    assert!(tables["clicks_by_day"].len() > 2, "a day was closed");
    assert!(tables["clicks_by_quarter_hour"].len() > 50 && tables["click_corrections"].len() > 10);
    assert!(tables["closings"].len() > 100);
    if site.kind() == Kind::Delta {
        let path = site.path().join("warehouse/clicks_by_minute");
        let url = deltalake_core::ensure_table_uri(path.to_str().unwrap()).unwrap();
        let files = deltalake_core::open_table(url).await.unwrap().get_file_uris().unwrap().count();
        assert!(files < 40, "the small files of passed hours are merged: {files}");
    }
    let report = warehouse.report(&total()).await.unwrap();
    let raw = &tables["raw_clicks"];
    let counted = |verdict: &str| raw.iter().filter(|row| row.contains(&format!("| {verdict} "))).count() as i64;
    assert!(report.clicks - report.provisional_clicks <= counted("billable") + counted("late"));
}

async fn sums_of_corrections_equal_the_corrections(played: &Played) {
    let Played { warehouse, through, site, .. } = played;
    let midnight = at("00:00:00");
    // Whole days, the later one as far as it is closed.
    for (from, to) in [(midnight.plus(-24 * 60 * Minute::MS), midnight), (midnight, *through)] {
        for (unit, name) in [(TimeUnit::Minute, "minute"), (TimeUnit::Hour, "hour"), (TimeUnit::Day, "day")] {
            let expected = site.clicks_by(name, from, to).await;
            let query = ReportQuery { from, to, time: Some(unit), ..total() };
            let report = warehouse.report(&query).await.unwrap();
            assert!(report.rows.len() > 1 || unit == TimeUnit::Day);
            let rows: BTreeMap<Millis, i64> = report.rows.iter().map(|row| (row.time.unwrap(), row.clicks)).collect();
            // Late clicks whose correction is not written are no corrections yet.
            for row in report.rows.iter().filter(|row| !row.provisional) {
                assert_eq!(row.clicks, expected[&row.time.unwrap()], "{row:?}");
            }
            assert_eq!(report.clicks, expected.values().sum::<i64>() + report.provisional_clicks);
            assert!(expected.keys().all(|time| rows.contains_key(time)));
        }
    }
    let tables = site.dump().await;
    assert!(tables["click_corrections"].len() > 10);
    for table in ["corrections_by_minute", "corrections_by_quarter_hour", "corrections_by_day"] {
        let sums = &tables[table];
        let delta = |row: &String| row.split('|').rev().nth(2).unwrap().trim().parse::<i64>().unwrap_or(0);
        let corrected: i64 = sums.iter().map(delta).sum();
        assert_eq!(corrected, tables["click_corrections"].len() as i64 - 1, "{table}: {sums:?}");
    }
}
