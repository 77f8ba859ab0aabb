//! The command line.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tally::bench::{PipelineBench, cluster::ClusterBench, redirect::RedirectBench};
use tally::cluster::{self, deploy::Asked};
use tally::config::Config;
use tally::demo::{Demo, Sent};
use tally::site::{Site, SiteArgs};
use tally::status::say;

/// Counts ad clicks that can be billed: every billable click that was answered with a 302, exactly once.
#[derive(Parser)]
#[command(version, about, after_help = serving::process::LOGGING)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: redirect, log, pipelines, warehouse, reports and dashboard
    Up(Up),
    /// Send a believable stream of clicks to a running redirect
    Demo(DemoArgs),
    /// Run the pipelines over Kafka, on this machine
    Run(RunArgs),
    /// Read the rows of the pipelines and close minutes, in ClickHouse
    Load(LoadArgs),
    /// Make the topics in Kafka, or check them
    Topics(Cluster),
    /// Deploy the pipelines to Arroyo
    Deploy(DeployArgs),
    /// The claims of the pipelines on Arroyo, which lie in Redis
    Claims {
        #[command(subcommand)]
        what: ClaimsCommand,
    },
    /// Check the pipeline files without running anything
    Check(Check),
    /// Print a signed click URL
    SignUrl(tally::sign_url::SignUrl),
    /// Show the clicks that a redirect keeps aside, or send those that were not counted
    Spool(SpoolArgs),
    /// Close minutes that cannot agree, or that an engine cannot pass, by recounting them from the log
    ///
    /// For when the log lines or the status say why no minute closes, and waiting does not help: an engine that skipped a
    /// record, or whose counts are not those of its rows. The loader must not be running: on one machine `tally up`, on a
    /// cluster `tally load`. The minutes are marked in the warehouse: their entry in `closings` is of kind `repair`.
    Repair(tally::repair::RepairArgs),
    /// Show by seeded runs, with every fault, that each click that was answered is counted exactly once
    Prove(tally::prove::Prove),
    /// The process that `tally prove` lets die
    #[command(hide = true)]
    ProveSite(tally::prove::SiteArgs),
    /// Measure a part on this machine
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Args)]
struct Up {
    /// Configuration file; `tally.toml` in the repository says every key and its default
    #[arg(long, env = "TALLY_CONFIG")]
    config: Option<PathBuf>,
    /// Folder where everything is kept [default: data]
    #[arg(long, env = "TALLY_DATA")]
    data: Option<PathBuf>,
    /// Folder of the pipeline files [default: pipelines]
    #[arg(long, env = "TALLY_PIPELINES")]
    pipelines: Option<PathBuf>,
    /// The ads, CSV [default: a sample catalog]
    #[arg(long, env = "TALLY_CATALOG")]
    catalog: Option<PathBuf>,
    /// How late after its minute a click may come, e.g. 5m, 3s [default: 5m]
    #[arg(long, value_parser = humantime::parse_duration)]
    lateness: Option<Duration>,
    /// How much clocks may differ; a minute is final lateness + slack after its end [default: 30s]
    #[arg(long, value_parser = humantime::parse_duration)]
    slack: Option<Duration>,
    /// Address of the redirect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    redirect: Option<SocketAddr>,
    /// Address of reports and dashboard [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    reporting: Option<SocketAddr>,
    /// Address of the sample catalog's landing pages [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDRESS")]
    sample: Option<SocketAddr>,
    /// Deploy the pipelines also if nothing has changed: what is not final is judged again from the log
    #[arg(long)]
    again: bool,
    /// Send 200 clicks a second to itself, as `tally demo` does
    #[arg(long)]
    demo: bool,
}

impl Up {
    fn config(&self) -> Result<Config> {
        let mut config = self.config.as_deref().map_or(Ok(Config::default()), Config::read)?;
        let Up { data, pipelines, catalog, lateness, slack, redirect, reporting, sample, .. } = self;
        config.again = self.again;
        config.data = data.clone().unwrap_or(config.data);
        config.pipelines = pipelines.clone().unwrap_or(config.pipelines);
        config.catalog = catalog.clone().or(config.catalog);
        config.lateness = lateness.unwrap_or(config.lateness);
        config.slack = slack.unwrap_or(config.slack);
        config.redirect.listen = redirect.unwrap_or(config.redirect.listen);
        config.reporting.listen = reporting.unwrap_or(config.reporting.listen);
        config.sample.listen = sample.unwrap_or(config.sample.listen);
        Ok(config)
    }
}

