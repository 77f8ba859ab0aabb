//! Many small files become few. A closing leaves a file a minute in most tables; once an hour has passed its files are
//! written anew as one, sorted so that a campaign's rows stand together. What the rows say does not change.

use super::tables::Name;
use super::{Table, query};
use crate::error::Result;
use chrono::Duration;
use click::Minute;
use datafusion::common::Column;
use datafusion::prelude::{Expr, SessionContext};
use deltalake_core::DeltaTableError;
use deltalake_core::kernel::{Action, Add, Remove};
use deltalake_core::operations::vacuum::VacuumMode;
use deltalake_core::protocol::DeltaOperation;
use deltalake_core::writer::DeltaWriter;
use futures::TryStreamExt;

const HOUR: i64 = 60;
const DAY: i64 = 24 * HOUR;
/// A file larger than this stays as it is.
const SMALL_BYTES: i64 = 16 << 20;
/// Fewer small files than this are not worth it.
const FILES_MIN: usize = 8;
/// Files that are no longer part of a table are kept so long: a report that began before may still read them.
const KEPT_HOURS: i64 = 1;
/// Names a commit of this kind; its number is the minute, since the epoch, that it followed.
const TIDY: &str = "tally-tidy";

pub(super) async fn tidy(session: &SessionContext, table: &mut Table, from: Minute, through: Minute) -> Result<()> {
    let passed = |unit: i64| from.number().div_euclid(unit) != through.number().div_euclid(unit);
    if !passed(HOUR) {
        return Ok(());
    }
    merge(session, table, through).await?;
    if passed(DAY) { remove_old(table).await } else { Ok(()) }
}

/// Writes small files anew, those of one partition together, as many at once as fill a file: they are sorted in memory.
async fn merge(session: &SessionContext, table: &mut Table, through: Minute) -> Result<()> {
    let failed = |error: DeltaTableError| table.failed(error);
    let log_store = table.delta.log_store();
    let snapshot = table.delta.snapshot().map_err(failed)?.snapshot();
    let mut small: Vec<Remove> = snapshot
        .file_views(&*log_store, None)
        .try_filter(|file| std::future::ready(file.size() < SMALL_BYTES))
        .map_ok(|file| file.remove_action(false))
        .try_collect()
        .await
        .map_err(failed)?;
    let date = |file: &Remove| file.partition_values.as_ref().and_then(|values| values.get("date").cloned().flatten());
    small.sort_by_key(date);
    let mut groups: Vec<Vec<Remove>> = Vec::new();
    for files in small.chunk_by(|a, b| date(a) == date(b)) {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for file in files {
            group.push(file.clone());
            bytes += file.size.unwrap_or(0);
            if bytes >= super::FILE_BYTES as i64 {
                groups.push(std::mem::take(&mut group));
                bytes = 0;
            }
        }
        groups.push(group);
    }
    groups.retain(|files| files.len() >= FILES_MIN);
    for files in groups {
        let paths = files.iter().map(|file| file.path.clone());
        let rows = table.delta.table_provider().with_file_paths(paths).await.map_err(|error| table.failed(error))?;
        let column = |name: &str| Expr::Column(Column::from_name(name));
        let order: Vec<Expr> = match table.name {
            Name::RawClicks | Name::Quarantine => ["partition", "offset"].map(column).to_vec(),
            Name::Closings => ["number"].map(column).to_vec(),
            _ => ["campaign_id", "ad_id", table.name.time_column()].map(column).to_vec(),
        };
        let sorted = session.read_table(rows).and_then(|frame| frame.sort_by(order));
        let rows = sorted.map_err(|error| table.failed(error))?.execute_stream().await;
        let mut writer = table.writer()?;
        let written = query::write(rows.map_err(|error| table.failed(error))?, &mut writer).await;
        written.map_err(|error| table.failed(error))?;
        let added = writer.flush().await.map_err(|error| table.failed(error))?;
        let removed = files.into_iter().map(Action::Remove);
        let added = added.into_iter().map(|file| Action::Add(Add { data_change: false, ..file }));
        let actions = removed.chain(added).collect();
        let operation = DeltaOperation::Optimize { predicate: None, target_size: super::FILE_BYTES as i64 };
        table.commit(actions, operation, TIDY, u64::try_from(through.number()).unwrap_or(0)).await?;
    }
    Ok(())
}

/// Removes files that are not part of the table, of merges and of closings that died.
async fn remove_old(table: &mut Table) -> Result<()> {
    let vacuum = table
        .delta
        .clone()
        .vacuum()
        .with_mode(VacuumMode::Full)
        .with_retention_period(Duration::hours(KEPT_HOURS))
        .with_enforce_retention_duration(false);
    let (delta, metrics) = vacuum.await.map_err(|error| table.failed(error))?;
    tracing::debug!(table = table.name.as_str(), files = metrics.files_deleted.len(), "removed old files");
    table.delta = delta;
    Ok(())
}
