//! The process itself, on a local log: what it leaves to others, how it ends, and what it says.

use crate::app::Answer;
use services::{Server, free_port};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const CLICK: &str = "/api/v1/click/imp_1?ad_id=ad_9";
const LONG: Duration = Duration::from_secs(60);

/// The process in a folder, under what a shell does before it.
struct Process {
    server: Server,
    admin: u16,
}

impl Process {
    fn start(dir: &Path, before: &str, more: &[(&str, &str)]) -> Process {
        let (command, port, admin) = Self::command(dir, before, more);
        Process { server: Server::start(command, port, &dir.join("out"), LONG), admin }
    }

    fn command(dir: &Path, before: &str, more: &[(&str, &str)]) -> (Command, u16, u16) {
        let (port, admin) = (free_port(), free_port());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before}\nexec \"$0\""), env!("CARGO_BIN_EXE_tally-redirect")]);
        for (name, value) in [
            ("LISTEN", format!("127.0.0.1:{port}")),
            ("ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
            ("CATALOG", concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog/sample.csv").into()),
            ("IP_HASH_KEY", "a secret of this test".into()),
            ("LOG", format!("{{ local = {{ dir = {:?} }} }}", dir.join("log"))),
            ("SPOOL__DIR", dir.join("spool").display().to_string()),
            // A machine that is busy must not be taken for a log that is stuck.
            ("APPEND_WAIT", "10s".into()),
        ] {
            command.env(format!("TALLY_REDIRECT_{name}"), value);
        }
        command.envs(more.iter().copied());
        (command, port, admin)
    }

    /// The answer to a request on a connection of its own, if there is one.
    async fn asked(port: u16, target: &str, lines: &str) -> Option<Answer> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{lines}\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Answer::parse(&text)
    }
}

#[tokio::test]
async fn clients_leave_open_files_to_the_log() {
    const FILES: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), &format!("ulimit -n {FILES}"), &[]);
    let mut connections = Vec::new();
    for _ in 0..FILES + 50 {
        // Those that are not taken wait in the kernel's queue, and when that is full they hear nothing.
        let connecting = TcpStream::connect(("127.0.0.1", process.server.port));
        let Ok(connection) = tokio::time::timeout(Duration::from_secs(5), connecting).await else { break };
        connections.push(connection.unwrap());
        // The queue is short: without a pause it would be full before the process is awake.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let open = || std::fs::read_dir(format!("/proc/{}/fd", process.server.id())).unwrap().count();
    // It has taken what it takes when that is the same for a while.
    let mut same = 0;
    let mut before = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = open();
        same = if now == before && now > 64 { same + 1 } else { 0 };
        before = now;
    }
    assert!(open() < FILES / 2, "{}", open());
    // Also for operators, and for those who came first.
    let ready = tokio::time::timeout(LONG, Process::asked(process.admin, "/readyz", "")).await.expect("it answers");
    let ready = ready.unwrap();
    assert_eq!(ready.status, 200);
    // Here, and not on the public's port, is what operators may know.
    assert!(ready.body.contains("no keys are configured: every well-formed click counts"), "{}", ready.body);
    let first = &mut connections[0];
    first.write_all(format!("GET {CLICK} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
    let printed = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(printed.contains("asked=10000") && printed.contains("allowed=88"), "{printed}");
}

#[tokio::test]
async fn a_log_that_stopped_for_good_ends_the_process_when_the_spool_takes_nothing_either() {
    let dir = tempfile::tempdir().unwrap();
    // No file may become larger than that, as on a disk that is full: the log's first, then the spool's.
    let process = Process::start(dir.path(), "trap '' XFSZ\nulimit -f 1000", &[]);
    let agent = format!("User-Agent: {}\r\n", "x".repeat(1_024));
    let (port, out) = (process.server.port, dir.path().join("out"));
    let printed = || std::fs::read_to_string(&out).unwrap();
    let (mut with_log, mut with_spool) = (0, 0);
    // The process ends by itself; the bound is many times what both files take.
    for _ in 0..5_000 {
        let stopped = printed().contains("they go to the spool");
        match Process::asked(port, CLICK, &agent).await.map(|answer| answer.status) {
            Some(302) if stopped => with_spool += 1,
            Some(302) => with_log += 1,
            Some(503) => {}
            None => break,
            Some(other) => panic!("{other}"),
        }
    }
    let status = process.server.wait(LONG);
    assert_eq!(status.code(), Some(1), "{}", printed());
    assert!(with_log > 0 && with_spool > 0, "{with_log} {with_spool}: {}", printed());
    let last = printed().lines().last().unwrap().to_owned();
    assert!(last.starts_with("tally-redirect: the log takes nothing more") && last.contains("nor does"), "{last}");
}

/// A signature that outlives the dedup horizon lets one impression be billed twice.
#[tokio::test]
async fn a_start_is_refused_when_signatures_outlive_the_dedup_horizon_whatever_the_hint_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let key = format!("k1:{}", "x".repeat(32));
    let more = [
        ("TALLY_REDIRECT_SIGNATURES__KEYS", &*key),
        ("TALLY_REDIRECT_SIGNATURES__LONGEST", "48h"),
        ("TALLY_REDIRECT_SEEN__HORIZON", "7days"),
    ];
    // One that starts all the same runs until it is killed.
    let (mut command, ..) = Process::command(dir.path(), "", &more);
    let out = dir.path().join("out");
    command.stderr(std::fs::File::create(&out).unwrap());
    let mut child = command.spawn().unwrap();
    let mut ended = None;
    for _ in 0..3_000 {
        ended = child.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = child.kill();
    let _ = child.wait();
    let printed = std::fs::read_to_string(&out).unwrap();
    assert!(ended.is_some_and(|status| status.code() == Some(1)), "{printed}");
    assert!(printed.contains("signatures.longest"), "{printed}");
}

/// Where a browser is stands in the log as a keyed hash only, so it is not in what operators read either.
#[tokio::test]
async fn no_line_of_the_process_has_the_address_of_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let more = [("TALLY_LOG", "trace"), ("TALLY_REDIRECT_TRUSTED_PROXIES", "[\"127.0.0.0/8\"]")];
    let process = Process::start(dir.path(), "", &more);
    let port = process.server.port;
    let forwarded = "X-Forwarded-For: 203.0.113.77\r\nX-Country: Nowhere\r\n";
    for (target, lines, status) in [
        (CLICK, forwarded, 302),
        (CLICK, "X-Forwarded-For: 203.0.113.77, nonsense\r\nPurpose: prefetch\r\n", 503),
        ("/api/v1/click/imp_1?ad_id=nobody", forwarded, 404),
        ("/nowhere", forwarded, 404),
        ("/readyz", forwarded, 200),
    ] {
        assert_eq!(Process::asked(port, target, lines).await.unwrap().status, status, "{target}");
    }
    // Another address than the one that it listens on, and what is not HTTP, cut off at once, or left halfway.
    for bytes in
        [&b"nonsense\r\n\r\n"[..], b"\x16\x03\x01", b"", b"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.77\r\n"]
    {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.77:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(format!("127.0.0.1:{port}").parse().unwrap()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    process.server.signal("TERM");
    assert!(process.server.wait(LONG).success());
    let printed = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(printed.contains("DEBUG") && printed.contains("connection ended"), "it says what it can: {printed}");
    assert!(!printed.contains("203.0.113") && !printed.contains("127.0.0.77"), "{printed}");
}
