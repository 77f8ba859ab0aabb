//! `tally claims rebuild`: what Redis lost is there again as it was, and an engine that waits goes on.

use crate::site::{PARTITIONS, Site};
use claims::{Claims, Deployment};
use click::{Lateness, Offsets};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tally_log::Appended;
use warehouse::backend::Backend;
use warehouse::rows::RawRow;
use warehouse::sequence::{Entry, Kind, ResultPositions};

const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const BOT: &str = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";
pub const HORIZON_MS: i64 = 86_400_000;

/// A record of the log, and what it claims by the definitions alone; none for one that the engine leaves out.
pub struct Record {
    pub at: Appended,
    pub key: Option<String>,
    pub is_decodable: bool,
}

/// Appends a record. Of each impression all are in one partition.
async fn append(site: &Site, number: usize, impressions: usize) -> Record {
    let (impression, partition) = (number % impressions, (number % impressions) as i32 % PARTITIONS);
    let (is_bot, is_prefetch) = (number % 7 == 3, number % 11 == 5);
    let now = click::Clock::now(&click::SystemClock);
    let value = match number % 20 {
        12 => "no click".to_string(),
        13 => json!({"kind": "heartbeat", "timestamp": now.to_string()}).to_string(),
        _ => json!({
            "kind": "click", "clickId": click::ClickId::new(now).to_string(), "impressionId": format!("imp_{impression}"),
            "adId": "ad_9", "campaignId": "cmp_7", "publisherId": "pub_4", "timestamp": now.to_string(), "ipHash": "00",
            "userAgent": if is_bot { BOT } else { PERSON }, "country": "DE", "seenBefore": null, "attempt": 1,
            "invalidReason": is_prefetch.then_some("prefetch"),
        })
        .to_string(),
    };
    let claims = !is_bot && !is_prefetch && ![12, 13].contains(&(number % 20));
    let at = site.append(&site.clicks, partition, value).await;
    Record { at, key: claims.then(|| format!("imp_{impression}")), is_decodable: number % 20 != 12 }
}

/// An engine that asks `claim_click`, in a process of its own: where the claims are it reads from its environment.
pub struct Engine {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    log_id: String,
}

impl Engine {
    /// What it says to operators goes to the file.
    pub fn start(site: &Site, says: &str) -> Engine {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["rebuild::engine", "--exact", "--ignored", "--nocapture"]);
        command.env("CLAIMS_REDIS_URL", site.redis.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(site.path().join(says)).unwrap());
        let mut child = command.spawn().unwrap();
        let (asks, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Engine { child, asks, answers, log_id: site.clicks.log_id.to_string() }
    }

    fn ask(&mut self, version: i64, record: &Record) {
        let Appended { partition, offset, appended_at } = record.at;
        let asked = json!([record.key, self.log_id, partition, offset, appended_at.get(), version]);
        writeln!(self.asks, "{asked}").unwrap();
    }

