//! Takes the rows of a step back out of a table, when its closing can never be carried out.

use super::{STEP, Table};
use crate::error::Result;
use deltalake_core::kernel::Action;
use deltalake_core::logstore::get_actions;
use deltalake_core::protocol::DeltaOperation;
use futures::TryStreamExt;
use std::collections::HashSet;

impl Table {
    /// Removes what the step of this closing added, if it was done, and notes in the same commit that it was not. The step
    /// has to be the last commit of the table.
    pub(super) async fn undo(&mut self, number: u64) -> Result<()> {
        if self.done != Some(number) {
            return Ok(());
        }
        let log_store = self.delta.log_store();
        let version = self.delta.version().ok_or_else(|| self.failed("it has no version"))?;
        let commit = log_store.read_commit_entry(version).await.map_err(|error| self.failed(error))?;
        let commit = commit.ok_or_else(|| self.failed(format!("commit {version} is missing")))?;
        let (mut added, mut is_step) = (HashSet::new(), false);
        for action in get_actions(version, &commit).map_err(|error| self.failed(error))? {
            match action {
                Action::Add(add) => drop(added.insert(add.path)),
                Action::Txn(done) => is_step |= done.app_id == STEP && u64::try_from(done.version) == Ok(number),
                _ => {}
            }
        }
        if !is_step {
            return Err(self.failed(format!("its last commit {version} is not the step of closing {number}")));
        }
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?.snapshot();
        let removed: Vec<Action> = snapshot
            .file_views(&*log_store, None)
            .try_filter(|file| std::future::ready(added.contains(&*file.path())))
            .map_ok(|file| Action::Remove(file.remove_action(true)))
            .try_collect()
            .await
            .map_err(|error| self.failed(error))?;
        if removed.len() != added.len() {
            let what = format!("of {} files of closing {number} it has {}", added.len(), removed.len());
            return Err(self.failed(what));
        }
        let before = number.saturating_sub(1);
        self.commit(removed, DeltaOperation::Delete { predicate: None }, STEP, before).await?;
        self.done = Some(before);
        tracing::info!(table = self.name.as_str(), number, files = added.len(), "took back what a closing had written");
        Ok(())
    }
}
