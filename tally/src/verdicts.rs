//! What became of the last clicks, for the page that a newcomer lands on.

use serde::Deserialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tally_log::{Log, LogError, Topic};

/// Clicks remembered at most.
const CLICKS_MAX: usize = 10_000;

/// One row of `raw_clicks`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Judged {
    pub click_id: Option<String>,
    pub impression_id: Option<String>,
    pub campaign_id: Option<String>,
    pub verdict: String,
}

/// The last verdicts, by click id.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<(HashMap<String, Judged>, VecDeque<String>)>);

impl Verdicts {
    pub fn of(&self, click_id: &str) -> Option<Judged> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.get(click_id).cloned()
    }

    fn add(&self, judged: Judged) {
        let Some(id) = judged.click_id.clone() else { return };
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_id, order) = &mut *held;
        if by_id.insert(id.clone(), judged).is_none() {
            order.push_back(id);
        }
        if order.len() > CLICKS_MAX
            && let Some(oldest) = order.pop_front()
        {
            by_id.remove(&oldest);
        }
    }

    /// Follows the topic from its end, for ever.
    pub async fn follow(&self, log: &dyn Log, raw_clicks: &Topic) -> Result<(), LogError> {
        let mut start = click::Offsets::default();
        for partition in 0..raw_clicks.partitions {
            start.set(partition, log.held(raw_clicks, partition).await?.end);
        }
        let mut rows = log.consumer(raw_clicks, &start).await?;
        loop {
            for row in rows.poll(1024, Duration::from_secs(1)).await? {
                // Whatever else reads this topic says what is wrong with a row; here it is only not shown.
                if let Ok(judged) = serde_json::from_slice(&row.value) {
                    self.add(judged);
                }
            }
        }
    }
}
