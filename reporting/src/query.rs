//! What the parameters of a report mean.
//!
//! Nothing is guessed and nothing ignored: a misspelt filter that let everything through would be a wrong number that
//! looks right.

use crate::columns::{DIMENSIONS, TIME_UNITS, parameter, unit_name};
use crate::problem::BadParameter;
use chrono::{DateTime, NaiveDate, Timelike};
use click::{AdId, CampaignId, Country, Millis, PublisherId};
use std::collections::BTreeMap;
use std::str::FromStr;
use warehouse::report::{Dimension, Order, ReportQuery, TimeUnit};

/// The parameters that are given at most once.
const SINGLE: [&str; 5] = ["from", "to", "groupBy", "orderBy", "limit"];

/// Rows of an answer when the caller does not say.
const LIMIT_DEFAULT: usize = 10_000;
/// Most rows of an answer: about 10 MB of JSON, which is made in memory.
const LIMIT_MAX: usize = 100_000;
/// Longest range: a year and a month, so that a year can be compared with its beginning. It bounds the minutes that
/// a report has to go through.
const RANGE_DAYS_MAX: i64 = 400;
/// Most values of all filters together.
const FILTER_VALUES_MAX: usize = 1_000;
/// Longest device in bytes. Devices are named by the pipelines, so any name of a sensible length may be one.
const DEVICE_BYTES_MAX: usize = 128;

const DAY_MS: i64 = 86_400_000;
const INSTANT_ALLOWED: &str = "a date (2026-04-20) or an RFC 3339 time of a whole minute with its offset \
     (2026-04-20T12:00:00Z; a + in a URL is written %2B), between the years 1678 and 2262";

/// Reads the parameters of a URL, decoded, in their order. A range that is not given is the day of `now`.
pub fn parse(pairs: &[(String, String)], now: Millis) -> Result<ReportQuery, BadParameter> {
    let mut single: BTreeMap<&str, &str> = BTreeMap::new();
    let mut filters: BTreeMap<Dimension, Vec<String>> = BTreeMap::new();
    let mut values = 0;
    for (name, value) in pairs {
        if let Some(name) = SINGLE.iter().find(|known| *known == name) {
            if single.insert(name, value).is_some() {
                return Err(BadParameter::value(name, value, "given at most once"));
            }
        } else if let Some(dimension) = DIMENSIONS.into_iter().find(|known| parameter(*known) == name) {
            values += 1;
            if values > FILTER_VALUES_MAX {
                let allowed = format!("one of at most {FILTER_VALUES_MAX} values of all filters together");
                return Err(BadParameter::value(name, value, allowed));
            }
            let value = filter_value(dimension, value)?;
            let seen = filters.entry(dimension).or_default();
            if !seen.contains(&value) {
                seen.push(value);
            }
        } else {
            return Err(BadParameter::unknown(name, format!("one of {}", known())));
        }
    }
    let single = |name: &str| single.get(name).copied();
    let (from, to) = range(single("from"), single("to"), now)?;
    let (time, dimensions) = group_by(single("groupBy").unwrap_or_default())?;
    let order = match single("orderBy") {
        None | Some("time") => Order::Columns,
        Some("-clicks") => Order::ClicksDescending,
        Some(other) => return Err(BadParameter::value("orderBy", other, "time or -clicks")),
    };
    let limit = match single("limit") {
        None => LIMIT_DEFAULT,
        Some(text) => limit(text)?,
    };
    Ok(ReportQuery { from, to, filters, time, dimensions, limit, order })
}

/// The parameters that there are.
fn known() -> String {
    SINGLE.into_iter().chain(DIMENSIONS.map(parameter)).collect::<Vec<_>>().join(", ")
}

fn limit(text: &str) -> Result<usize, BadParameter> {
    match text.parse() {
        Ok(limit @ 1..=LIMIT_MAX) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(limit),
        _ => Err(BadParameter::value("limit", text, format!("a whole number from 1 to {LIMIT_MAX}"))),
    }
}

