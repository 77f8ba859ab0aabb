//! `tally up`: the whole system in one process.

use crate::config::Config;
use crate::demo::{Demo, Sent};
use crate::machine::Machine;
use crate::status::{Line, Shown, say};
use crate::verdicts::Verdicts;
use crate::{machine, sample};
use anyhow::{Context, Result, anyhow};
use click::{Clock, SystemClock};
use futures::future::BoxFuture;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How often segments past the retention are looked for.
const RETAIN_EVERY: Duration = Duration::from_secs(600);

/// The parts stop in the order of a click's way, so that what one has taken in the next still sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    StopRedirect,
    StopRunner,
    StopLoader,
    StopReports,
}

/// Runs everything until Ctrl-C or SIGTERM, or until a part fails.
pub fn up(config: Config, demo: bool) -> BoxFuture<'static, Result<()>> {
    Box::pin(run(config, demo))
}

async fn run(config: Config, demo: bool) -> Result<()> {
    config.check()?;
    let settings = Machine::redirect_settings(&config)?;
    let redirect_on = bind("redirect", config.redirect.listen).await?;
    let reporting_on = bind("reporting", config.reporting.listen).await?;
    let sample_on = bind("sample", config.sample.listen).await?;
    let addresses = [&redirect_on, &reporting_on, &sample_on].map(|listener| listener.local_addr());
    let [redirect_at, reporting_at, sample_at] = addresses;
    let (redirect_at, reporting_at) = (redirect_at?, reporting_at?);
    let mut config = config;
    config.sample.listen = sample_at?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let machine = Machine::open(&config, clock.clone()).await?;
    greet(&config, &machine, redirect_at, reporting_at);

    let service = machine.redirect(machine.log.clone(), clock.clone(), settings);
    let Machine { log, clicks, raw_clicks, runner, warehouse, loader, .. } = machine;
    let (stage, _) = watch::channel(Stage::Running);
    let reached = |wanted: Stage| {
        let mut stage = stage.subscribe();
        async move {
            // The sender lives until everything has stopped.
            let _ = stage.wait_for(|now| *now >= wanted).await;
        }
    };
    let (failed, mut failures) = mpsc::channel::<anyhow::Error>(8);
    let parts = Parts { failed };

    let stop = reached(Stage::StopRedirect);
    let redirecting = parts.spawn("redirect", async move {
        redirect::serve(redirect_on, service, stop).await;
        Ok(())
    });
    let demonstration = demo.then(|| {
        let demo = Demo { url: format!("http://{redirect_at}"), rate: 200, seed: 1 };
        parts.spawn("demo", demo.run(Arc::new(Sent::default()), reached(Stage::StopRedirect)))
    });

    let counters = runner.counters();
    let stop = reached(Stage::StopRunner);
    // Whole columns are worked on for milliseconds at a time: on a thread of its own this delays no answer.
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("runner".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(runner.run(stop)).map_err(anyhow::Error::from),
            Err(e) => Err(e.into()),
        };
        let _ = ended.send(result);
    })?;
    let running =
        parts.spawn("runner", async move { end.await.unwrap_or_else(|_| Err(anyhow!("its thread panicked"))) });
    let stop = reached(Stage::StopLoader);
    let loading = parts.spawn("loader", async move { Ok(loader.run(stop).await?) });

    let router = reporting::router(Arc::new(warehouse.clone()), clock.clone());
    let stop = reached(Stage::StopReports);
    let reporting = parts.spawn("reporting", async move { Ok(reporting::serve(reporting_on, router, stop).await?) });
    let verdicts = Arc::new(Verdicts::default());
    let pages = sample::router(verdicts.clone(), reporting_at);
    let stop = reached(Stage::StopReports);
    let sampling = parts.spawn("sample pages", async move { Ok(reporting::serve(sample_on, pages, stop).await?) });
    let (following, of) = (log.clone(), raw_clicks.clone());
    let stop = reached(Stage::StopReports);
    let follow = parts.spawn("verdicts", async move {
        tokio::select! {
            followed = verdicts.follow(&*following, &of) => {
                // Only the sample pages show them: no reason to stop.
                tracing::warn!(error = ?followed.err(), "the sample pages will not say what became of clicks");
            }
            () = stop => {}
        }
        Ok(())
    });
    let (kept, settings, through, time) = (log.clone(), config.clone(), warehouse.clone(), clock.clone());
    let stop = reached(Stage::StopReports);
    let retention = parts.spawn("retention", async move {
        let removing = async {
            loop {
                tokio::time::sleep(RETAIN_EVERY).await;
                let removed = machine::retain(&kept, &settings, time.now(), through.status().complete_through).await?;
                tracing::debug!(removed, "segments past the retention");
            }
        };
        tokio::select! { failed = removing => failed, () = stop => Ok(()) }
    });

    let mut shown = Shown::new();
    let mut every = tokio::time::interval(shown.interval());
    let mut stop = std::pin::pin!(told_to_stop());
    let failure = loop {
        tokio::select! {
            signal = &mut stop => break signal.err(),
            failure = failures.recv() => break failure,
            _ = every.tick() => {
                let status = warehouse.status();
                counters.complete_through.store(status.complete_through.get(), Ordering::Relaxed);
                let taken = counters.taken.load(Ordering::Relaxed);
                let lag = match Machine::lag(&log, &clicks, taken).await {
                    Ok(lag) => lag,
                    Err(failure) => break Some(failure),
                };
                shown.show(Line {
                    clicks: status.rows.saturating_sub(status.verdict("heartbeat")),
                    billable: status.verdict("billable") + status.verdict("late"),
                    duplicates: status.verdict("duplicate"),
                    lag,
                    complete_through: status.complete_through,
                    waiting: status.waiting,
                });
            }
        }
    };
    shown.end();
    if failure.is_none() {
        say("stopping; what was answered is safe (Ctrl-C again: at once)");
    }
    tokio::spawn(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    for (stop, handles) in [
        (Stage::StopRedirect, vec![Some(redirecting), demonstration]),
        (Stage::StopRunner, vec![Some(running)]),
        (Stage::StopLoader, vec![Some(loading)]),
        (Stage::StopReports, vec![Some(reporting), Some(sampling), Some(follow), Some(retention)]),
    ] {
        stage.send_replace(stop);
        for handle in handles.into_iter().flatten() {
            let _ = handle.await;
        }
    }
    // A part may have failed while the others stopped.
    match failure.or_else(|| failures.try_recv().ok()) {
        Some(failure) => Err(failure),
        None => {
            say("stopped");
            Ok(())
        }
    }
}

