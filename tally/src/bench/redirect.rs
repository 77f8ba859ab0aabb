//! `tally bench redirect`: how many clicks a second the redirect answers, each durable in a local log, beside nginx that
//! answers a fixed 302. wrk asks both in turn, with the same script on the same cores.

use crate::status::say;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a record and of its group's frame, about: what the disk is asked for beside.
const SYNC_BYTES: usize = 16 << 10;
const SYNC_TIME: Duration = Duration::from_secs(2);

/// Every request is a click on an impression of its own.
const SCRIPT: &str = r#"
local threads = 0
function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end
function init(args)
  round, n = args[1], 0
end
function request()
  n = n + 1
  return wrk.format("GET", "/api/v1/click/imp_" .. round .. "_" .. id .. "_" .. n .. "?ad_id=ad_" .. n % 1000 .. "&campaign_id=cmp_7")
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("result %d %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

/// What the redirect keeps to, in bytes: memory in a round with [`ADS`] ads, memory of an ad among [`MANY_ADS`], and its
/// program without symbols.
const MEMORY_MAX: u64 = 50_000_000;
const AD_MAX: u64 = 500;
const PROGRAM_MAX: u64 = 20_000_000;
/// What it has to reach in the median of the rounds: a part of nginx's rate, and microseconds.
const RATIO_LEAST: f64 = 0.5;
const P99_MAX_US: u64 = 10_000;
const ADS: u32 = 1_000;
const MANY_ADS: u32 = 1_000_000;

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

#[derive(Args)]
pub struct RedirectBench {
    /// Connections of wrk
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// How long each server is asked in a round
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Rounds, each of nginx and the redirect in turn; 0 shows only the size of the program and of a large catalog
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    rounds: u32,
    /// Folder for the log, removed afterwards [default: a new one under ./data]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The `tally-redirect` to measure [default: the one beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
}

/// What wrk measured: requests a second, and latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    rate: f64,
    p50: u64,
    p99: u64,
    p999: u64,
    errors: u64,
}

impl RedirectBench {
    /// Asks both, round by round.
    ///
    /// # Errors
    /// If wrk, nginx or `tally-redirect` cannot be started, or answer otherwise than with a 302; or if the redirect takes
    /// more memory than it may, or its program more room.
    pub async fn run(self) -> Result<()> {
        tokio::task::spawn_blocking(move || {
            let dir = self.dir.clone();
            let dir =
                dir.unwrap_or_else(|| PathBuf::from("data").join(format!("bench-{}", uuid::Uuid::new_v4().simple())));
            tally_log::durable::create_dir_all(&dir)?;
            let dir = dir.canonicalize()?;
            let measured = self.measure(&dir);
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            measured
        })
        .await?
    }