/// What all processes of a cluster take.
#[derive(Args)]
#[command(after_help = format!("{CLUSTER_HELP}\n\n{}", serving::process::LOGGING))]
struct Cluster {
    /// Configuration file; docker/cluster.toml in the repository says every key and its default
    #[arg(long, env = "TALLY_CONFIG")]
    config: Option<PathBuf>,
}

const CLUSTER_HELP: &str = "\
Every key of the file can also be set by a variable, which wins: TALLY_CLUSTER_LATENESS, and with two underscores for a key \
of a table TALLY_CLUSTER_KAFKA__BROKERS.";

impl Cluster {
    fn config(&self) -> Result<cluster::config::Config> {
        let config: cluster::config::Config =
            serving::config::read(self.config.as_deref(), cluster::config::PREFIX, std::env::vars())?;
        config.check()?;
        Ok(config)
    }
}

#[derive(Args)]
struct LoadArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Make the tables in ClickHouse, or bring them up to date, and end
    #[arg(long)]
    migrate: bool,
}

#[derive(Args)]
struct DeployArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Deploy also if nothing has changed: for an engine that lost its way, or result topics that were not read in time. A
    /// repair or closing that began and stands in the way is given up
    #[arg(long)]
    again: bool,
    /// Show the steps and take none
    #[arg(long)]
    dry_run: bool,
    /// Show how the pipelines are doing; fails if they do not work
    #[arg(long, conflicts_with_all = ["again", "dry_run"])]
    status: bool,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Deploy the pipelines at this start also if nothing has changed: what is not final is judged again from the log
    #[arg(long)]
    again: bool,
}

#[derive(Subcommand)]
enum ClaimsCommand {
    /// Make claims again that Redis lost
    ///
    /// For when Redis was flushed or failed over to an older copy, or the engine skipped records. `claim_click` waits
    /// then, and says in Arroyo's log that claims are missing and that this restores them; nothing is billed meanwhile
    /// and no minute closes. Claims before the newest version's start come from final rows in ClickHouse, those from
    /// there on from the log, to its end of this moment. What is there stays, so it can be run again after it failed. The
    /// pipelines need not be stopped: they go on by themselves.
    Rebuild(Cluster),
}

