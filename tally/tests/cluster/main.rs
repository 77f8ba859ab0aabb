//! The processes of a cluster, each alone: real Kafka, Redis and ClickHouse, real HTTP, real time. Every one of them is
//! killed under load and started again, and stopped for a while and let go on; what is reported is judged from the
//! answers that browsers received.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "clickhouse-tls")]
mod https;
mod made_anew;
#[allow(dead_code)]
#[path = "../../../log/tests/kafka/support.rs"]
mod operator;
mod processes;
mod repair;

use click::{ClickId, Clock, Millis, SystemClock};
use processes::{Cluster, Name};
use prove::judge::{Cells, Judge};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const BOT: &str = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";
/// Ad, campaign and publisher, as the sample catalog has them.
const AD: [&str; 3] = ["ad_9", "cmp_7", "pub_4"];
const COUNTRIES: [&str; 3] = ["DE", "US", "IN"];

/// Sends one request, and tells the judge what came of it.
async fn send(
    client: reqwest::Client,
    judge: Arc<Mutex<Judge>>,
    url: String,
    impression: String,
    agent: &str,
    country: &str,
) {
    let [ad, campaign, publisher] = AD;
    let dimensions = [ad, campaign, publisher, country, "desktop"].map(String::from);
    let eligible = agent == PERSON;
    let began = SystemClock.now();
    let url = format!("{url}/api/v1/click/{impression}?ad_id={ad}&campaign_id={campaign}");
    let answer = client.get(url).header("User-Agent", agent).header("X-Country", country).send().await;
    let mut judge = judge.lock().unwrap();
    match answer {
        Ok(answer) if answer.status() == 302 => {
            let id: ClickId = answer.headers()["x-click-id"].to_str().unwrap().parse().unwrap();
            match eligible {
                true => judge.answered(&impression, id, &dimensions),
                false => judge.ineligible += 1,
            }
        }
        // The process went away, or said that it could not record it: the click may be in the log or not.
        Ok(answer) => {
            assert_eq!(answer.status(), 503);
            // A program's click is not billed, whatever became of it.
            if eligible {
                judge.sent(&impression, &minutes(began), &dimensions);
            }
        }
        Err(_) if eligible => judge.sent(&impression, &minutes(began), &dimensions),
        Err(_) => {}
    }
}

/// The minutes in which a request may have come in that began then and has ended now.
fn minutes(began: Millis) -> Vec<click::Minute> {
    let (mut at, last) = (began.minute(), SystemClock.now().minute());
    let mut minutes = vec![at];
    while at < last {
        at = at.end().minute();
        minutes.push(at);
    }
    minutes
}

