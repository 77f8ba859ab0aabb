//! `tally topics`: makes the topics, or says what is wrong with them and the command that mends it.

use super::config::Config;
use crate::status::say;
use anyhow::{Result, bail};
use tally_log::kafka::topics::create_or_check;
use warehouse::Topics;

pub async fn topics(config: &Config) -> Result<()> {
    let Topics { clicks, raw_clicks, clicks_by_minute } = Topics::default();
    let report = create_or_check(&config.kafka, &[&clicks, &raw_clicks, &clicks_by_minute]).await?;
    for topic in &report.created {
        say(&format!("created   {topic}"));
    }
    for topic in &report.checked {
        say(&format!("checked   {topic}"));
    }
    for warning in &report.warnings {
        say(&format!("warning   {warning}"));
    }
    for problem in &report.problems {
        say(&format!("wrong     {}: {}\n          {}", problem.topic, problem.what, problem.mend));
    }
    match report.problems.len() {
        0 => Ok(()),
        problems => {
            bail!("{problems} of the topics' settings could lose or misplace clicks; nothing was changed in them")
        }
    }
}
