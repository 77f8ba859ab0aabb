//! A byte that a disk changed is found by whoever reads it, and named: no number comes of it.
#![allow(clippy::unwrap_used)]

mod world;

use click::{Clock, Millis};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use warehouse::report::{Report, ReportQuery, Reports, TimeUnit};
use world::*;

struct Played {
    runtime: tokio::runtime::Runtime,
    site: Site,
    now: Millis,
    /// What the engine has open at the end.
    windows: BTreeMap<(Millis, [String; 5]), i64>,
    files: Vec<PathBuf>,
    /// Names of the data files that the tables consist of; others were merged into these.
    in_use: Vec<String>,
    reports: Vec<Report>,
}

/// Reports of a minute, an hour, a day and in all.
fn queries() -> [ReportQuery; 4] {
    let by = |unit| ReportQuery { time: Some(unit), ..by_minute_and_ad() };
    [by(TimeUnit::Minute), by(TimeUnit::Hour), by(TimeUnit::Day), total()]
}

async fn reports(world: &World) -> Result<Vec<Report>, String> {
    let mut reports = Vec::new();
    for query in queries() {
        let mut report = world.warehouse.report(&query).await.map_err(|error| error.to_string())?;
        report.refreshed_at = Millis::default();
        reports.push(report);
    }
    Ok(reports)
}

/// An hour around midnight, closed minute by minute: a checkpoint, late clicks, a quarantined record, quarter hours and
/// a day, and open rows after them.
fn played() -> &'static Played {
    static PLAYED: OnceLock<Played> = OnceLock::new();
    PLAYED.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let site = runtime.block_on(temp(Kind::Delta));
        let (now, windows, reports) = runtime.block_on(async {
            let mut now = at("23:18:00");
            let mut world = World::open(&site, now).await;
            world.deploy("one").await;
            for step in 0..60 {
                now = now.plus(60_000);
                world.billable(step % 2, now, ["ad_1", "ad_22"][(step % 3 == 0) as usize]).await;
                if step % 4 == 0 {
                    world.click(1, now.plus(-400_000), now, "ad_1", "late").await;
                }
                if step == 20 {
                    world.record(0, now, b"no click").await;
                }
                world.pass(now.plus(1)).await;
                world.load().await;
            }
            let reports = reports(&world).await.unwrap();
            (now, world.windows, reports)
        });
        let (mut files, mut folders) = (Vec::new(), vec![site.path().join("warehouse")]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if std::fs::metadata(&path).unwrap().len() > 0 => files.push(path),
                    false => {}
                }
            }
        }
        files.sort();
        assert!(files.iter().any(|path| path.ends_with("_last_checkpoint")), "no checkpoint was written");
        let in_use = runtime.block_on(data_files(&site.path().join("warehouse")));
        Played { runtime, site, now, windows, files, in_use, reports }
    })
}

async fn data_files(warehouse: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for table in std::fs::read_dir(warehouse).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let url = deltalake_core::ensure_table_uri(table.to_str().unwrap()).unwrap();
        let table = deltalake_core::open_table(url).await.unwrap();
        names.extend(table.get_file_uris().unwrap().map(|uri| uri.rsplit('/').next().unwrap().to_string()));
    }
    names
}

fn flip(path: &Path, byte: &prop::sample::Index, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = byte.index(bytes.len());
    bytes[at] ^= bits;
    std::fs::write(path, bytes).unwrap();
}

/// Reads and closes on. Every number is right, or there is an error.
async fn go_on(world: &mut World, before: &[Report], now: Millis) -> Result<(), String> {
    world.try_load().await.map_err(|error| error.to_string())?;
    assert_eq!(reports(world).await?, before);
    world.pass(now.plus(20 * 60_000)).await;
    world.try_load().await.map_err(|error| error.to_string())?;
    for (after, before) in reports(world).await?.iter().zip(before) {
        assert!(after.complete_through > before.complete_through);
        assert_eq!(after.clicks, before.clicks);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_flipped_byte_is_named_or_never_read(
        file in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        bits in 1_u8..,
        while_open in any::<bool>(),
    ) {
        let Played { runtime, site, now, windows, files, in_use, reports } = played();
        let copied = runtime.block_on(site.copy());
        let file = file.get(files).strip_prefix(site.path()).unwrap();
        let flipped = copied.path().join(file);
        let outcome = runtime.block_on(async {
            if !while_open {
                flip(&flipped, &byte, bits);
            }
            let clock = std::sync::Arc::new(click::ManualClock::new(*now));
            let folder = copied.path().join("warehouse");
            let opened = warehouse::Warehouse::open(&folder, settings(), clock.clone()).await;
            let warehouse = opened.map_err(|error| error.to_string())?;
            if while_open {
                flip(&flipped, &byte, bits);
            }
            let log = World::open_log(copied.path(), &clock);
            assert_eq!(clock.now(), *now);
            let mut world = World::with(&copied, clock, log, warehouse).await;
            world.windows = windows.clone();
            go_on(&mut world, reports, *now).await
        });
        let name = file.file_name().unwrap().to_str().unwrap();
        if let Err(error) = outcome {
            prop_assert!(error.contains(name), "{name} was damaged, and it said: {error}");
            prop_assert!(error.contains("damaged"), "{error}");
        } else {
            // Nothing reads it: an entry of a table's log before the last checkpoint, a file that is part of no
            // table any more, or, changed while it was open, one that was read before.
            let must_be_read = !while_open && in_use.iter().any(|file| file == name);
            prop_assert!(!must_be_read, "{} was damaged, and nobody said so", file.display());
        }
    }
}

#[tokio::test]
async fn a_file_without_its_sums_is_damaged() {
    let site = temp(Kind::Delta).await;
    let mut world = World::new(&site).await;
    world.billable(0, at("12:00:10"), "ad_1").await;
    world.pass(at("12:06:30")).await;
    world.load().await;
    let clock = world.clock.clone();
    drop(world);
    let folder = site.path().join("warehouse/clicks_by_minute/date=2026-04-20");
    let sums = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let sums: Vec<PathBuf> = sums.filter(|path| path.extension().is_some_and(|ends| ends == "sum")).collect();
    assert_eq!(sums.len(), 1);
    std::fs::remove_file(&sums[0]).unwrap();
    let opened = warehouse::Warehouse::open(&site.path().join("warehouse"), settings(), clock).await;
    let error = opened.err().unwrap().to_string();
    assert!(error.contains(sums[0].to_str().unwrap()) && error.contains("damaged"), "{error}");
}