/// One value of a filter, written as the pipelines write it.
fn filter_value(dimension: Dimension, text: &str) -> Result<String, BadParameter> {
    fn parsed<T: FromStr<Err = click::Invalid> + ToString>(text: &str) -> Result<String, &'static str> {
        text.parse::<T>().map(|value| value.to_string()).map_err(|invalid| invalid.allowed)
    }
    match dimension {
        Dimension::AdId => parsed::<AdId>(text),
        Dimension::CampaignId => parsed::<CampaignId>(text),
        Dimension::PublisherId => parsed::<PublisherId>(text),
        Dimension::Country => parsed::<Country>(text),
        Dimension::Device if text.is_empty() || text.len() > DEVICE_BYTES_MAX || text.contains(char::is_control) => {
            Err("1 to 128 bytes without control characters")
        }
        Dimension::Device => Ok(text.to_owned()),
    }
    .map_err(|allowed| {
        BadParameter::value(parameter(dimension), text, format!("{allowed} (repeat the parameter to name several)"))
    })
}

/// Splits `groupBy` into the time column and the dimensions. An empty one asks for the totals alone.
fn group_by(text: &str) -> Result<(Option<TimeUnit>, Vec<Dimension>), BadParameter> {
    let bad = |allowed: String| BadParameter::value("groupBy", text, allowed);
    let mut time = None;
    let mut dimensions = Vec::new();
    if text.is_empty() {
        return Ok((time, dimensions));
    }
    for name in text.split(',') {
        if let Some(unit) = TIME_UNITS.into_iter().find(|known| unit_name(*known) == name) {
            if time.replace(unit).is_some() {
                return Err(bad("at most one of minute, hour and day, and no name twice".into()));
            }
        } else if let Some(dimension) = DIMENSIONS.into_iter().find(|known| parameter(*known) == name) {
            if dimensions.contains(&dimension) {
                return Err(bad("names that differ from each other".into()));
            }
            dimensions.push(dimension);
        } else {
            let names = TIME_UNITS.map(unit_name).into_iter().chain(DIMENSIONS.map(parameter)).collect::<Vec<_>>();
            return Err(bad(format!("empty, or some of {}, with commas between them", names.join(", "))));
        }
    }
    Ok((time, dimensions))
}

/// The range of whole minutes. A date in `from` is its first instant; a date in `to` includes that day, a time in it
/// is the first instant that is left out.
fn range(from: Option<&str>, to: Option<&str>, now: Millis) -> Result<(Millis, Millis), BadParameter> {
    let today = Millis::new(now.get().div_euclid(DAY_MS) * DAY_MS);
    let start = match from {
        Some(text) => instants("from", text)?.0,
        None => today,
    };
    let end = match to {
        Some(text) => instants("to", text)?.1,
        None => today.plus(DAY_MS),
    };
    let length_ms = end.get() - start.get();
    if length_ms > 0 && length_ms <= RANGE_DAYS_MAX * DAY_MS {
        return Ok((start, end));
    }
    // A range is wrong as a whole; the end that was given is the one to name, since the other may be a default.
    let (field, given) = match (from, to) {
        (Some(text), None) => ("from", text),
        (_, text) => ("to", text.unwrap_or_default()),
    };
    let [start, end] = [start, end].map(|at| at.minute().to_string());
    let allowed = match (field, length_ms > 0) {
        ("from", false) => format!("before {end}, the end of today, if there is no \"to\""),
        ("from", true) => {
            format!("at most {RANGE_DAYS_MAX} days before {end}, the end of today, if there is no \"to\"")
        }
        (_, false) => format!("after {start}, where the range starts (today, if there is no \"from\")"),
        (_, true) => format!("at most {RANGE_DAYS_MAX} days after {start}, where the range starts"),
    };
    Err(BadParameter::value(field, given, allowed))
}

/// The first instant of what is named, and the first one after it; for a time both are that time.
fn instants(field: &'static str, text: &str) -> Result<(Millis, Millis), BadParameter> {
    let bad = || BadParameter::value(field, text, INSTANT_ALLOWED);
    let exact = |ms: i64| Some(Millis::new(ms)).filter(|at| at.get() == ms).ok_or_else(bad);
    if let Ok(date) = text.parse::<NaiveDate>() {
        // Chrono also reads 2026-4-1 and +2026-04-01, which the API does not promise.
        if date.to_string() != text {
            return Err(bad());
        }
        let ms = date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis();
        return Ok((exact(ms)?, exact(ms + DAY_MS)?));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| bad())?;
    // Part of a minute, and a leap second, which belongs to the minute before it.
    if time.second() != 0 || time.nanosecond() != 0 {
        return Err(bad());
    }
    let at = exact(time.timestamp_millis())?;
    Ok((at, at))
}