    fn measure(&self, dir: &Path) -> Result<()> {
        let script = dir.join("clicks.lua");
        std::fs::write(&script, SCRIPT)?;
        let program = self.program()?;
        sizes(dir, &program)?;
        if self.rounds == 0 {
            return Ok(());
        }
        let nginx = Server::nginx(dir)?;
        let redirect = Server::redirect(dir, &program, ADS)?;
        // Both are asked before anything is measured.
        for server in [&nginx, &redirect] {
            self.ask(server, &script, "warm", Duration::from_secs(2))?;
        }
        say(&format!("disk: {:.0} fsyncs/s of {} KiB each, nothing else running", syncs(dir)?, SYNC_BYTES >> 10));
        say("                     requests/s    p50     p99    p99.9   µs of CPU a request");
        let (mut ratios, mut p99s) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            let mut rates = Vec::new();
            for server in [&nginx, &redirect] {
                let (cpu, fsyncs) = (server.cpu()?, server.fsyncs()?);
                let measured = self.ask(server, &script, &round.to_string(), self.time)?;
                let cpu = server.cpu()?.saturating_sub(cpu).as_secs_f64();
                let Measured { rate, p50, p99, p999, errors } = measured;
                let asked = rate * self.time.as_secs_f64();
                let fsyncs = match (fsyncs, server.fsyncs()?) {
                    (Some(before), Some(after)) => {
                        let fsyncs = (after - before) as f64;
                        format!(", {:.0} fsyncs/s of {:.1} clicks", fsyncs / self.time.as_secs_f64(), asked / fsyncs)
                    }
                    _ => String::new(),
                };
                say(&format!(
                    "round {round} {:<15} {rate:>8.0} {p50:>6} {p99:>7} {p999:>8}   {:>6.1}{fsyncs}",
                    server.name,
                    cpu * 1e6 / asked
                ));
                ensure!(errors == 0, "{} answered {errors} requests otherwise than it should, or not", server.name);
                rates.push(rate);
                if server.name == redirect.name {
                    p99s.push(p99);
                }
            }
            if let [nginx, redirect] = rates[..] {
                ratios.push(redirect / nginx);
            }
        }
        ratios.sort_by(f64::total_cmp);
        p99s.sort_unstable();
        let (ratio, p99) = (ratios[ratios.len() / 2], p99s[p99s.len() / 2]);
        say(&format!(
            "tally-redirect answers {:.2} of nginx's rate (median of {}; {:.2} to {:.2})",
            ratio,
            ratios.len(),
            ratios[0],
            ratios[ratios.len() - 1]
        ));
        let peak = redirect.memory("VmHWM")?;
        say(&format!("memory: {:.1} MB at most in these rounds, with {ADS} ads", peak as f64 / 1e6));
        ensure!(peak <= MEMORY_MAX, "that is more than {} MB", MEMORY_MAX / 1_000_000);
        ensure!(
            ratio >= RATIO_LEAST && p99 < P99_MAX_US,
            "not reached: {RATIO_LEAST} of nginx's rate, and a p99 under {} ms in half of the rounds",
            P99_MAX_US / 1000
        );
        Ok(())
    }

    fn program(&self) -> Result<PathBuf> {
        let beside = || std::env::current_exe().map(|program| program.with_file_name("tally-redirect"));
        let program = self.program.clone().map_or_else(beside, Ok)?;
        ensure!(program.exists(), "{} is not there: `cargo build --release -p redirect` makes it", program.display());
        Ok(program)
    }

    fn ask(&self, server: &Server, script: &Path, round: &str, time: Duration) -> Result<Measured> {
        let output = Command::new("wrk")
            .args(["-t", "1", "-c", &self.connections.to_string(), "-d", &format!("{}s", time.as_secs().max(1))])
            .args(["-H", &format!("User-Agent: {AGENT}"), "-s"])
            .arg(script)
            .arg(format!("http://{}", server.address))
            .args(["--", round])
            .stdin(Stdio::null())
            .output()
            .context("cannot run wrk (Debian's package of that name)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("result "));
        let numbers: Vec<u64> = line.unwrap_or_default().split(' ').filter_map(|number| number.parse().ok()).collect();
        let [requests, micros, p50, p99, p999, errors] = numbers[..] else {
            bail!("wrk says: {text} {}", String::from_utf8_lossy(&output.stderr));
        };
        ensure!(requests > 0, "{} answers nothing", server.name);
        Ok(Measured { rate: requests as f64 * 1e6 / micros as f64, p50, p99, p999, errors })
    }
}

/// The program without symbols, and what a large catalog takes.
fn sizes(dir: &Path, program: &Path) -> Result<()> {
    let stripped = dir.join("stripped");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
    ensure!(done.context("cannot run strip (Debian: binutils)")?.success(), "strip failed");
    let bytes = std::fs::metadata(&stripped)?.len();
    say(&format!("program: {:.1} MB stripped", bytes as f64 / 1e6));
    ensure!(bytes <= PROGRAM_MAX, "that is more than {} MB", PROGRAM_MAX / 1_000_000);

    let one = Server::redirect(dir, program, 1)?.memory("VmRSS")?;
    let begun = Instant::now();
    let many = Server::redirect(dir, program, MANY_ADS)?;
    let took = begun.elapsed().as_secs_f64();
    let each = many.memory("VmRSS")?.saturating_sub(one) / u64::from(MANY_ADS - 1);
    say(&format!("catalog: {MANY_ADS} ads, listening after {took:.1} s; memory of {each} bytes an ad"));
    ensure!(each <= AD_MAX, "that is more than {AD_MAX} bytes");
    Ok(())
}

