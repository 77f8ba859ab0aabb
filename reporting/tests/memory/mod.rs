//! Reports over counts in memory.

use async_trait::async_trait;
use click::{Dimensions, Millis};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use warehouse::report::{Dimension, Order, Report, ReportError, ReportQuery, ReportRow, Reports, TimeUnit};

/// What is counted, and until when it is final.
pub struct Counts {
    pub clicks: BTreeMap<(Millis, Dimensions), i64>,
    pub complete_through: Millis,
    pub refreshed_at: Millis,
    /// Reports fail with this text while it is there.
    pub failure: Option<String>,
}

pub struct MemoryReports(pub Mutex<Counts>);

impl MemoryReports {
    pub fn new(complete_through: Millis, refreshed_at: Millis) -> Self {
        MemoryReports(Mutex::new(Counts { clicks: BTreeMap::new(), complete_through, refreshed_at, failure: None }))
    }

    /// Counts clicks in the minute of `at`; `dimensions` are in the order of [`Dimensions::NAMES`].
    pub fn count(&self, at: Millis, dimensions: [&str; 5], clicks: i64) {
        let [ad_id, campaign_id, publisher_id, country, device] = dimensions.map(Arc::from);
        let dimensions = Dimensions { ad_id, campaign_id, publisher_id, country, device };
        *self.0.lock().unwrap().clicks.entry((at.minute().start(), dimensions)).or_default() += clicks;
    }
}

fn value(dimensions: &Dimensions, dimension: Dimension) -> Arc<str> {
    let [ad_id, campaign_id, publisher_id, country, device] = dimensions.values().map(Arc::clone);
    match dimension {
        Dimension::AdId => ad_id,
        Dimension::CampaignId => campaign_id,
        Dimension::PublisherId => publisher_id,
        Dimension::Country => country,
        Dimension::Device => device,
    }
}

#[async_trait]
impl Reports for MemoryReports {
    async fn report(&self, query: &ReportQuery) -> Result<Report, ReportError> {
        let counts = self.0.lock().unwrap();
        if let Some(failure) = &counts.failure {
            return Err(ReportError(failure.clone()));
        }
        let (mut total, mut provisional_total) = (0, 0);
        let mut groups: BTreeMap<(Option<Millis>, Vec<Arc<str>>), (i64, bool)> = BTreeMap::new();
        for ((minute, dimensions), clicks) in &counts.clicks {
            let wanted = |(dimension, values): (&Dimension, &Vec<String>)| {
                values.iter().any(|wanted| **wanted == *value(dimensions, *dimension))
            };
            if *minute < query.from || *minute >= query.to || !query.filters.iter().all(wanted) {
                continue;
            }
            let unit_ms = query.time.map(|unit| match unit {
                TimeUnit::Minute => 60_000,
                TimeUnit::Hour => 3_600_000,
                TimeUnit::Day => 86_400_000,
            });
            let time = unit_ms.map(|ms| Millis::new(minute.get().div_euclid(ms) * ms));
            let values = query.dimensions.iter().map(|dimension| value(dimensions, *dimension)).collect();
            let provisional = *minute >= counts.complete_through;
            let group = groups.entry((time, values)).or_default();
            group.0 += clicks;
            group.1 |= provisional;
            total += clicks;
            provisional_total += if provisional { *clicks } else { 0 };
        }
        let mut rows: Vec<ReportRow> = groups
            .into_iter()
            .map(|((time, values), (clicks, provisional))| ReportRow { time, values, clicks, provisional })
            .collect();
        if query.order == Order::ClicksDescending {
            rows.sort_by_key(|row| std::cmp::Reverse(row.clicks));
        }
        let truncated = rows.len() > query.limit;
        rows.truncate(query.limit);
        Ok(Report {
            rows,
            truncated,
            clicks: total,
            provisional_clicks: provisional_total,
            complete_through: counts.complete_through,
            refreshed_at: counts.refreshed_at,
        })
    }
}
