//! What is billed, as the reports say it.

use crate::judge::{Cell, Cells};
use anyhow::{Context, Result, ensure};
use click::Millis;
use reqwest::StatusCode;
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;

/// How often a report is asked for that the machine was too busy to give in time.
const TRIES: u32 = 5;

/// The reports of a site over one span of time.
pub struct Reports<'a> {
    pub client: &'a reqwest::Client,
    pub address: SocketAddr,
    pub from: Millis,
    pub to: Millis,
}

impl Reports<'_> {
    async fn report(&self, group_by: &str) -> Result<Value> {
        let url = format!("http://{}/api/v1/reports/clicks", self.address);
        let (from, to) = (self.from.to_string(), self.to.to_string());
        let query = [("from", from.as_str()), ("to", &to), ("groupBy", group_by), ("limit", "100000")];
        let mut tries = 1;
        let (status, body) = loop {
            let answer = self.client.get(&url).query(&query).send().await?;
            let status = answer.status();
            let body: Value = answer.json().await?;
            // A report that took too long in real time says nothing of numbers, and asks to be tried again.
            if status != StatusCode::SERVICE_UNAVAILABLE || tries == TRIES {
                break (status, body);
            }
            tries += 1;
        };
        ensure!(status.is_success(), "a report by {group_by} was answered {status}: {body}");
        ensure!(body["truncated"] == false, "a report by {group_by} is cut short");
        Ok(body)
    }

    /// Up to when minutes are final.
    ///
    /// # Errors
    /// If there is no report, or it does not say.
    pub async fn complete_through(&self) -> Result<Millis> {
        let body = self.report("day").await?;
        Ok(body["completeThrough"].as_str().context("completeThrough")?.parse()?)
    }

    /// Every cell, checked against its coarser groupings; and the whole answer.
    ///
    /// # Errors
    /// If a report cannot be read, or two of them do not agree.
    pub async fn cells(&self) -> Result<(Cells, Value)> {
        let body = self.report("minute,ad_id,campaign_id,publisher_id,country,device").await?;
        let mut cells = Cells::new();
        for row in rows(&body)? {
            let text = |name: &str| row[name].as_str().map(String::from).with_context(|| format!("{name} of {row}"));
            let minute = text("minute")?.parse::<Millis>()?.minute();
            let cell =
                (minute, text("adId")?, text("campaignId")?, text("publisherId")?, text("country")?, text("device")?);
            let clicks = row["clicks"].as_i64().with_context(|| format!("clicks of {row}"))?;
            ensure!(cells.insert(cell, clicks).is_none(), "a row twice: {row}");
        }
        let total: i64 = cells.values().sum();
        ensure!(body["totals"]["clicks"].as_i64() == Some(total), "the total is {}, not {total}", body["totals"]);
        for (group_by, name, key) in [
            ("minute", "minute", (|cell| cell.0.to_string()) as fn(&Cell) -> String),
            ("hour", "hour", |cell| cell.0.to_string()[..13].to_string()),
            ("day", "day", |cell| cell.0.to_string()[..10].to_string()),
            ("ad_id", "adId", |cell| cell.1.clone()),
            ("country", "country", |cell| cell.4.clone()),
        ] {
            let mut expected: HashMap<String, i64> = HashMap::new();
            for (cell, clicks) in &cells {
                *expected.entry(key(cell)).or_default() += clicks;
            }
            // A report asks for one `completeThrough` each: between two of them rows may become final, never other.
            let body = self.report(group_by).await?;
            for row in rows(&body)? {
                let text = row[name].as_str().with_context(|| format!("{name} of {row}"))?;
                let text = if group_by == "hour" { &text[..13] } else { text };
                let expected = expected.remove(text);
                ensure!(row["clicks"].as_i64() == expected, "by {group_by}: {row}, and by cell {expected:?}");
            }
            ensure!(expected.values().all(|clicks| *clicks == 0), "by {group_by}: {expected:?} is missing");
        }
        Ok((cells, body))
    }
}

fn rows(body: &Value) -> Result<&Vec<Value>> {
    body["rows"].as_array().with_context(|| format!("no rows in {body}"))
}
