//! Which records are on time.

use crate::Millis;

/// How late a record may be, and how much the clocks of the log's brokers may differ. A record is on time when it
/// was clicked at most `lateness` before it was appended; the watermark stays `lateness + slack` behind append time,
/// so that no on-time record is ever behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lateness {
    pub lateness_ms: i64,
    pub slack_ms: i64,
}

impl Lateness {
    /// Five minutes, and thirty seconds for the clocks.
    pub const DEFAULT: Lateness = Lateness { lateness_ms: 300_000, slack_ms: 30_000 };

    /// How far the watermark stays behind append time, in milliseconds.
    pub fn delay_ms(self) -> i64 {
        self.lateness_ms + self.slack_ms
    }

    /// The watermark after a record that was appended then.
    pub fn watermark(self, appended_at: Millis) -> Millis {
        appended_at.plus(-self.delay_ms())
    }
}

impl Default for Lateness {
    fn default() -> Self {
        Self::DEFAULT
    }
}
