//! What every process does at its start and its stop.

use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// What `--help` says of log lines.
pub const LOGGING: &str = "\
TALLY_LOG sets what is logged to standard error: error, warn, info, debug, trace, or by part, e.g. \
`info,warehouse=debug`. TALLY_LOG_FORMAT is text (the default) or json.";

/// Log lines on standard error, as the environment asks for, or from `level` on.
///
/// # Errors
///
/// A variable that means nothing, with what is allowed.
pub fn log_to_stderr(level: &str) -> Result<(), String> {
    let refused = |name: &str, given: &str, why: String| format!("{name} is {given:?}: {why}. {LOGGING}");
    let filter = match std::env::var("TALLY_LOG") {
        Ok(given) => EnvFilter::try_new(&given).map_err(|why| refused("TALLY_LOG", &given, why.to_string()))?,
        Err(_) => EnvFilter::new(level),
    };
    let format = std::env::var("TALLY_LOG_FORMAT").unwrap_or_else(|_| "text".into());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format.as_str() {
        "text" => lines.with_ansi(io::stderr().is_terminal()).init(),
        "json" => lines.json().flatten_event(true).init(),
        other => return Err(refused("TALLY_LOG_FORMAT", other, "there is no such format".into())),
    }
    Ok(())
}

/// Resolves when the process is told to stop: SIGTERM, or Ctrl-C.
pub async fn told_to_stop() -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}
