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
use tally_log::Log;
use tally_log::kafka::KafkaLog;
use tally_log::local::{LocalLog, Settings as LocalSettings};
use tokio::sync::watch;

const AFTER_HELP: &str = "\
Every key of the file can also be set by a variable, which wins: TALLY_REDIRECT_LISTEN, and with two underscores for a key \
of a table TALLY_REDIRECT_KAFKA__BROKERS.";

/// Answers clicks on ads: a 302 to the ad's page, once the click is durable in the log.
#[derive(Parser)]
#[command(name = "tally-redirect", version, about, after_help = AFTER_HELP)]
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
    let settings = config.settings()?;
    let catalog = Reloaded::open(&config.catalog, "catalog", |path| Catalog::load(path))?;
    let keys = config.signatures.keys(config.spool.age_max, config.seen.horizon)?;
    let blocks = Blocks::follow(config.block_rules.as_deref())?;
    let countries = Countries::follow(config.countries.as_deref())?;
    let secret = Secret::new(config.ip_hash_key.as_bytes()).context("ip_hash_key")?;
    let listener = bind("redirect", config.listen).await?;
    let operators = bind("admin", config.admin_listen).await?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut metrics = Metrics::default();
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
    let of = service.clone();
    let ready: admin::Ready = Arc::new(move || of.ready());
    let admin = admin::router(metrics, ready);
    let admin = tokio::spawn(serving::serve(operators, admin, Limits::default(), until(stopped.clone())));
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, topic = config.topic, "answering clicks");
    let serving = redirect::serve(listener, service, until(stopped));
    let told = async {
        let told = process::told_to_stop().await;
        tracing::info!("stopping");
        drop(stop);
        told
    };
    let ((), told) = tokio::join!(serving, told);
    // It ended with the same stop.
    admin.await.map_err(|error| anyhow!("the admin port: {error}"))?;
    tracing::info!("stopped");
    Ok(told?)
}
