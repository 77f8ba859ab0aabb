//! A redirect that runs, a log in memory that does what a test wants, and a client that sends any bytes.

pub mod mmdb;

use async_trait::async_trait;
use bytes::Bytes;
use click::{Event, LogId, ManualClock, Millis, Offset, Offsets, Partition};
use redirect::reload::Reloaded;
use redirect::{Catalog, Secret, SeenBefore, SeenInMemory, Service, Settings, With};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tally_log::local::LocalLog;
use tally_log::{Acknowledgement, Appended, Consumer, Log, LogError, Topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub const NOON: &str = "2026-04-20T12:00:00.123Z";
pub const PARTITIONS: Partition = 4;
const CATALOG: &str = "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state
ad_9,cmp_7,pub_4,adv_1,https://shop.example/{ad_id}?c={click_id}&i={impression_id}&k={campaign_id}&p={publisher_id},active
ad_paused,cmp_7,pub_4,adv_1,https://shop.example/paused,paused
ad_ended,cmp_7,pub_4,adv_1,https://shop.example/ended,ended
";

/// How a log answers an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Works,
    /// Refuses at once.
    Fails,
    /// Takes the record, and then says that it failed.
    FailsLater,
    /// Takes and answers nothing until the mode changes.
    Holds,
    /// A mistake of its own.
    Panics,
}

/// A log in memory.
pub struct TestLog {
    pub mode: watch::Sender<Mode>,
    /// A partition that takes and answers nothing, whatever the mode.
    pub stuck: watch::Sender<Option<Partition>>,
    /// An impression whose clicks it takes and then denies, and has not.
    pub denied: watch::Sender<Option<&'static str>>,
    /// Appends that were asked for, answered or not.
    pub asked: watch::Sender<usize>,
    records: Arc<Mutex<Vec<(Partition, Bytes)>>>,
    /// What it takes is made durable here first, if there is one.
    below: Option<(Arc<LocalLog>, Topic)>,
}

impl TestLog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::over(None))
    }

    /// In front of a log on this disk.
    pub async fn before(log: Arc<LocalLog>) -> Arc<Self> {
        let topic = log.topic("clicks").await.unwrap();
        Arc::new(Self::over(Some((log, topic))))
    }

    fn over(below: Option<(Arc<LocalLog>, Topic)>) -> Self {
        let (mode, asked) = (watch::Sender::new(Mode::Works), watch::Sender::new(0));
        let (stuck, denied) = (watch::Sender::new(None), watch::Sender::new(None));
        TestLog { mode, stuck, denied, asked, records: Arc::default(), below }
    }

    pub fn topic(&self) -> Topic {
        Topic { name: "clicks".into(), log_id: LogId::from_bytes([7; 16]), partitions: PARTITIONS }
    }

    /// The values of all records of a kind, with their partitions.
    fn of_kind(&self, kind: &str) -> Vec<(Partition, String)> {
        let records = self.records.lock().unwrap();
        let texts = records.iter().map(|(partition, value)| (*partition, String::from_utf8(value.to_vec()).unwrap()));
        texts.filter(|(_, text)| text.starts_with(&format!(r#"{{"kind":"{kind}""#))).collect()
    }

    pub fn clicks(&self) -> Vec<click::Click> {
        let parse = |(_, text): (Partition, String)| match serde_json::from_str(&text).unwrap() {
            Event::Click(click) => click,
            other => panic!("{other:?}"),
        };
        self.of_kind("click").into_iter().map(parse).collect()
    }

    pub fn click_texts(&self) -> Vec<(Partition, String)> {
        self.of_kind("click")
    }

    pub fn heartbeats(&self) -> Vec<(Partition, String)> {
        self.of_kind("heartbeat")
    }
}

#[async_trait]
impl Log for TestLog {
    async fn topic(&self, _: &str) -> Result<Topic, LogError> {
        Ok(TestLog::topic(self))
    }

    async fn append(
        &self,
        _: &Topic,
        partition: Partition,
        _: Option<&[u8]>,
        value: Bytes,
    ) -> Result<Acknowledgement, LogError> {
        self.asked.send_modify(|asked| *asked += 1);
        let mut mode = self.mode.subscribe();
        let stopped = LogError::Stopped("the disk is full".into());
        if *mode.borrow() == Mode::Fails {
            return Err(stopped);
        }
        assert_ne!(*mode.borrow(), Mode::Panics, "a bug that a test wants");
        let text = String::from_utf8(value.to_vec()).unwrap();
        if self.denied.borrow().is_some_and(|denied| text.contains(&format!("\"{denied}\""))) {
            return Ok(Box::pin(async { Err(stopped) }));
        }
        let records = self.records.clone();
        let mut stuck = self.stuck.subscribe();
        let below = self.below.clone();
        Ok(Box::pin(async move {
            stuck.wait_for(|stuck| *stuck != Some(partition)).await.unwrap();
            mode.wait_for(|mode| *mode != Mode::Holds).await.unwrap();
            let fails = *mode.borrow() == Mode::FailsLater;
            if let Some((log, topic)) = below {
                log.append(&topic, partition, None, value.clone()).await?.await?;
            }
            let mut records = records.lock().unwrap();
            records.push((partition, value));
            let offset = records.len() as Offset - 1;
            if fails { Err(stopped) } else { Ok(Appended { partition, offset, appended_at: Millis::new(0) }) }
        }))
    }

    async fn consumer(&self, _: &Topic, _: &Offsets) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Stopped("no test reads".into()))
    }

    async fn held(&self, _: &Topic, _: Partition) -> Result<Range<Offset>, LogError> {
        Ok(0..0)
    }

    async fn offset_at(&self, _: &Topic, _: Partition, _: Millis) -> Result<Offset, LogError> {
        Ok(0)
    }
}