/// How many times a second the disk takes a few kilobytes for good.
fn syncs(dir: &Path) -> Result<f64> {
    let file = tally_log::durable::File::create_new(&dir.join("syncs"))?;
    let bytes = vec![7; SYNC_BYTES];
    let begun = Instant::now();
    let mut done: u32 = 0;
    while begun.elapsed() < SYNC_TIME {
        file.write_all_at(&bytes, u64::from(done) * SYNC_BYTES as u64)?;
        file.sync()?;
        done += 1;
    }
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}

/// A server of this bench; it ends with it.
struct Server {
    name: &'static str,
    address: SocketAddr,
    /// Where its metrics are, if it has any.
    admin: Option<SocketAddr>,
    child: Child,
}

impl Server {
    fn nginx(dir: &Path) -> Result<Server> {
        let address = free()?;
        let folder = dir.display();
        let config = format!(
            "daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; server {{ listen {address};\n\
             location / {{ return 302 http://127.0.0.1/landing?click=1; }} }} }}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).arg("-p").arg(dir).arg("-e").arg(dir.join("nginx.log"));
        Server::start("nginx", address, None, command)
    }

    fn redirect(dir: &Path, program: &Path, ads: u32) -> Result<Server> {
        let (address, admin) = (free()?, free()?);
        let catalog = dir.join("catalog.csv");
        write_catalog(&catalog, ads)?;
        let config = format!(
            "listen = \"{address}\"\nadmin_listen = \"{admin}\"\ncatalog = \"{}\"\nip_hash_key = \"{}\"\n\
             log = {{ local = {{ dir = \"{}\" }} }}\n[spool]\ndir = \"{}\"\n",
            catalog.display(),
            uuid::Uuid::new_v4().simple(),
            dir.join("log").display(),
            dir.join("spool").display()
        );
        let path = dir.join("redirect.toml");
        std::fs::write(&path, config)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&path);
        Server::start("tally-redirect", address, Some(admin), command)
    }

    fn start(
        name: &'static str,
        address: SocketAddr,
        admin: Option<SocketAddr>,
        mut command: Command,
    ) -> Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut server = Server { name, address, admin, child };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{name} ended: {status}");
            }
            ensure!(Instant::now() < until, "{name} does not listen on {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// CPU time of the process and of those that it started, so far.
    fn cpu(&self) -> Result<Duration> {
        let id = self.child.id();
        let mut ids = vec![id];
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        ids.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        ids.into_iter().map(super::cpu_time_of).sum()
    }

    /// A line of /proc's status of the process, in bytes.
    fn memory(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{name} of process {}", self.child.id()))? * 1024)
    }

    /// Groups of clicks that were made durable so far, from the metrics.
    fn fsyncs(&self) -> Result<Option<u64>> {
        use std::io::Read;
        let Some(admin) = self.admin else { return Ok(None) };
        let mut stream = TcpStream::connect(admin)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("tally_log_fsyncs_total "));
        Ok(line.and_then(|count| count.parse::<f64>().ok()).map(|count| count as u64))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx takes its workers with it when it is told to stop, not when it is killed.
        let told = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        let until = Instant::now() + PATIENCE;
        while told.is_ok() && Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ads of one campaign, with pages of a common length.
fn write_catalog(path: &Path, ads: u32) -> Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    writeln!(file, "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state,parameters")?;
    for ad in 0..ads {
        writeln!(
            file,
            "ad_{ad},cmp_7,pub_{},adv_{},https://shop-{}.example/products/{ad}?click={{click_id}}&utm_source=tally,active,gclid",
            ad % 4_000,
            ad % 900,
            ad % 900
        )?;
    }
    Ok(file.flush()?)
}

/// A port on loopback that nobody listens on.
fn free() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}
