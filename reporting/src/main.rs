//! `tally-reporting`: reports and dashboard alone, any number of it, on one ClickHouse.

use anyhow::{Result, anyhow};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use clap::Parser;
use click::{Clock, SystemClock};
use reporting::config::Config;
use serving::metrics::Metrics;
use serving::{Limits, admin, bind, config, process};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::watch;
use warehouse::clickhouse::ClickHouseReports;

const AFTER_HELP: &str = "\
Every key of the file can also be set by a variable, which wins: TALLY_REPORTING_LISTEN, and with two underscores for a key \
of a table TALLY_REPORTING_CLICKHOUSE__URL.";

/// Answers reports over HTTP, and serves the dashboard that reads them.
#[derive(Parser)]
#[command(name = "tally-reporting", version, about, after_help = format!("{AFTER_HELP}\n\n{}", process::LOGGING))]
struct Cli {
    /// Configuration file; docker/reporting.toml in the repository says every key and its default
    #[arg(long, env = "TALLY_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match process::log_to_stderr("info").map_err(anyhow::Error::msg).and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tally-reporting: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> Result<()> {
    let config: Config = config::read(cli.config.as_deref(), "TALLY_REPORTING_", std::env::vars())?;
    let listener = bind("reports", config.listen).await?;
    let operators = bind("admin", config.admin_listen).await?;
    let reports = Arc::new(ClickHouseReports::open(&config.clickhouse.server()).await?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);

    let mut metrics = Metrics::default();
    let seconds = metrics.seconds("tally_reporting_answer_seconds", "Time from a request to its answer");
    let refused = Arc::new(AtomicU64::new(0));
    let of = refused.clone();
    metrics.read(move |scrape| {
        let refused = of.load(Ordering::Relaxed);
        scrape.counter("tally_reporting_refused", "Requests that were answered with an error", refused)
    });
    let measured = from_fn(move |request: Request, next: Next| {
        let (seconds, refused) = (seconds.clone(), refused.clone());
        async move {
            let began = Instant::now();
            let answer = next.run(request).await;
            seconds.observe(began.elapsed().as_secs_f64());
            if answer.status().is_client_error() || answer.status().is_server_error() {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            answer
        }
    });
    let (of_reports, of_clock) = (reports.clone(), clock.clone());
    let router = reporting::router(reports, clock).layer(measured);

    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // The sender is there as long as the process is to run.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let ready: admin::Ready = Arc::new(move || {
        let (reports, clock) = (of_reports.clone(), of_clock.clone());
        Box::pin(async move { reporting::ready(&*reports, &*clock).await.map(|_| ()) })
    });
    let admin = admin::router(metrics, ready);
    let admin = tokio::spawn(serving::serve(operators, admin, Limits::default(), until(stopped.clone())));
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, "answering reports");
    let told = async {
        let told = process::told_to_stop().await;
        tracing::info!("stopping");
        stop.send_replace(true);
        told
    };
    let (_, told) = tokio::join!(serving::serve(listener, router, Limits::default(), until(stopped)), told);
    // It ended with the same stop.
    admin.await.map_err(|error| anyhow!("the admin port: {error}"))?;
    tracing::info!("stopped");
    Ok(told?)
}
