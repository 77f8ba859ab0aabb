//! `tally repair` where an Arroyo skipped a click: what the repair bills is billed once, whatever the engine made of the
//! clicks behind it.

use crate::rebuild::{Engine, Record, first_entry};
use crate::site::{PARTITIONS, Site};
use crate::versions::LONG;
use claims::{Claims, Deployment};
use click::{Clock, Lateness, Minute, Offsets, SystemClock};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use warehouse::backend::Backend;
use warehouse::sequence::Kind;

const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

async fn click(site: &Site, impression: &str) -> Record {
    let now = SystemClock.now();
    let value = json!({
        "kind": "click", "clickId": click::ClickId::new(now).to_string(), "impressionId": impression, "adId": "ad_9",
        "campaignId": "cmp_7", "publisherId": "pub_4", "timestamp": now.to_string(), "ipHash": "00", "userAgent": PERSON,
        "country": "DE", "seenBefore": null, "attempt": 1, "invalidReason": null,
    });
    let at = site.append(&site.clicks, 0, value.to_string()).await;
    Record { at, key: Some(impression.into()), is_decodable: true }
}

async fn heartbeats(site: &Site) {
    for partition in 0..PARTITIONS {
        let beat = json!({"kind": "heartbeat", "timestamp": SystemClock.now().to_string()});
        site.append(&site.clicks, partition, beat.to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_click_that_the_engine_skipped_is_billed_once_by_a_repair() {
    let Some(site) = Site::start_quick("http://127.0.0.1:1").await else { return };
    let lateness = Lateness { lateness_ms: 3_000, slack_ms: 1_000 };
    let first = first_entry(&site, lateness);
    site.tables.put_entry(&first).await.unwrap();
    let told =
        |version, positions: &Offsets| Deployment { version, log_id: site.clicks.log_id, positions: positions.clone() };
    let mut claims = Claims::connect(&site.redis.url()).await.unwrap();
    claims.record(&[told(1, &first.positions)], crate::rebuild::HORIZON_MS).await.unwrap();

    // The engine never asks for the click on imp_2, and goes on.
    crate::versions::room_in_the_minute(Duration::from_secs(10)).await;
    let minute = SystemClock.now().minute();
    let asked = [click(&site, "imp_1").await];
    let skipped = click(&site, "imp_2").await;
    assert_eq!(SystemClock.now().minute(), minute);
    let mut engine = Engine::start(&site, "first.err");
    assert_eq!(engine.ask_all(1, &asked), [Some(1)]);
    let due = minute.end().plus(lateness.delay_ms());
    while SystemClock.now() <= due {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    heartbeats(&site).await;
    // It bills another click on that impression behind the minute, as far as it goes.
    let behind = click(&site, "imp_2").await;
    assert_eq!(engine.ask_all(1, std::slice::from_ref(&behind)), [Some(1)]);

    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/cluster.toml").display().to_string();
    let repair = ["repair", "--cluster", &cluster, "--minute", &minute.to_string()];
    let repaired = site.tally(&repair);
    repaired.said(&format!("{minute}  2 clicks"));
    repaired.said("version 2 counts from there on: `tally deploy` starts it");
    let deployments = site.deployments().await;
    let [_, second] = &deployments[..] else { panic!("{deployments:?}") };
    assert_eq!((second.version, second.number, &second.digest), (2, 2, &first.digest));
    assert!(skipped.at.offset < second.positions.get(0) && second.positions.get(0) <= behind.at.offset, "{second:?}");

    // Behind it the new version judges anew: the impression is billed.
    claims.record(&[told(1, &first.positions), told(2, &second.positions)], crate::rebuild::HORIZON_MS).await.unwrap();
    drop(engine);
    let mut engine = Engine::start(&site, "second.err");
    let mut from_second = Vec::new();
    for offset in second.positions.get(0)..behind.at.offset {
        from_second.push(Record { at: tally_log::Appended { offset, ..behind.at }, key: None, is_decodable: true });
    }
    from_second.extend([behind, click(&site, "imp_2").await, click(&site, "imp_1").await, click(&site, "imp_3").await]);
    let answers = engine.ask_all(2, &from_second);
    assert_eq!(answers[answers.len() - 4..], [Some(0), Some(0), Some(0), Some(1)]);

    // A command that died before it recorded the version does so when it is run again.
    let deployed = |minute: Minute| site.tally(&["repair", "--cluster", &cluster, "--minute", &minute.to_string()]);
    deployed(minute).refused("it is final");
    site.query("ALTER TABLE closings MODIFY SETTING non_replicated_deduplication_window = 0");
    site.query("ALTER TABLE closings DELETE WHERE number = 2 SETTINGS mutations_sync = 2");
    let began = Instant::now();
    while site.last().await.kind != Kind::Repair {
        assert!(began.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    deployed(minute).said("version 2 counts from there on");
    assert_eq!(site.deployments().await.len(), 2);
}
