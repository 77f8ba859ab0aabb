//! The main job, from the binary that a newcomer starts: real HTTP, real time, kill -9, restarts.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const BOT: &str = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Three ports that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let taken = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}

/// A running `tally up`, killed when the test is over.
struct Up {
    child: Child,
    /// What it printed until it was up.
    greeting: String,
    ports: [u16; 3],
    client: reqwest::Client,
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(data: &Path, pipelines: &Path, ports: [u16; 3]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    let [redirect, reporting, sample] = ports.map(|port| format!("127.0.0.1:{port}"));
    command.arg("up").arg("--data").arg(data).arg("--pipelines").arg(pipelines);
    command.args(["--lateness", "3s", "--slack", "1s", "--redirect", &redirect, "--reporting", &reporting]);
    command.args(["--sample", &sample]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Up {
    fn start(data: &Path, pipelines: &Path, ports: [u16; 3]) -> Up {
        let mut child = command(data, pipelines, ports).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut greeting = String::new();
        while !greeting.contains("Ctrl-C stops") {
            match lines.next() {
                Some(line) => greeting.push_str(&(line.unwrap() + "\n")),
                None => {
                    let mut error = String::new();
                    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                    panic!("tally up ended: {greeting}{error}");
                }
            }
        }
        // Somebody has to read what it goes on to print.
        std::thread::spawn(move || lines.for_each(drop));
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().for_each(|line| eprintln!("{}", line.unwrap_or_default()))
        });
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Up { child, greeting, ports, client }
    }

    fn link(&self, name: &str) -> String {
        let line = self.greeting.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().to_string()
    }

    async fn click(&self, impression: &str, agent: &str) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}/api/v1/click/{impression}?ad_id=ad_9&campaign_id=cmp_7", self.ports[0]);
        let answer = self.client.get(url).header("User-Agent", agent).send().await.unwrap();
        assert_eq!(answer.status(), 302);
        answer
    }

    /// All of campaign cmp_7, by minute and ad.
    async fn report(&self) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/reports/clicks", self.ports[1]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let [from, to] = [-1, 1].map(|day| click::Millis::new(now + day * 86_400_000).to_string()[..10].to_string());
        let query = [("campaign_id", "cmp_7"), ("groupBy", "minute,ad_id"), ("from", &from), ("to", &to)];
        let answer = self.client.get(url).query(&query).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Asks until the report says so; how long that may take is the promise.
    async fn wait_for(&self, what: &str, most: Duration, said: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let report = self.report().await;
            if said(&report) {
                return report;
            }
            assert!(start.elapsed() < most, "{what} did not come: {report}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn kill(mut self) -> [u16; 3] {
        // SIGKILL: no goodbye.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.ports
    }

    fn interrupt(mut self) -> [u16; 3] {
        let done = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return self.ports;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it did not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn clicks(report: &Value) -> i64 {
    report["totals"]["clicks"].as_i64().unwrap()
}

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_click_counts_once_through_kills_and_becomes_final() {
    let dir = tempfile::tempdir().unwrap();
    let (data, pipelines) = (dir.path().join("data"), root().join("pipelines"));
    let up = Up::start(&data, &pipelines, free_ports());

    // The three links of the greeting work at once.
    for link in ["a click", "a report", "dashboard"].map(|name| up.link(name)) {
        let status = up.client.get(&link).header("User-Agent", PERSON).send().await.unwrap().status().as_u16();
        assert!(status == 200 || status == 302, "{link}: {status}");
    }
    // The sample click was a person's, too.
    up.wait_for("the sample click", TEN_SECONDS, |report| clicks(report) == 1).await;

    let answer = up.click("imp_1", PERSON).await;
    let location = answer.headers()["location"].to_str().unwrap().to_string();
    let id = answer.headers()["x-click-id"].to_str().unwrap().to_string();
    assert_eq!(location, format!("http://127.0.0.1:{}/ads/ad_9?click={id}", up.ports[2]));
    let report = up.wait_for("the click", TEN_SECONDS, |report| clicks(report) == 2).await;
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["adId"] == "ad_9" && row["provisional"] == true), "{report}");
    let page = up.client.get(&location).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("counted as billable in campaign cmp_7"), "{page}");

    // Again, a bot and then a person, and curl as itself: none, one, none.
    up.click("imp_1", PERSON).await;
    up.click("imp_2", BOT).await;
    up.click("imp_2", PERSON).await;
    up.click("imp_3", "curl/8.5.0").await;
    up.wait_for("the person after the bot", TEN_SECONDS, |report| clicks(report) == 3).await;

    // Killed right after an answer, twice: what was answered is there, and nothing twice.
    let mut ports = {
        up.click("imp_4", PERSON).await;
        up.kill()
    };
    for round in 0..2 {
        let up = Up::start(&data, &pipelines, ports);
        for impression in ["imp_1", "imp_2", "imp_4"] {
            up.click(impression, PERSON).await;
        }
        up.click(&format!("imp_5{round}"), PERSON).await;
        ports = up.kill();
    }
    let up = Up::start(&data, &pipelines, ports);
    assert!(!up.greeting.contains("new version"), "{}", up.greeting);
    up.wait_for("all of them", TEN_SECONDS, |report| clicks(report) == 6).await;

    // Final once the minute, its lateness and the slack have passed.
    let most = Duration::from_secs(60 + 3 + 1 + 10);
    let done = up.wait_for("the final report", most, |report| report["totals"]["provisionalClicks"] == 0).await;
    assert_eq!(clicks(&done), 6, "{done}");
    let rows = done["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["provisional"] == false), "{done}");

    // In another minute it is still a duplicate; and a new one is one more.
    up.click("imp_1", PERSON).await;
    up.click("imp_6", PERSON).await;
    up.wait_for("a new click", TEN_SECONDS, |report| clicks(report) == 7).await;
    let ports = up.interrupt();

    // A changed rule is a new version: what is final stays, what comes is judged by it.
    let changed = dir.path().join("pipelines");
    std::fs::create_dir(&changed).unwrap();
    let sql = std::fs::read_to_string(pipelines.join("clicks.sql")).unwrap();
    let rule = r#"ELSE bot_reason("userAgent")"#;
    assert!(sql.contains(rule));
    let strict = sql.replace(rule, r#"WHEN "userAgent" LIKE '%Firefox%' THEN 'fox' ELSE bot_reason("userAgent")"#);
    std::fs::write(changed.join("clicks.sql"), strict).unwrap();
    let up = Up::start(&data, &changed, ports);
    assert!(up.greeting.contains("pipeline version 2") && up.greeting.contains("new version"), "{}", up.greeting);
    up.click("imp_7", PERSON).await;
    up.click("imp_7", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36").await;
    // imp_6 was not final yet, and a fox now; imp_7 is counted for the person after the fox.
    up.wait_for("the new rule", TEN_SECONDS, |report| clicks(report) == 7).await;
    up.wait_for("its final report", most, |report| report["totals"]["provisionalClicks"] == 0 && clicks(report) == 7)
        .await;
    up.interrupt();
}

/// What it says when it cannot start.
fn refused(data: &Path, pipelines: &Path, ports: [u16; 3]) -> String {
    let mut child = command(data, pipelines, ports).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(20) => {
                child.kill().unwrap();
                child.wait().unwrap();
                return "it started all the same".into();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(!status.success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    // Warnings of a start that went well before it failed are not what is asked about.
    text.lines().skip_while(|line| !line.starts_with("tally: ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let (data, pipelines) = (dir.path().join("data"), root().join("pipelines"));
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let sql = std::fs::read_to_string(pipelines.join("clicks.sql")).unwrap();
    std::fs::write(broken.join("clicks.sql"), sql.replace("FROM verdicts WHERE", "FRM verdicts WHERE")).unwrap();
    let error = refused(&data, &broken, free_ports());
    let line = 1 + sql.lines().position(|line| line.contains("FROM verdicts WHERE")).unwrap();
    assert!(error.contains(&format!("clicks.sql:{line}:")) && error.contains("FRM verdicts WHERE"), "{error}");
    assert!(!data.exists(), "a broken pipeline touches nothing");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let [_, reporting, sample] = free_ports();
    let error = refused(&data, &pipelines, [port, reporting, sample]);
    assert!(error.contains(&format!("redirect: cannot listen on 127.0.0.1:{port}")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refused(&file.join("data"), &pipelines, free_ports());
    assert!(error.contains(&file.display().to_string()) && error.lines().count() == 1, "{error}");

    let error = refused(&data, &dir.path().join("none"), free_ports());
    assert!(error.contains("none") && error.lines().count() == 1, "{error}");
}

#[tokio::test]
async fn a_damaged_data_folder_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, pipelines) = (dir.path().join("data"), root().join("pipelines"));
    let up = Up::start(&data, &pipelines, free_ports());
    for number in 0..50 {
        up.click(&format!("imp_{number}"), PERSON).await;
    }
    up.wait_for("the clicks", TEN_SECONDS, |report| clicks(report) == 50).await;
    // Until there is something in every table.
    let most = Duration::from_secs(60 + 3 + 1 + 10);
    up.wait_for("the final report", most, |report| report["totals"]["provisionalClicks"] == 0).await;
    let ports = up.interrupt();
    // Each file in turn: flipped bits, and it is named.
    let mut files = Vec::new();
    let mut folders = vec![data.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let checked = ["clicks.checkpoint", "_delta_log", ".parquet", "log/topics/clicks/", "log/topics/raw_clicks/"];
    let mut seen = [0; 5];
    for file in &files {
        let Some(kind) = checked.iter().position(|part| file.to_string_lossy().contains(part)) else { continue };
        let good = std::fs::read(file).unwrap();
        if good.len() < 64 {
            continue;
        }
        let mut bad = good.clone();
        bad[good.len() / 3] ^= 0x55;
        std::fs::write(file, bad).unwrap();
        let error = refused(&data, &pipelines, ports);
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(error.contains(&*name), "{name} was damaged, and it said: {error}");
        std::fs::write(file, good).unwrap();
        seen[kind] += 1;
    }
    assert!(seen.iter().all(|seen| *seen > 0), "too few files were damaged: {seen:?} {files:?}");
    // The warehouse itself is gone: what the runner keeps is not for a new one.
    let (folder, aside) = (data.join("warehouse"), dir.path().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let error = refused(&data, &pipelines, ports);
    assert!(error.contains("warehouse is missing or empty") && error.lines().count() == 1, "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    let up = Up::start(&data, &pipelines, ports);
    up.wait_for("all clicks again", TEN_SECONDS, |report| clicks(report) == 50).await;
}