    fn answer(&mut self) -> Option<i64> {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the engine ended");
            if let Some(answer) = line.trim_end().strip_prefix("answer ") {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }

    /// Asks for all records that an engine can decode, in log order.
    pub fn ask_all(&mut self, version: i64, records: &[Record]) -> Vec<Option<i64>> {
        let mut answers = Vec::new();
        for record in records.iter().filter(|record| record.is_decodable) {
            self.ask(version, record);
            answers.push(self.answer());
        }
        answers
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the engine of the other test, in a process of its own"]
fn engine() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for line in std::io::stdin().lines() {
        let (key, log_id, partition, offset, appended_ms, version): (Option<String>, String, i32, i64, i64, i64) =
            serde_json::from_str(&line.unwrap()).unwrap();
        let asked = claims::claim_click(key.as_deref(), &log_id, partition, offset, appended_ms, version);
        let answer = runtime.block_on(asked);
        println!("answer {}", json!(answer));
    }
}

/// The rows that a closing would have written.
fn rows(site: &Site, records: &[Record], answers: &[Option<i64>]) -> Vec<RawRow> {
    let decodable = records.iter().filter(|record| record.is_decodable);
    let row = |(record, answer): (&Record, &Option<i64>)| RawRow {
        log_id: site.clicks.log_id,
        log_partition: record.at.partition,
        log_offset: record.at.offset,
        kind: Some("click".into()),
        click_id: None,
        impression_id: record.key.clone(),
        ad_id: Some("ad_9".into()),
        campaign_id: Some("cmp_7".into()),
        publisher_id: Some("pub_4".into()),
        timestamp: Some(record.at.appended_at),
        appended_at: record.at.appended_at,
        country: Some("DE".into()),
        device: Some("desktop".into()),
        ip_hash: None,
        user_agent: None,
        seen_before: None,
        attempt: Some(1),
        invalid_reason: None,
        verdict: match answer {
            Some(1) if record.at.offset % 5 == 0 => "late",
            Some(1) => "billable",
            Some(_) => "duplicate",
            None => "bot",
        }
        .into(),
        version: 1,
    };
    decodable.zip(answers).map(row).collect()
}

/// The deployment of the site's pipelines on an Arroyo, at the beginning of the log.
pub fn first_entry(site: &Site, lateness: Lateness) -> Entry {
    let files = runner::PipelineFiles::read(&site.path().join("pipelines")).unwrap();
    let digest = deploy::digest(&files, &deploy::sources(), lateness, HORIZON_MS).unwrap();
    let now = click::Clock::now(&click::SystemClock);
    Entry {
        number: 0,
        kind: Kind::Deployment,
        through: now.plus(-600_000).minute(),
        log_id: site.clicks.log_id,
        positions: Offsets::beginning(PARTITIONS),
        result_positions: ResultPositions::default(),
        version: 1,
        digest,
        totals: String::new(),
        quarantined: Vec::new(),
        finalized_at: now,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_redis_lost_are_there_again() {
    let Some(site) = Site::start("http://127.0.0.1:1").await else { return };
    site.tally(&["claims", "rebuild"]).refused("no pipeline was deployed yet, so there is nothing to rebuild");
    let first = first_entry(&site, Lateness::DEFAULT);
    let beginning = first.positions.clone();
    let told =
        |version, positions: &Offsets| Deployment { version, log_id: site.clicks.log_id, positions: positions.clone() };
    let mut claims = Claims::connect(&site.redis.url()).await.unwrap();
    site.tables.put_entry(&first).await.unwrap();
    claims.record(&[told(1, &beginning)], HORIZON_MS).await.unwrap();

    // Version 1 judged these, and they are final.
    let mut before = Vec::new();
    for number in 0..80 {
        before.push(append(&site, number, 50).await);
    }
    let mut engine = Engine::start(&site, "first.err");
    let answers = engine.ask_all(1, &before);
    let claimed = |answers: &[Option<i64>]| answers.iter().filter(|answer| **answer == Some(1)).count();
    let billed = claimed(&answers);
    let mut positions = Offsets::default();
    for partition in 0..PARTITIONS {
        positions.set(partition, tally_log::Log::held(&*site.log, &site.clicks, partition).await.unwrap().end);
    }
    let begun = Entry { number: 1, kind: Kind::Begun, positions: positions.clone(), ..first.clone() };
    site.tables.put_entry(&begun).await.unwrap();
    let mut table = site.tables.raw_clicks(1).await.unwrap().unwrap();
    table.write(&rows(&site, &before, &answers)).await.unwrap();
    table.commit().await.unwrap();
    site.tables.put_entry(&Entry { kind: Kind::Closing, ..begun.clone() }).await.unwrap();
    // Rows of a closing that was given up are no claims.
    let next = Entry { number: 2, kind: Kind::Begun, ..begun.clone() };
    site.tables.put_entry(&next).await.unwrap();
    let mut table = site.tables.raw_clicks(2).await.unwrap().unwrap();
    let mut never = rows(&site, &before[..1], &[Some(1)]);
    never[0].impression_id = Some("imp_never".into());
    table.write(&never).await.unwrap();
    table.commit().await.unwrap();
    site.tables.put_entry(&Entry { kind: Kind::Deployment, version: 2, ..next }).await.unwrap();
    claims.record(&[told(1, &beginning), told(2, &positions)], HORIZON_MS).await.unwrap();

    // Version 2 judges these, among them clicks on impressions that are billed already, or were a program's.
    let mut after = Vec::new();
    for number in 80..160 {
        after.push(append(&site, number, 70).await);
    }
    drop(engine);
    let mut engine = Engine::start(&site, "second.err");
    let answers = engine.ask_all(2, &after);
    let duplicates = answers.iter().filter(|answer| **answer == Some(0)).count();
    assert!(billed > 20 && claimed(&answers) > 5 && duplicates > 5, "{billed} {answers:?}");

    // Redis loses everything, while clicks come on impressions that are billed and on one that is not.
    assert_eq!(site.redis.call(&["FLUSHALL"]), "+OK\r\n");
    let next = [append(&site, 161, 70).await, append(&site, 999_998, 1_000_000).await];
    assert_eq!(next[0].at.partition, 1);
    engine.ask(2, &next[0]);
    // It waits, and says what for.
    let says = || std::fs::read_to_string(site.path().join("second.err")).unwrap();
    for _ in 0..600 {
        if says().contains("restore them with `tally claims rebuild`") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(says().contains("Redis lost claims"), "{}", says());

    let sql = std::fs::read_to_string(site.pipeline()).unwrap();
    std::fs::write(site.pipeline(), format!("{sql}\n-- changed\n")).unwrap();
    site.tally(&["claims", "rebuild"]).refused("version 2 was deployed with other SQL, functions or settings than");
    std::fs::write(site.pipeline(), sql).unwrap();

    let records = after.len() + next.len();
    let first_claims = claimed(&answers) + 1;
    let rebuilt = site.tally(&["claims", "rebuild"]);
    rebuilt.said(&format!("restored {billed} claims of {billed} final rows from "));
    rebuilt.said(&format!("; claimed {first_claims} of {records} records of the log from version 2 on\n"));
    // Again it changes nothing.
    let again = site.tally(&["claims", "rebuild"]);
    again.said(&format!("restored 0 claims of {billed} final rows from "));
    again.said(&format!("; claimed {first_claims} of {records} records"));

    // The engine went on by itself, and every answer is what it was.
    assert_eq!(engine.answer(), Some(0));
    assert_eq!(engine.ask_all(2, &next[1..]), [Some(1)]);
    drop(engine);
    let mut engine = Engine::start(&site, "third.err");
    assert_eq!(engine.ask_all(2, &after), answers);
    // Every impression that is billed stays so, whoever comes now; others are free.
    let mut holders: BTreeMap<String, i32> = BTreeMap::new();
    for record in before.iter().chain(&after) {
        if let Some(key) = &record.key {
            holders.insert(key.clone(), record.at.partition);
        }
    }
    let mut place: BTreeMap<i32, i64> = after.iter().chain(&next).map(|r| (r.at.partition, r.at.offset)).collect();
    let appended_at = next[1].at.appended_at;
    let mut come = |key: &str, partition: i32| {
        let offset = place.entry(partition).or_default();
        *offset += 1;
        let at = Appended { partition, offset: *offset, appended_at };
        engine.ask(2, &Record { at, key: Some(key.into()), is_decodable: true });
        engine.answer()
    };
    for (key, partition) in &holders {
        assert_eq!(come(key, *partition), Some(0), "{key}");
    }
    assert_eq!(come("imp_never", 0), Some(1));
}
