//! What the columns of a report are called.

use click::Millis;
use warehouse::report::{Dimension, TimeUnit};

/// The dimensions in the order of the documentation.
pub const DIMENSIONS: [Dimension; 5] =
    [Dimension::AdId, Dimension::CampaignId, Dimension::PublisherId, Dimension::Country, Dimension::Device];

/// The units of time, finest first.
pub const TIME_UNITS: [TimeUnit; 3] = [TimeUnit::Minute, TimeUnit::Hour, TimeUnit::Day];

/// The name of a dimension in a URL: of its filter, and in `groupBy`.
pub fn parameter(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::AdId => "ad_id",
        Dimension::CampaignId => "campaign_id",
        Dimension::PublisherId => "publisher_id",
        Dimension::Country => "country",
        Dimension::Device => "device",
    }
}

/// The name of a dimension in a row of the answer.
pub fn key(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::AdId => "adId",
        Dimension::CampaignId => "campaignId",
        Dimension::PublisherId => "publisherId",
        Dimension::Country => "country",
        Dimension::Device => "device",
    }
}

/// The name of a unit of time, in `groupBy` and in a row of the answer.
pub fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Minute => "minute",
        TimeUnit::Hour => "hour",
        TimeUnit::Day => "day",
    }
}

/// The start of a minute or an hour as `2026-04-20T12:00:00Z`, of a day as `2026-04-20`.
pub fn time_text(unit: TimeUnit, start: Millis) -> String {
    let mut text = start.minute().to_string();
    if unit == TimeUnit::Day {
        // Instants are of the years 1678 to 2262, whose dates are ten ASCII characters.
        text.truncate("2026-04-20".len());
    }
    text
}
