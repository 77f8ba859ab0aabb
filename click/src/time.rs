//! Instants and minutes.

use crate::Invalid;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An instant in milliseconds since the Unix epoch, between the years 1678 and 2262, so that it fits the engines'
/// nanosecond timestamps. Written as `2026-04-20T12:00:00.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(i64);

impl Millis {
    /// The last instant that an `i64` of nanoseconds can hold, in milliseconds.
    const MAX: i64 = i64::MAX / 1_000_000;

    /// Clamps to what nanosecond timestamps can hold.
    pub fn new(ms: i64) -> Self {
        Millis(ms.clamp(-Self::MAX, Self::MAX))
    }

    pub fn get(self) -> i64 {
        self.0
    }

    /// This instant moved by `ms` milliseconds, which may be negative.
    pub fn plus(self, ms: i64) -> Self {
        Millis::new(self.0.saturating_add(ms))
    }

    /// The minute that contains this instant.
    pub fn minute(self) -> Minute {
        Minute(self.0.div_euclid(Minute::MS))
    }

    fn date_time(self) -> DateTime<Utc> {
        // The range of `Millis` is well inside the range of `DateTime`.
        DateTime::from_timestamp_millis(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.date_time().to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl FromStr for Millis {
    type Err = Invalid;

    /// Reads RFC 3339 with any offset, and the engines' form without a zone (`2026-04-20T12:00:00`), which is UTC.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("time", text, "RFC 3339, e.g. 2026-04-20T12:00:00Z, between 1678 and 2262");
        let ms = DateTime::parse_from_rfc3339(text)
            .map(|t| t.timestamp_millis())
            .or_else(|_| chrono::NaiveDateTime::from_str(text).map(|t| t.and_utc().timestamp_millis()))
            .map_err(|_| invalid())?;
        if ms.abs() > Self::MAX { Err(invalid()) } else { Ok(Millis(ms)) }
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A minute of UTC, the tumbling window that is billed. Counted from the Unix epoch, written as its start:
/// `2026-04-20T12:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(i64);

impl Minute {
    pub const MS: i64 = 60_000;

    /// The minute with this number since the Unix epoch.
    pub fn from_number(number: i64) -> Self {
        Minute(number.clamp(-Millis::MAX / Self::MS, Millis::MAX / Self::MS))
    }

    pub fn number(self) -> i64 {
        self.0
    }

    /// The first instant of the minute.
    pub fn start(self) -> Millis {
        Millis(self.0 * Self::MS)
    }

    /// The first instant after the minute.
    pub fn end(self) -> Millis {
        Millis::new((self.0 + 1) * Self::MS)
    }

    pub fn next(self) -> Minute {
        Minute::from_number(self.0 + 1)
    }
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.start().date_time().to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

impl Serialize for Minute {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Minute {
    /// Reads any instant that starts a minute.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let at = Millis::deserialize(from)?;
        if at.minute().start() == at {
            Ok(at.minute())
        } else {
            Err(serde::de::Error::custom(Invalid::new("minute", &at.to_string(), "the start of a minute")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_and_written() {
        let check = |text: &str, expected: &str| assert_eq!(text.parse::<Millis>().unwrap().to_string(), expected);
        check("2026-04-20T12:00:00.123Z", "2026-04-20T12:00:00.123Z");
        check("2026-04-20T14:00:00+02:00", "2026-04-20T12:00:00.000Z");
        check("2026-04-20T12:00:00", "2026-04-20T12:00:00.000Z");
        check("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z");
        for wrong in ["", "today", "2026-13-01T00:00:00Z", "9999-01-01T00:00:00Z", "2026-04-20"] {
            assert!(wrong.parse::<Millis>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_minute_is_half_open() {
        let noon: Millis = "2026-04-20T12:00:00Z".parse().unwrap();
        assert_eq!(noon.minute().to_string(), "2026-04-20T12:00:00Z");
        assert_eq!(noon.plus(59_999).minute(), noon.minute());
        assert_eq!(noon.plus(60_000).minute(), noon.minute().next());
        assert_eq!(noon.plus(-1).minute().end(), noon);
        assert_eq!(Millis::new(-1).minute().start(), Millis::new(-60_000));
    }
}
