//! The seen-before hint: was this impression clicked lately? For operators and analysts. **It decides nothing**: the
//! pipeline alone says what is a duplicate, otherwise a mail scanner's fetch would turn the person's click after it
//! into one, for ever. So it may forget, and it may be wrong.

pub mod memory;
pub mod redis;

use async_trait::async_trait;
use click::{ImpressionId, Millis};

/// Remembers impressions for a while.
#[async_trait]
pub trait SeenBefore: Send + Sync + 'static {
    /// Whether the impression was asked about within the horizon before `now`; from now on it was. `None` when that
    /// cannot be told. The caller does not wait long: a slow answer is none.
    async fn seen_before(&self, impression_id: &ImpressionId, now: Millis) -> Option<bool>;
}
