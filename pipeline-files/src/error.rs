//! An error at a place, for the person who can mend it.

use std::fmt;

/// A pipeline file, or that of a function it calls, that cannot be run: where, what stands there, and what to write
/// instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    pub file: String,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// The line itself, as it was run: with every `${NAME}` filled in.
    pub text: String,
    pub reason: String,
}

impl std::error::Error for SqlError {}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SqlError { file, line, column, text, reason } = self;
        let margin = " ".repeat(line.to_string().len());
        let caret = " ".repeat(column.saturating_sub(1) as usize);
        writeln!(f, "{file}:{line}:{column}: {reason}")?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {text}")?;
        write!(f, "{margin} | {caret}^")
    }
}
