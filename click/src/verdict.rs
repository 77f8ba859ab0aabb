//! What the pipeline said of a record.

/// One verdict a record. What else a pipeline writes (a bot rule's reason, `prefetch`, `malformed`, …) is a reason
/// not to bill, and the analyst's to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The first claim of its impression, on time: counted in its minute.
    Billable,
    /// The first claim of its impression, but after the allowed lateness: a correction of its minute.
    Late,
    /// No answer about its claim: its minute must not close.
    Undecided,
    /// Anything else, never billed.
    NotBilled,
}

impl Verdict {
    pub fn of(text: &str) -> Verdict {
        match text {
            "billable" => Verdict::Billable,
            "late" => Verdict::Late,
            "undecided" => Verdict::Undecided,
            _ => Verdict::NotBilled,
        }
    }
}
