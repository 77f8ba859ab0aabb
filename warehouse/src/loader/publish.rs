//! Tells readers in other processes of the counts that are not final yet, beside the reading.

use super::Loader;
use crate::error::{Error, Result};
use crate::warehouse::Warehouse;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A report may be as old as this, and as long as publishing takes.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Publisher {
    publishing: Option<JoinHandle<Result<()>>>,
    began_at: Option<Instant>,
}

/// Publishes what is not published yet.
async fn publish(warehouse: Warehouse) -> Result<()> {
    let Some(counts) = warehouse.0.live.write().take_untold() else { return Ok(()) };
    let published = warehouse.0.backend.publish(&counts).await;
    if published.is_err() {
        warehouse.0.live.write().tell_everything();
    }
    published
}

impl Loader {
    /// Begins to publish, if it is time and the last publication has ended. One that fails is made up for by the next:
    /// readers only stay behind meanwhile.
    pub(super) async fn publish(&mut self) {
        if self.publisher.publishing.as_ref().is_some_and(JoinHandle::is_finished)
            && let Err(error) = self.end_publishing().await
        {
            tracing::warn!(%error, "provisional counts were not published");
        }
        let publisher = &mut self.publisher;
        if publisher.publishing.is_none() && publisher.began_at.is_none_or(|at| at.elapsed() >= EVERY) {
            publisher.began_at = Some(Instant::now());
            publisher.publishing = Some(tokio::spawn(publish(self.warehouse.clone())));
        }
    }

    /// Publishes what there is, and waits for it.
    pub(super) async fn publish_now(&mut self) -> Result<()> {
        self.end_publishing().await?;
        publish(self.warehouse.clone()).await
    }

    async fn end_publishing(&mut self) -> Result<()> {
        match self.publisher.publishing.take() {
            Some(publishing) => publishing.await.map_err(|error| Error::Died(error.to_string()))?,
            None => Ok(()),
        }
    }
}
