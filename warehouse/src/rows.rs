//! The rows that a pipeline writes to its result topics, as JSON. Times without a zone are UTC.

use click::{Dimensions, LogId, Millis, Minute, Offset, Partition, Verdict};
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::Arc;

/// A row of topic `raw_clicks`: one offset of the log, with what the pipeline made of it. A replay reproduces it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RawRow {
    pub log_id: LogId,
    pub log_partition: Partition,
    pub log_offset: Offset,
    pub kind: Option<String>,
    pub click_id: Option<String>,
    pub impression_id: Option<String>,
    pub ad_id: Option<String>,
    pub campaign_id: Option<String>,
    pub publisher_id: Option<String>,
    pub timestamp: Option<Millis>,
    pub appended_at: Millis,
    pub country: Option<String>,
    pub device: Option<String>,
    pub ip_hash: Option<String>,
    pub user_agent: Option<String>,
    pub seen_before: Option<bool>,
    pub attempt: Option<i64>,
    pub invalid_reason: Option<String>,
    pub verdict: String,
    pub version: i64,
}

impl RawRow {
    /// The minute that it counts in.
    pub fn minute(&self) -> Minute {
        minute(self.timestamp, self.appended_at)
    }

    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.verdict)
    }

    pub fn dimensions(&self) -> Dimensions {
        let text = |value: &Option<String>| Arc::from(value.as_deref().unwrap_or_default());
        Dimensions {
            ad_id: text(&self.ad_id),
            campaign_id: text(&self.campaign_id),
            publisher_id: text(&self.publisher_id),
            country: text(&self.country),
            device: text(&self.device),
        }
    }
}

/// The minute of `LEAST(timestamp, appended_at)`, as the pipelines have it.
fn minute(timestamp: Option<Millis>, appended_at: Millis) -> Minute {
    timestamp.map_or(appended_at, |timestamp| timestamp.min(appended_at)).minute()
}

/// As much of a row of `raw_clicks` as counting needs. Reading it copies nothing that is not kept. It takes just the rows
/// that [`RawRow`] takes: one that is counted can be written.
#[derive(Debug, Deserialize)]
pub(crate) struct CountedRow<'a> {
    pub log_id: LogId,
    pub log_partition: Partition,
    pub log_offset: Offset,
    #[serde(borrow)]
    ad_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    campaign_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    publisher_id: Option<Cow<'a, str>>,
    pub timestamp: Option<Millis>,
    pub appended_at: Millis,
    #[serde(borrow)]
    country: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub verdict: Cow<'a, str>,
    pub version: i64,
    #[serde(borrow, rename = "kind")]
    _kind: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "click_id")]
    _click_id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "impression_id")]
    _impression_id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "ip_hash")]
    _ip_hash: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "user_agent")]
    _user_agent: Option<Cow<'a, str>>,
    #[serde(rename = "seen_before")]
    _seen_before: Option<bool>,
    #[serde(rename = "attempt")]
    _attempt: Option<i64>,
    #[serde(borrow, rename = "invalid_reason")]
    _invalid_reason: Option<Cow<'a, str>>,
}

impl CountedRow<'_> {
    pub fn minute(&self) -> Minute {
        minute(self.timestamp, self.appended_at)
    }

    pub fn dimensions(&self) -> Dimensions {
        dimensions([&self.ad_id, &self.campaign_id, &self.publisher_id, &self.country, &self.device])
    }
}

/// A row of topic `clicks_by_minute`: what the engine counted.
#[derive(Debug, Deserialize)]
pub(crate) struct EngineRow<'a> {
    pub minute: Minute,
    #[serde(borrow)]
    ad_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    campaign_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    publisher_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    country: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device: Option<Cow<'a, str>>,
    pub clicks: i64,
    pub version: i64,
}

impl EngineRow<'_> {
    pub fn dimensions(&self) -> Dimensions {
        dimensions([&self.ad_id, &self.campaign_id, &self.publisher_id, &self.country, &self.device])
    }
}

