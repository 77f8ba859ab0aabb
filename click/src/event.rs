//! The record of topic `clicks`.

use crate::{AdId, CampaignId, ClickId, Country, ImpressionId, Millis, PublisherId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One record of the log, written by the redirect alone. JSON, told apart by `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Event {
    Click(Click),
    /// Goes to every partition that was silent for a second, so that event time moves on when traffic does not.
    Heartbeat {
        timestamp: Millis,
    },
}

/// One click, as the redirect saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Click {
    pub click_id: ClickId,
    pub impression_id: ImpressionId,
    pub ad_id: AdId,
    pub campaign_id: CampaignId,
    pub publisher_id: PublisherId,
    /// The redirect's clock when the request came in. Nothing in a request can set it.
    pub timestamp: Millis,
    /// HMAC-SHA256 of the client's address under the key of the day, 128 bits in hex. The address is stored nowhere.
    pub ip_hash: String,
    pub user_agent: String,
    pub country: Country,
    /// A hint for operators: was this impression clicked lately? `None` when the hint was not to be had in time.
    /// The pipeline alone decides what is a duplicate.
    pub seen_before: Option<bool>,
    /// 1 for the first send, more for each that followed it from the spool.
    pub attempt: u32,
    pub invalid_reason: Option<InvalidReason>,
}

/// Why the redirect says that a click cannot be billed: only what it alone can know. It judges neither duplicates
/// nor bots; the pipeline does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvalidReason {
    /// The browser fetched the page in case the person would click later.
    Prefetch,
    /// A network or header rule forbids it.
    Blocked,
    /// Keys are configured, and the URL has no signature.
    Unsigned,
    /// The signature is not that of this URL.
    BadSignature,
    /// The signature's time is over.
    Expired,
    /// The ad is paused or over.
    Inactive,
    /// The URL's campaign or publisher is not the catalog's.
    Mismatch,
}

impl InvalidReason {
    /// All of them.
    pub const ALL: [InvalidReason; 7] = [
        InvalidReason::Prefetch,
        InvalidReason::Blocked,
        InvalidReason::Unsigned,
        InvalidReason::BadSignature,
        InvalidReason::Expired,
        InvalidReason::Inactive,
        InvalidReason::Mismatch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            InvalidReason::Prefetch => "prefetch",
            InvalidReason::Blocked => "blocked",
            InvalidReason::Unsigned => "unsigned",
            InvalidReason::BadSignature => "bad_signature",
            InvalidReason::Expired => "expired",
            InvalidReason::Inactive => "inactive",
            InvalidReason::Mismatch => "mismatch",
        }
    }
}

impl fmt::Display for InvalidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_the_one_that_pipelines_read() {
        let click = Event::Click(Click {
            click_id: "018f0000-0000-7000-8000-000000000000".parse().unwrap(),
            impression_id: "imp_abc123".parse().unwrap(),
            ad_id: "ad_9".parse().unwrap(),
            campaign_id: "cmp_7".parse().unwrap(),
            publisher_id: "pub_4".parse().unwrap(),
            timestamp: "2026-04-20T12:00:00.123Z".parse().unwrap(),
            ip_hash: "00".repeat(16),
            user_agent: "Mozilla/5.0".into(),
            country: "de".parse().unwrap(),
            seen_before: Some(false),
            attempt: 1,
            invalid_reason: Some(InvalidReason::BadSignature),
        });
        let json = serde_json::to_string(&click).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"click","clickId":"018f0000-0000-7000-8000-000000000000","impressionId":"imp_abc123","adId":"ad_9","campaignId":"cmp_7","publisherId":"pub_4","timestamp":"2026-04-20T12:00:00.123Z","ipHash":"00000000000000000000000000000000","userAgent":"Mozilla/5.0","country":"DE","seenBefore":false,"attempt":1,"invalidReason":"bad_signature"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), click);
        let beat = Event::Heartbeat { timestamp: "2026-04-20T12:00:00Z".parse().unwrap() };
        assert_eq!(
            serde_json::to_string(&beat).unwrap(),
            r#"{"kind":"heartbeat","timestamp":"2026-04-20T12:00:00.000Z"}"#
        );
    }
}