/// Tells the first part that fails.
struct Parts {
    failed: mpsc::Sender<anyhow::Error>,
}

impl Parts {
    fn spawn(&self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) -> JoinHandle<()> {
        let failed = self.failed.clone();
        tokio::spawn(async move {
            // A part that panics has failed as well: the others must not go on as if it were there.
            let ended = match tokio::spawn(part).await {
                Ok(result) => result,
                Err(panicked) => Err(panicked.into()),
            };
            if let Err(error) = ended {
                // With eight failures waiting the first is long known.
                let _ = failed.try_send(error.context(format!("{name} failed")));
            }
        })
    }
}

async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{what}: cannot listen on {address}"))
}

async fn told_to_stop() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

fn greet(config: &Config, machine: &Machine, redirect_at: SocketAddr, reporting_at: SocketAddr) {
    for repair in &machine.repairs {
        say(&format!("repaired: {repair}"));
    }
    let deployment = &machine.deployment;
    let (version, data) = (deployment.version, config.data.display());
    say(&format!("Tally is up. Data in {data}, pipeline version {version}."));
    if machine.clicks.partitions != config.partitions {
        let (held, asked) = (machine.clicks.partitions, config.partitions);
        say(&format!("The log has {held} partitions for its life; `partitions = {asked}` is for a new one."));
    }
    if deployment.new && version > 1 {
        say(&format!(
            "The pipelines, their functions or their settings changed: this is a new version. What is final stays as it \
             is; what was not final at {} is judged again, and what comes is judged, by the new rules.",
            machine.warehouse.status().complete_through
        ));
    }
    let day = &machine.clock.now().to_string()[..10];
    let impression = format!("imp_{}", uuid::Uuid::new_v4().simple());
    let sample =
        machine.sample_ad().map(|ad| format!("{impression}?ad_id={}&campaign_id={}", ad.ad_id, ad.campaign_id));
    say("");
    if let Some(sample) = sample {
        say(&format!("  a click    http://{redirect_at}/api/v1/click/{sample}"));
    }
    say(&format!("  a report   http://{reporting_at}/api/v1/reports/clicks?from={day}&to={day}&groupBy=minute,ad_id"));
    say(&format!("  dashboard  http://{reporting_at}/"));
    say("\nOpen the click in a browser. (curl says that it is curl, and is not billed: give it -A \"Mozilla/5.0 …\".)");
    say("`tally demo` in another terminal sends 200 clicks a second. Ctrl-C stops.\n");
}