pub fn secret() -> Secret {
    Secret::new(b"0123456789abcdef").unwrap()
}

/// A service's judges without any rule.
pub fn no_rules() -> With {
    With::new(secret(), Arc::new(SeenInMemory::new(Duration::from_secs(86_400), 1_000)))
}

/// A redirect on a port of its own, with a clock that stands at [`NOON`].
pub struct TestApp {
    pub log: Arc<TestLog>,
    pub clock: Arc<ManualClock>,
    pub service: Service,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::with(TestLog::new(), Settings::default()).await
    }

    pub async fn with(log: Arc<TestLog>, settings: Settings) -> Self {
        let seen = SeenInMemory::new(Duration::from_secs(86_400), 1_000);
        Self::with_seen(log, settings, Arc::new(seen)).await
    }

    pub async fn with_seen(log: Arc<TestLog>, settings: Settings, seen: Arc<dyn SeenBefore>) -> Self {
        Self::with_all(log, settings, With::new(secret(), seen)).await
    }

    pub async fn with_all(log: Arc<TestLog>, settings: Settings, with: With) -> Self {
        let catalog = Reloaded::fixed("catalog", Catalog::parse("test", CATALOG).unwrap());
        Self::with_everything(log, settings, catalog, with).await
    }

    pub async fn with_catalog(log: Arc<TestLog>, catalog: Arc<Reloaded<Catalog>>) -> Self {
        Self::with_everything(log, Settings::default(), catalog, no_rules()).await
    }

    async fn with_everything(
        log: Arc<TestLog>,
        settings: Settings,
        catalog: Arc<Reloaded<Catalog>>,
        with: With,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(NOON.parse().unwrap()));
        let service = Service::new(
            log.clone(),
            TestLog::topic(&log),
            catalog,
            clock.clone(),
            // A hint that is late because the machine is busy is right, but not what tests look for.
            Settings { seen_wait: Duration::from_secs(10), ..settings },
            with,
        );
        let heartbeats = log.heartbeats().len() + PARTITIONS as usize;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = service.clone();
        let served = tokio::spawn(async move {
            redirect::serve(listener, serving, async move { drop(stopped.await) }).await;
        });
        // The first heartbeats, and none until the clock is set: what a test sees from here on is its own.
        eventually("the first heartbeats", || log.heartbeats().len() == heartbeats).await;
        TestApp { log, clock, service, address, stop, served }
    }

    /// One request on a connection of its own; `lines` are header lines, each ended.
    pub async fn send(&self, method: &str, target: &str, lines: &str) -> Answer {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{lines}\r\n");
        self.send_bytes(request.as_bytes()).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, "").await
    }

    /// Sends bytes as they are, and reads until the service closes the connection.
    pub async fn send_bytes(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        Answer::read(stream).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a click on a connection that stays open, and waits until the log is asked to take it.
    pub async fn begin(&self, target: &str) -> TcpStream {
        let mut asked = self.log.asked.subscribe();
        let before = *asked.borrow_and_update();
        let mut stream = self.connect().await;
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).await.unwrap();
        asked.wait_for(|asked| *asked > before).await.unwrap();
        stream
    }

    /// What a kill leaves, as far as one process can play it: everything under way is dropped.
    pub async fn kill(self) {
        self.served.abort();
        let _ = self.served.await;
    }

    /// Tells the service to stop, as a signal would.
    pub fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.served
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// Reads until the connection is closed or reset.
    pub async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        Self::parse(&text).unwrap_or_else(|| panic!("no answer: {text:?}"))
    }

    /// An answer from its text, if that is one.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub fn click_id(&self) -> String {
        self.header("x-click-id").unwrap().to_owned()
    }

    /// The body as problem details: its status is checked, and field, given and allowed are returned.
    pub fn problem(&self) -> (String, String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
        let json: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(json["status"], self.status);
        for member in ["type", "title", "detail"] {
            assert!(json[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {json}");
        }
        let text = |member: &str| json[member].as_str().unwrap_or("(none)").to_owned();
        (text("field"), text("given"), text("allowed"))
    }
}

/// Waits for something that must happen, for as long as a busy machine may need.
pub async fn eventually(what: &str, happened: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
