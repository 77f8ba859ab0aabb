//! The status line: in place on a terminal, plain lines elsewhere.

use click::Millis;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// What the line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// All clicks that were judged since the start, and those of minutes that were open then; the next two as well.
    pub clicks: u64,
    pub billable: u64,
    pub duplicates: u64,
    /// Records that the pipeline has not judged yet.
    pub lag: u64,
    pub complete_through: Millis,
    /// Why minutes do not close, if they do not.
    pub waiting: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [clicks, billable, duplicates, lag] =
            [self.clicks, self.billable, self.duplicates, self.lag].map(thousands);
        let through = self.complete_through.to_string();
        let through = through.get(..16).unwrap_or(&through).replace('T', " ");
        write!(
            f,
            "clicks {clicks} · billable {billable} · duplicates {duplicates} · lag {lag} · complete through {through} UTC"
        )?;
        match &self.waiting {
            Some(reason) => write!(f, " · waiting: {reason}"),
            None => Ok(()),
        }
    }
}

/// Prints a line. Who reads it may be gone: that must neither stop the system nor spoil its stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// 1234567 as `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Shows the line.
pub struct Shown {
    terminal: bool,
    last: Option<(Line, Instant)>,
}

impl Shown {
    /// How often a line is written that cannot be updated in place, when it has not changed.
    const PLAIN_EVERY: Duration = Duration::from_secs(60);
    const PLAIN_CHANGED_EVERY: Duration = Duration::from_secs(5);

    pub fn new() -> Self {
        Shown { terminal: std::io::stdout().is_terminal(), last: None }
    }

    /// How often it is worth being asked.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 250 } else { 1000 })
    }

    pub fn show(&mut self, line: Line) {
        let due = match &self.last {
            None => true,
            Some((last, at)) if self.terminal => *last != line || at.elapsed() > Duration::from_secs(1),
            Some((last, at)) if *last == line => at.elapsed() > Self::PLAIN_EVERY,
            Some((_, at)) => at.elapsed() > Self::PLAIN_CHANGED_EVERY,
        };
        if !due {
            return;
        }
        let mut out = std::io::stdout().lock();
        // A closed pipe must not stop the system: who reads the line does not matter to the clicks.
        let _ = match self.terminal {
            // Without wrapping: a line that is too long for the terminal is cut, and stays one line.
            true => write!(out, "\r\x1b[2K\x1b[?7l{line}\x1b[?7h").and_then(|()| out.flush()),
            false => writeln!(out, "{} {line}", click::Clock::now(&click::SystemClock)),
        };
        self.last = Some((line, Instant::now()));
    }

    /// Leaves the line standing.
    pub fn end(&self) {
        if self.terminal {
            say("");
        }
    }
}

impl Default for Shown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_readable() {
        let mut line = Line {
            clicks: 1_234_567,
            billable: 999,
            duplicates: 1_000,
            lag: 0,
            complete_through: "2026-04-20T12:00:00Z".parse().unwrap(),
            waiting: None,
        };
        let expected =
            "clicks 1,234,567 · billable 999 · duplicates 1,000 · lag 0 · complete through 2026-04-20 12:00 UTC";
        assert_eq!(line.to_string(), expected);
        line.waiting = Some("x".into());
        assert_eq!(line.to_string(), format!("{expected} · waiting: x"));
    }
}