/// A dimension that a pipeline left NULL is the empty text: in sums the two are the same group.
fn dimensions([ad_id, campaign_id, publisher_id, country, device]: [&Option<Cow<'_, str>>; 5]) -> Dimensions {
    let text = |value: &Option<Cow<'_, str>>| Arc::from(value.as_deref().unwrap_or_default());
    Dimensions {
        ad_id: text(ad_id),
        campaign_id: text(campaign_id),
        publisher_id: text(publisher_id),
        country: text(country),
        device: text(device),
    }
}

/// A count of billable clicks, or a change to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub minute: Minute,
    pub dimensions: Dimensions,
    pub clicks: i64,
}

/// A change of a count, by one click, after the fact. Append-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    pub log_id: LogId,
    pub partition: Partition,
    pub offset: Offset,
    pub count: Count,
    pub kind: &'static str,
    pub reason: String,
}

/// A record of the log that is no click, kept as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub log_id: LogId,
    pub partition: Partition,
    pub offset: Offset,
    pub appended_at: Millis,
    pub bytes: bytes::Bytes,
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"log_id":"67e55044-10b1-426f-9247-bb680e5fe0c8","log_partition":1,"log_offset":7,"kind":"click","click_id":"c","impression_id":"i","ad_id":"ad \"1\"","campaign_id":"cmp","publisher_id":null,"timestamp":"2026-04-20T12:00:01.766","appended_at":"2026-04-20T12:01:02.088","country":"IN","device":"desktop","ip_hash":"49","user_agent":"Moz","seen_before":false,"attempt":1,"invalid_reason":null,"verdict":"billable","version":3}"#;

    #[test]
    fn both_ways_to_read_a_row_agree() {
        let whole: RawRow = serde_json::from_str(ROW).unwrap();
        let counted: CountedRow = serde_json::from_str(ROW).unwrap();
        assert_eq!(whole.minute().to_string(), "2026-04-20T12:00:00Z");
        assert_eq!(whole.minute(), counted.minute());
        assert_eq!(whole.dimensions(), counted.dimensions());
        assert_eq!((&*whole.dimensions().ad_id, &*whole.dimensions().publisher_id), ("ad \"1\"", ""));
        assert_eq!(whole.verdict(), Verdict::Billable);
    }

    #[test]
    fn a_minute_row_starts_a_minute() {
        let row = |minute: &str| {
            format!(
                r#"{{"minute":"{minute}","ad_id":"a","campaign_id":"c","publisher_id":"p","country":"DE","device":"d","clicks":2,"version":1}}"#
            )
        };
        assert!(serde_json::from_str::<EngineRow>(&row("2026-04-20T12:00:00")).is_ok());
        assert!(serde_json::from_str::<EngineRow>(&row("2026-04-20T12:00:01")).is_err());
    }

    #[test]
    fn a_row_that_is_counted_can_be_written() {
        let row = r#"{"log_id":"018f0000-0000-4000-8000-000000000000","log_partition":0,"log_offset":1,"kind":"click","click_id":"c","impression_id":"i","ad_id":"a","campaign_id":"m","publisher_id":"p","timestamp":"2026-04-20T12:00:00","appended_at":"2026-04-20T12:00:01","country":"DE","device":"mobile","ip_hash":"00","user_agent":"x","seen_before":null,"attempt":1,"invalid_reason":null,"verdict":"billable","version":1}"#;
        let both = |text: &str| {
            let counted = serde_json::from_str::<CountedRow<'_>>(text).is_ok();
            (counted, serde_json::from_str::<RawRow>(text).is_ok())
        };
        assert_eq!(both(row), (true, true));
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(row).unwrap();
        for name in fields.keys() {
            for value in [serde_json::Value::Null, "x".into(), 7.into(), true.into(), serde_json::json!([])] {
                let mut changed = fields.clone();
                changed.insert(name.clone(), value);
                let text = serde_json::to_string(&changed).unwrap();
                let (counted, written) = both(&text);
                assert_eq!(counted, written, "{text}");
            }
        }
    }
}
