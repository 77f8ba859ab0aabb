//! `tally up`: the whole system in one process.

use crate::config::Config;
use crate::demo::{Demo, Sent};
use crate::machine::Machine;
use crate::status::{Line, Shown, say};
use crate::supervise::{PAUSES, Troubles, supervise};
use crate::verdicts::Verdicts;
use crate::{machine, sample};
use anyhow::{Result, anyhow};
use click::{Clock, SystemClock};
use futures::future::BoxFuture;
use runner::Runner;
use serving::{Limits, bind, process};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use warehouse::Loader;

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
    let (redirect_at, reporting_at) = (redirect_on.local_addr()?, reporting_on.local_addr()?);
    let mut config = config;
    // Only the sample catalog's pages are served here.
    let sample_on = match &config.catalog {
        Some(_) => None,
        None => {
            let sample_on = bind("sample", config.sample.listen).await?;
            config.sample.listen = sample_on.local_addr()?;
            Some(sample_on)
        }
    };

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let machine = Machine::open(&config, clock.clone()).await?;
    greet(&config, &machine, redirect_at, reporting_at);

    let spool = machine.spool(&config).await?;
    let service = machine.redirect(machine.log.clone(), clock.clone(), settings, Some(spool));
    let Machine { log, clicks, raw_clicks, counting, runner, warehouse, loader, .. } = machine;
    let (stage, _) = watch::channel(Stage::Running);
    let (failed, mut failures) = mpsc::channel::<anyhow::Error>(8);
    let parts = Parts { failed };

    let stop = reached(stage.subscribe(), Stage::StopRedirect);
    let redirecting = parts.spawn("redirect", async move {
        redirect::serve(redirect_on, service, stop).await;
        Ok(())
    });
    let demonstration = demo.then(|| {
        let demo = Demo { url: format!("http://{redirect_at}"), rate: 200, seed: 1 };
        parts.spawn("demo", demo.run(Arc::new(Sent::default()), reached(stage.subscribe(), Stage::StopRedirect)))
    });

    let troubles = Troubles::default();
    let counters = runner.counters();
    let (of, same, stop) = (counting.clone(), counters.clone(), stage.subscribe());
    let open_runner = move || {
        let (of, same) = (of.clone(), same.clone());
        async move { Ok(of.runner().await?.counting_in(same)) }
    };
    let run_runner = move |runner| on_a_thread(runner, reached(stop.clone(), Stage::StopRunner));
    let stopping = reached(stage.subscribe(), Stage::StopRunner);
    let running = parts.spawn(
        "runner",
        supervise("runner", troubles.clone(), PAUSES, Some(runner), open_runner, run_runner, stopping),
    );
    let stop = stage.subscribe();
    let open_loader = move || {
        let counting = counting.clone();
        async move { counting.loader().await }
    };
    let run_loader = move |loader: Loader| {
        let stop = reached(stop.clone(), Stage::StopLoader);
        async move { Ok(loader.run(stop).await?) }
    };
    let stopping = reached(stage.subscribe(), Stage::StopLoader);
    let loading = parts.spawn(
        "loader",
        supervise("loader", troubles.clone(), PAUSES, Some(loader), open_loader, run_loader, stopping),
    );

    let router = reporting::router(Arc::new(warehouse.clone()), clock.clone());
    let stop = reached(stage.subscribe(), Stage::StopReports);
    let reporting = parts.spawn("reporting", async move {
        serving::serve(reporting_on, router, Limits::default(), stop).await;
        Ok(())
    });
    let sampling = sample_on.map(|sample_on| {
        let (following, of, reached) = (log.clone(), raw_clicks, reached(stage.subscribe(), Stage::StopReports));
        parts.spawn("sample pages", async move {
            let verdicts = Arc::new(Verdicts::default());
            let pages = sample::router(verdicts.clone(), reporting_at);
            let following = async {
                let followed = verdicts.follow(&*following, &of).await;
                tracing::warn!(error = ?followed.err(), "the sample pages will not say what became of clicks");
                // They go on without.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = serving::serve(sample_on, pages, Limits::default(), reached) => {}
                () = following => {}
            }
            Ok(())
        })
    });
    let (kept, settings, needed, time) = (log.clone(), config.clone(), warehouse.clone(), clock.clone());
    let counting_now = counters.clone();
    let stop = reached(stage.subscribe(), Stage::StopReports);
    let retention = parts.spawn("retention", async move {
        let removing = async {
            loop {
                tokio::time::sleep(RETAIN_EVERY).await;
                let safe = counting_now.safe.lock().unwrap_or_else(PoisonError::into_inner).clone();
                match machine::retain(&kept, &settings, time.now(), &needed, &safe).await {
                    Ok(removed) => tracing::debug!(removed, "segments past the retention"),
                    // What is kept too long costs room, and no click.
                    Err(error) => tracing::error!(error = %format!("{error:#}"), "old segments were not removed"),
                }
            }
        };
        tokio::select! { () = removing => {}, () = stop => {} }
        Ok(())
    });

    let mut shown = Shown::new();
    let mut every = tokio::time::interval(shown.interval());
    let mut stop = std::pin::pin!(process::told_to_stop());
    let failure = loop {
        tokio::select! {
            signal = &mut stop => break signal.err().map(anyhow::Error::from),
            failure = failures.recv() => break failure,
            _ = every.tick() => {
                let status = warehouse.status();
                counters.complete_through.store(status.complete_through.get(), Ordering::Relaxed);
                // The log takes nothing more: only a new start, which looks at what is on disk, mends that.
                if let Some(stopped) = log.stopped() {
                    break Some(stopped.into());
                }
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
                    waiting: troubles.first().or(status.waiting),
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
        (Stage::StopReports, vec![Some(reporting), sampling, Some(retention)]),
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

/// Resolves when the stages have come to `wanted`.
async fn reached(mut stage: watch::Receiver<Stage>, wanted: Stage) {
    // The sender lives until everything has stopped: its end is a stop as well.
    let _ = stage.wait_for(|now| *now >= wanted).await;
}

/// Runs the runner on a thread of its own: whole columns are worked on for milliseconds at a time, and no answer is to
/// wait for that.
pub(crate) async fn on_a_thread(runner: Runner, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("runner".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(runner.run(stop)).map_err(anyhow::Error::from),
            Err(e) => Err(e.into()),
        };
        // Nobody waits only when the process ends.
        let _ = ended.send(result);
    })?;
    end.await.unwrap_or_else(|_| Err(anyhow!("its thread panicked")))
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
            "{}: this is a new version. What is final stays as it is; what was not final at {} is judged again, and what \
             comes is judged, by its rules.",
            match config.again {
                true => "Deployed again",
                false => "The pipelines, their functions or their settings changed",
            },
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
