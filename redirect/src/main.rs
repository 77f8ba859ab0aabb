//! `tally-redirect`: the redirect alone, any number of it, on one Kafka or each on a log of its own.

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use click::{Clock, SystemClock};
use redirect::block::Blocks;
use redirect::config::{Config, Store};
use redirect::country::Countries;
use redirect::reload::Reloaded;
use redirect::spool::Spool;
use redirect::{Catalog, Secret, SeenBefore, SeenInMemory, SeenInRedis, Service, With, metrics};
use serving::metrics::Metrics;
use serving::{Limits, admin, bind, config, process};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally_log::Log;
use tally_log::kafka::KafkaLog;
use tally_log::local::{LocalLog, Settings as LocalSettings};
use tokio::sync::watch;

const AFTER_HELP: &str = "\
Every key of the file can also be set by a variable, which wins: TALLY_REDIRECT_LISTEN, and with two underscores for a key \
of a table TALLY_REDIRECT_KAFKA__BROKERS.";

/// Connections of operators at once: they are few, and take from the same open files as the public's.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// How often it is looked whether the local log still takes clicks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Answers clicks on ads: a 302 to the ad's page, once the click is durable in the log.
#[derive(Parser)]
#[command(name = "tally-redirect", version, about, after_help = format!("{AFTER_HELP}\n\n{}", process::LOGGING))]
struct Cli {
    /// Configuration file; docker/redirect.toml in the repository says every key and its default
    #[arg(long, env = "TALLY_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match process::log_to_stderr("info").map_err(anyhow::Error::msg).and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tally-redirect: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> Result<()> {
    let config: Config = config::read(cli.config.as_deref(), "TALLY_REDIRECT_", std::env::vars())?;
    let mut settings = config.settings()?;
    settings.connections_max = serving::connections_max(config.connections_max);
    if settings.connections_max < config.connections_max {
        let (asked, allowed) = (config.connections_max, settings.connections_max);
        tracing::warn!(asked, allowed, "the limit on open files (ulimit -n) leaves room for fewer connections");
    }
    let catalog = Reloaded::open(&config.catalog, "catalog", |path| Catalog::load(path))?;
    let keys = config.keys()?;
    let blocks = Blocks::follow(config.block_rules.as_deref())?;
    let countries = Countries::follow(config.countries.as_deref())?;
    let secret = Secret::new(config.ip_hash_key.as_bytes()).context("ip_hash_key")?;
    let listener = bind("redirect", config.listen).await?;
    let operators = bind("admin", config.admin_listen).await?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut metrics = Metrics::default();
    let mut local = None;
    let log: Arc<dyn Log> = match &config.log {
        Store::Kafka => {
            if config.kafka.single_node {
                tracing::warn!("single_node: one broker that is lost takes answered clicks with it");
            }
            let log = Arc::new(KafkaLog::new(config.kafka.clone())?);
            metrics::kafka(&mut metrics, log.clone());
            log
        }
        Store::Local { dir } => {
            let settings =
                LocalSettings { partitions_on_demand: Some(config.kafka.partitions), ..LocalSettings::default() };
            let (log, repairs) = LocalLog::open(dir, settings, clock.clone())?;
            for repair in repairs {
                tracing::warn!(%repair, "repaired");
            }
            let log = Arc::new(log);
            metrics::local(&mut metrics, log.clone(), log.topic(&config.topic).await?);
            local = Some(log.clone());
            log
        }
    };
    let topic = log.topic(&config.topic).await.context("the log")?;
    let seen: Arc<dyn SeenBefore> = match config.redis_settings() {
        Some(settings) => Arc::new(SeenInRedis::start(settings).context("seen.url")?),
        None => Arc::new(SeenInMemory::new(config.seen.horizon, SeenInMemory::ENTRIES_MAX)),
    };
    let spool = Spool::open(config.spool.clone(), topic.partitions, clock.clone()).await.context("spool.dir")?;
    let with = With { secret, seen, keys, blocks, countries, spool: Some(spool) };
    let service = Service::new(log, topic, catalog, clock, settings, with);
    metrics::redirect(&mut metrics, &service);

    let (stop, stopped) = watch::channel(());
    let until = |mut stopped: watch::Receiver<()>| async move {
        // The sender is dropped to stop.
        while stopped.changed().await.is_ok() {}
    };
    let mut over = std::pin::pin!(over(local, service.clone(), config.spool.age_max / 2));
    let of = service.clone();
    let ready = admin::known(move || of.ready());
    let of = service.clone();
    let admin = admin::router_with(metrics, ready, Arc::new(move || of.details()));
    let limits = Limits { connections_max: ADMIN_CONNECTIONS_MAX, ..Limits::default() };
    let admin = tokio::spawn(serving::serve(operators, admin, limits, until(stopped.clone())));
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, topic = config.topic, "answering clicks");
    let serving = redirect::serve(listener, service, until(stopped));
    let told = async {
        let told = tokio::select! {
            told = process::told_to_stop() => told.map_err(anyhow::Error::from),
            stopped = &mut over => Err(stopped),
        };
        tracing::info!("stopping");
        drop(stop);
        told
    };
    let ((), told) = tokio::join!(serving, told);
    // It ended with the same stop.
    admin.await.map_err(|error| anyhow!("the admin port: {error}"))?;
    tracing::info!("stopped");
    told
}

/// Resolves when the process must begin anew: its local log takes nothing more, which only a start mends, since that looks at
/// what is on disk, and the spool is no help either.
///
/// While the spool takes clicks they are recorded and answered, and a start would risk that: on a disk that is full or gone it
/// fails, and then nobody answers. But what waits there too long is kept aside and takes a person to send, so a start is
/// tried when half of that time is over.
async fn over(log: Option<Arc<LocalLog>>, service: Service, wait: Duration) -> anyhow::Error {
    let Some(log) = log else { return std::future::pending().await };
    let mut since = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(stopped) = log.stopped() else { continue };
        let since = *since.get_or_insert_with(|| {
            tracing::error!(%stopped, "only a restart mends the log; clicks go to the spool");
            Instant::now()
        });
        let oldest_ms = service.spool().map_or(0, |spool| spool.oldest_ms);
        let waited = since.elapsed().max(Duration::from_millis(u64::try_from(oldest_ms).unwrap_or(0)));
        match service.ready() {
            Ok(()) if waited < wait => {}
            Ok(()) => return anyhow!("{stopped}; clicks have waited for it in the spool"),
            Err(why) => return anyhow!("{stopped}; nor does the spool take clicks: {why}"),
        }
    }
}