/// What a reporting node says of every cell.
fn cells(report: &Value) -> Cells {
    let mut cells = Cells::new();
    for row in report["rows"].as_array().unwrap() {
        let text = |name: &str| row[name].as_str().unwrap().to_string();
        let minute = text("minute").parse::<Millis>().unwrap().minute();
        let cell = (minute, text("adId"), text("campaignId"), text("publisherId"), text("country"), text("device"));
        assert!(cells.insert(cell, row["clicks"].as_i64().unwrap()).is_none(), "a row twice: {row}");
    }
    cells
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_killed_and_paused_under_load_and_the_oracle_holds() {
    let Some(mut cluster) = Cluster::start() else { return };
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let judge = Arc::new(Mutex::new(Judge::default()));
    let mut kills = vec![
        Name::Redirect(0),
        Name::Run,
        Name::Load,
        Name::Reporting(0),
        Name::Redirect(1),
        Name::Redis,
        Name::ClickHouse,
        Name::Kafka,
        Name::Load,
        Name::ClickHouse,
        Name::Run,
    ];
    // Between kills each of these stands still for some seconds, with its connections open.
    let mut pauses =
        vec![Name::ClickHouse, Name::Redirect(1), Name::Kafka, Name::Run, Name::Load, Name::Redis, Name::Redirect(0)];
    let mut paused: Option<(Name, Duration)> = None;
    // Then each of these is started to die at a commit point, some time after its start, and starts again when it did.
    let mut deaths = vec![
        (Name::Redirect(0), "kafka.acknowledged:60"),
        (Name::Load, "clickhouse.before:6"),
        (Name::Redirect(1), "kafka.acknowledged:25"),
        (Name::Load, "clickhouse.after:7"),
        (Name::Run, "output.before:20"),
        // These it passes at each checkpoint.
        (Name::Run, "output.after:1"),
        (Name::Run, "claims.after:1"),
        (Name::Run, "checkpoint.before:1"),
    ];
    let mut dying: Option<(Name, &str, Instant)> = None;
    let mut requests = JoinSet::new();
    let (began, mut number) = (Instant::now(), 0_u32);
    let mut next_kill = Duration::from_secs(4);
    while !kills.is_empty()
        || !pauses.is_empty()
        || paused.is_some()
        || !deaths.is_empty()
        || dying.is_some()
        || began.elapsed() < next_kill
    {
        for _ in 0..4 {
            // New impressions, and clicks again on earlier ones; programs as well as people.
            number += 1;
            let impression = match rng.random_range(0..10) {
                0..7 => number,
                _ => rng.random_range(1..=number),
            };
            let agent = if rng.random_bool(0.1) { BOT } else { PERSON };
            let country = COUNTRIES[impression as usize % COUNTRIES.len()];
            let url = cluster.redirect(rng.random_range(0..2));
            let impression = format!("imp_{seed}_{impression}");
            requests.spawn(send(client.clone(), judge.clone(), url, impression, agent, country));
        }
        if let Some((name, until)) = paused {
            if began.elapsed() >= until {
                cluster.resume(name);
                (paused, next_kill) = (None, began.elapsed() + Duration::from_secs(2));
            }
        } else if began.elapsed() >= next_kill && pauses.len() >= kills.len() && !pauses.is_empty() {
            let name = pauses.remove(0);
            let pause = Duration::from_millis(rng.random_range(500..5_000));
            println!("{:?}: {name:?} stands still for {pause:?}", began.elapsed());
            cluster.pause(name);
            paused = Some((name, began.elapsed() + pause));
        } else if began.elapsed() >= next_kill && !kills.is_empty() {
            let name = kills.remove(0);
            println!("{:?}: kill -9 {name:?}", began.elapsed());
            cluster.kill(name);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
            tokio::task::block_in_place(|| cluster.start_again(name));
            next_kill = began.elapsed() + Duration::from_secs(4);
        } else if let Some((name, point, since)) = dying {
            if cluster.is_dead(name) {
                println!("{:?}: {name:?} died at {point}", began.elapsed());
                tokio::task::block_in_place(|| cluster.start_again(name));
                (dying, next_kill) = (None, began.elapsed() + Duration::from_secs(4));
            }
            // The loader passes its points when a minute closes.
            assert!(since.elapsed() < Duration::from_secs(150), "{name:?} did not come to {point}");
        } else if kills.is_empty() && !deaths.is_empty() {
            let (name, point) = deaths.remove(0);
            // Told to, so that it leaves nothing half done that it would come to die of before it listens.
            tokio::task::block_in_place(|| {
                cluster.stop(name);
                cluster.start_until(name, Some(point));
            });
            dying = Some((name, point, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while let Some(sent) = requests.join_next().await {
        sent.unwrap();
    }
    let ended = SystemClock.now();
    let judge = Arc::try_unwrap(judge).unwrap().into_inner().unwrap();
    println!("{number} requests, {} impressions must be billed, {} were a program's", judge.must(), judge.ineligible);
    assert!(judge.must() > 200, "most of the clicks were answered");

    // Provisional first: everything is on the reports soon, on both nodes.
    for node in [0, 1] {
        let report =
            cluster.wait_for(node, Duration::from_secs(60), |report| judge.check(&cells(report)).is_ok()).await;
        assert!(report["completeThrough"].as_str().unwrap() <= ended.to_string().as_str());
    }
    // Final when the minute, its lateness and the slack have passed.
    let through = ended.minute().end();
    let report = cluster
        .wait_for(0, Duration::from_secs(180), |report| {
            report["completeThrough"].as_str().unwrap().parse::<Millis>().unwrap() >= through
        })
        .await;
    judge.check(&cells(&report)).unwrap();
    assert!(report["rows"].as_array().unwrap().iter().all(|row| row["provisional"] != true), "{report}");
    let other = cluster.report(1).await;
    assert_eq!(cells(&other), cells(&report));

    // Each tells operators how it is doing, and stops when it is told to.
    for name in [Name::Redirect(0), Name::Redirect(1), Name::Run, Name::Load, Name::Reporting(0), Name::Reporting(1)] {
        let metrics = cluster.admin(name, "/metrics").await;
        assert!(metrics.1.contains("tally_") && metrics.1.ends_with("# EOF\n"), "{name:?}: {}", metrics.1);
        assert_eq!(cluster.admin(name, "/healthz").await.0, 200, "{name:?}");
        let ready = cluster.admin(name, "/readyz").await;
        assert_eq!(ready.0, 200, "{name:?}: {}", ready.1);
    }

    // Without ClickHouse nothing is counted: who works on it says so, also to whoever sends it traffic; a redirect does not
    // care, and everything goes on by itself when it is back.
    cluster.kill(Name::ClickHouse);
    let away = "clickhouse";
    for name in [Name::Load, Name::Reporting(0)] {
        let ready = cluster.wait_for_ready(name, 503).await;
        assert!(ready.to_lowercase().contains(away), "{name:?}: {ready}");
        assert_eq!(cluster.admin(name, "/healthz").await.0, 200, "{name:?} need not be started again");
    }
    let metrics = cluster.admin(Name::Load, "/metrics").await.1;
    assert!(metrics.lines().any(|line| line == "tally_load_failed 1.0"), "{metrics}");
    assert_eq!(cluster.admin(Name::Redirect(0), "/readyz").await.0, 200);
    tokio::task::block_in_place(|| cluster.start_again(Name::ClickHouse));
    for name in [Name::Load, Name::Reporting(0)] {
        cluster.wait_for_ready(name, 200).await;
    }
    assert_eq!(cells(&cluster.report(0).await), cells(&report));
    cluster.stop_all();
}
