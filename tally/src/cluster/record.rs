//! A version recorded in the warehouse, beside a loader that puts its closings into the same sequence.

use super::config::Config;
use super::run::warehouse;
use anyhow::{Result, bail};
use std::time::Duration;
use tally_log::Log;
use warehouse::{Deploying, Deployment, Error, Topics, Warehouse};

/// How often a deployment is tried that the loader is always faster than, and the pause between two tries.
const TRIES_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Deploys, if the digest has changed or it is wanted all the same. The loader may put an entry at the same moment: then
/// it is done anew after it.
pub(crate) async fn record(
    config: &Config,
    log: &dyn Log,
    topics: &Topics,
    digest: &str,
    how: Deploying,
) -> Result<(Warehouse, Deployment)> {
    for _ in 0..TRIES_MAX {
        let warehouse = warehouse(config).await?;
        match warehouse.deploy_as(log, topics, digest, how).await {
            Ok(deployment) => return Ok((warehouse, deployment)),
            Err(Error::Taken { number, .. }) => {
                tracing::info!(number, "the loader put an entry meanwhile; deploying after it");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "the pipelines were not deployed: {TRIES_MAX} times somebody else put an entry first; is there one loader only?"
    )
}
