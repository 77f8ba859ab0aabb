//! What clicks are counted by.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The five dimensions of a count, as the pipeline wrote them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dimensions {
    pub ad_id: Arc<str>,
    pub campaign_id: Arc<str>,
    pub publisher_id: Arc<str>,
    pub country: Arc<str>,
    pub device: Arc<str>,
}

impl Dimensions {
    /// Their names, in the order of the fields: of columns in tables and of parameters in reports.
    pub const NAMES: [&str; 5] = ["ad_id", "campaign_id", "publisher_id", "country", "device"];

    /// Their values, in the order of [`Self::NAMES`].
    pub fn values(&self) -> [&Arc<str>; 5] {
        [&self.ad_id, &self.campaign_id, &self.publisher_id, &self.country, &self.device]
    }
}