#[derive(Args)]
struct DemoArgs {
    /// Where the redirect is
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Clicks a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Stop after this time, e.g. 30s [default: on Ctrl-C]
    #[arg(long, value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// The same seed makes the same stream
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct SpoolArgs {
    /// Folder of the spool [default: data/spool]
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<SpoolCommand>,
}

#[derive(Subcommand)]
enum SpoolCommand {
    /// Look each click up, and send those that were not counted: they become corrections
    Send {
        /// Folder of the spool [default: the one in the data folder]
        #[arg(long)]
        dir: Option<PathBuf>,
        #[command(flatten)]
        site: SiteArgs,
    },
}

#[derive(Args)]
struct Check {
    /// Configuration file: its lateness and slack are filled in
    #[arg(long, env = "TALLY_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the pipeline files [default: pipelines]
    #[arg(long, env = "TALLY_PIPELINES")]
    pipelines: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Bench {
    /// The pipelines over a log of clicks: JSON in, claims, minute windows, JSON out, all durable
    Pipeline(PipelineBench),
    /// Clicks a second that the redirect answers, each durable, beside nginx that answers a fixed 302
    Redirect(RedirectBench),
    /// Clicks at a fixed rate through redirects that run, and how long they take to the reports
    Cluster(ClusterBench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Processes of a cluster have no status line: their log lines say what they do.
    let level = match cli.command {
        Command::Run(_) | Command::Load(_) | Command::Claims { .. } => "info",
        _ => "warn",
    };
    match serving::process::log_to_stderr(level).map_err(anyhow::Error::msg).and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tally: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the async runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(up) => tally::up::up(up.config()?, up.demo).await,
            Command::Demo(args) => demo(args).await,
            Command::Run(args) => cluster::run::run(args.cluster.config()?, args.again).await,
            Command::Load(args) if args.migrate => {
                let applied = cluster::load::migrate(&args.cluster.config()?).await?;
                say(&format!("{applied} migrations were applied; the tables are up to date"));
                Ok(())
            }
            Command::Load(args) => cluster::load::load(args.cluster.config()?).await,
            Command::Topics(args) => cluster::topics::topics(&args.config()?).await,
            Command::Deploy(args) => {
                let asked = match args {
                    DeployArgs { status: true, .. } => Asked::Status,
                    DeployArgs { dry_run: true, again, .. } => Asked::DryRun { again },
                    DeployArgs { again: true, .. } => Asked::Again,
                    _ => Asked::Deploy,
                };
                cluster::deploy::deploy(&args.cluster.config()?, asked).await
            }
            Command::Claims { what: ClaimsCommand::Rebuild(args) } => cluster::claims::rebuild(&args.config()?).await,
            Command::Check(check) => {
                let config = check.config.as_deref().map_or(Ok(Config::default()), Config::read)?;
                let folder = check.pipelines.unwrap_or(config.pipelines.clone());
                let (files, lateness) = (runner::PipelineFiles::read(&folder)?, config.lateness());
                runner::check(&files, lateness).await?;
                deploy::check(&files, &deploy::sources(), lateness)?;
                say(&format!("{}: every file can be run", folder.display()));
                Ok(())
            }
            Command::SignUrl(args) => {
                say(&args.signed()?);
                Ok(())
            }
            Command::Spool(args) => spool(args).await,
            Command::Repair(args) => tally::repair::repair(args).await,
            Command::Prove(prove) => prove.run().await,
            Command::ProveSite(args) => tally::prove::serve(args).await,
            Command::Bench { what: Bench::Pipeline(bench) } => bench.run().await,
            Command::Bench { what: Bench::Redirect(bench) } => bench.run().await,
            Command::Bench { what: Bench::Cluster(bench) } => bench.run().await,
        }
    })
}

async fn spool(args: SpoolArgs) -> Result<()> {
    let default = PathBuf::from("data/spool");
    match args.command {
        None => tally::spool::list(&tally::spool::folder(args.dir, default)?),
        Some(SpoolCommand::Send { dir, site }) => {
            let site = site.site()?;
            let default = match &site {
                Site::Machine(config) => config.data.join("spool"),
                Site::Cluster(_) => default,
            };
            tally::spool::send(&tally::spool::folder(dir, default)?, site).await
        }
    }
}

async fn demo(args: DemoArgs) -> Result<()> {
    let sent = Arc::new(Sent::default());
    say(&format!("sending {} clicks a second to {}; Ctrl-C stops", args.rate, args.url));
    let demo = Demo { url: args.url.trim_end_matches('/').to_string(), rate: args.rate, seed: args.seed };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(demo.run(sent.clone(), async move {
        // Gone or told: both mean stop.
        let _ = stopped.await;
    }));
    let deadline = async {
        match args.time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let mut deadline = std::pin::pin!(deadline);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut every = tokio::time::interval(Duration::from_secs(5));
    every.tick().await;
    loop {
        tokio::select! {
            () = &mut deadline => break,
            _ = &mut interrupted => break,
            _ = every.tick() => say(&told(&sent)),
        }
    }
    drop(stop);
    running.await??;
    say(&told(&sent));
    let nothing = sent.redirected.load(Ordering::Relaxed) == 0 && sent.failed.load(Ordering::Relaxed) > 0;
    anyhow::ensure!(!nothing, "no click was answered with a 302: {}", sent.first_failure());
    Ok(())
}

fn told(sent: &Sent) -> String {
    let [redirected, prefetches, failed] =
        [&sent.redirected, &sent.prefetches, &sent.failed].map(|counter| counter.load(Ordering::Relaxed));
    format!("redirected {redirected}, prefetches {prefetches}, failed {failed}")
}
