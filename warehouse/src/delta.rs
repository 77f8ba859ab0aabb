//! The tables on Delta Lake: Parquet files, and a log of commits for each table.
//!
//! * `store`: files that are on disk when a call returns, and `sums`, their checksums
//! * `tables`: names, columns and rows of the tables
//! * `check`: what is damaged is found and named when a table is opened
//! * `query`: entries, sums and recounts, on DataFusion, and `report`, reports
//! * `tidy`: many small files become few; `undo`: a step is taken back
//!
//! A step of a closing is one commit, which carries the closing's number as an application transaction: a table whose
//! number is as high was written already. A commit is never retried on top of somebody else's: one loader writes.

mod check;
mod query;
mod report;
mod store;
mod sums;
mod tables;
mod tidy;
mod undo;

use crate::backend::{Backend, Billable, Claimant, Known, Rows, StepRows, View};
use crate::error::{Error, Result};
use crate::rows::{Correction, Count, Quarantined, RawRow};
use crate::sequence::Entry;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use click::{LogId, Millis, Minute, Offset, Offsets, Partition};
use datafusion::execution::SendableRecordBatchStream;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};
use deltalake_core::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures::future::BoxFuture;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::DurableStore;
use tables::{Name, ToBatch};
use tokio::sync::Mutex;

/// Names the numbers in a table's commits as ours.
const STEP: &str = "tally-closing";
/// The same of entries that begin a closing.
const BEGUN: &str = "tally-begun";
/// A data file is full at this size; a step writes as many as it needs.
const FILE_BYTES: u64 = 64 << 20;
/// Entries of a table's log that are no longer needed are looked for once in so many closings.
const CLEAN_UP_EVERY: u64 = 100;

/// A table and what was written to it.
struct Table {
    name: Name,
    delta: DeltaTable,
    /// The last closing whose step is in it.
    done: Option<u64>,
}

/// The tables in one folder.
pub struct Delta {
    tables: Vec<Arc<Mutex<Table>>>,
    session: datafusion::prelude::SessionContext,
}

impl Delta {
    /// Opens the tables in this folder, and makes those that are not there yet. The caller sees to it that nobody else
    /// has it open.
    ///
    /// A boxed future is compiled here, once; that of an `async fn` would be compiled again, with all of Delta Lake in
    /// it, in every binary that waits for it.
    pub fn open(dir: &Path) -> BoxFuture<'_, Result<Delta>> {
        Box::pin(async move {
            let dir = std::path::absolute(dir).map_err(|error| io(dir, error))?;
            let mut tables = Vec::new();
            for name in Name::ALL {
                tables.push(Arc::new(Mutex::new(Table::open(name, dir.join(name.as_str())).await?)));
            }
            Ok(Delta { tables, session: query::session() })
        })
    }

    fn table(&self, name: Name) -> &Arc<Mutex<Table>> {
        &self.tables[name as usize]
    }

    async fn step<T: ToBatch>(&self, number: u64) -> Result<StepRows<T>> {
        let table = self.table(T::TABLE);
        let locked = table.lock().await;
        if locked.done.is_some_and(|done| done >= number) {
            return Ok(None);
        }
        let writer = locked.writer()?;
        Ok(Some(Box::new(DeltaRows { table: table.clone(), writer, number, any: false })))
    }
}

/// An I/O error, with the path that it does not name.
fn io(path: &Path, error: std::io::Error) -> Error {
    Error::Log(tally_log::LogError::io(path, error))
}

impl Table {
    async fn open(name: Name, dir: PathBuf) -> Result<Table> {
        let failed = |error: DeltaTableError| Error::Table { table: name.as_str(), what: error.to_string() };
        tally_log::durable::create_dir_all(&dir)?;
        check::sweep(&dir)?;
        let (dir_of_log, path) = (dir.clone(), dir.to_string_lossy().into_owned());
        tokio::task::spawn_blocking(move || check::log(&dir_of_log))
            .await
            .map_err(|error| Error::Died(error.to_string()))??;
        let url = deltalake_core::ensure_table_uri(&path).map_err(failed)?;
        let builder = DeltaTableBuilder::from_url(url.clone()).map_err(failed)?;
        let mut delta = builder.with_storage_backend(Arc::new(DurableStore::default()), url).build().map_err(failed)?;
        if delta.verify_deltatable_existence().await.map_err(failed)? {
            delta.load().await.map_err(failed)?;
        } else {
            delta = CreateBuilder::new()
                .with_log_store(delta.log_store())
                .with_table_name(name.as_str())
                .with_columns(name.columns())
                .with_partition_columns(name.partition_columns())
                .with_configuration(name.configuration())
                .with_save_mode(SaveMode::ErrorIfExists)
                .await
                .map_err(failed)?;
        }
        check::files(&dir, &delta, name).await?;
        check::sweep_sums(&dir)?;
        let log_store = delta.log_store();
        let state = delta.snapshot().map_err(failed)?;
        let done = state.transaction_version(&*log_store, STEP).await.map_err(failed)?;
        let done = done.and_then(|done| u64::try_from(done).ok());
        Ok(Table { name, delta, done })
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Table { table: self.name.as_str(), what: error.to_string() }
    }

    fn writer(&self) -> Result<RecordBatchWriter> {
        let writer = RecordBatchWriter::for_table(&self.delta).map_err(|error| self.failed(error))?;
        Ok(writer.with_target_file_size(FILE_BYTES).with_writer_properties(tables::writer_properties()))
    }

    /// Commits, if nobody else has since this table was last read.
    async fn commit(&mut self, actions: Vec<Action>, operation: DeltaOperation, app: &str, number: u64) -> Result<()> {
        let transaction = Transaction::new(app, number as i64);
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_cleanup_expired_logs(Some(number.is_multiple_of(CLEAN_UP_EVERY)))
            .with_application_transaction(transaction);
        let state = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(state), self.delta.log_store(), operation)
            .await;
        match committed {
            Ok(committed) => {
                self.delta.state = Some(committed.snapshot());
                if committed.metrics.new_checkpoint_created {
                    // The state keeps a small batch a commit, and goes through all of them at each one; read from the
                    // checkpoint they are few.
                    self.delta.state = None;
                    self.delta.load().await.map_err(|error| self.failed(error))?;
                }
                Ok(())
            }
            Err(
                DeltaTableError::VersionAlreadyExists(_)
                | DeltaTableError::Transaction {
                    source: TransactionError::MaxCommitAttempts(_) | TransactionError::VersionAlreadyExists(_),
                },
            ) => Err(Error::Taken { table: self.name.as_str(), number }),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Commits new rows as the step of a closing.
    async fn append(&mut self, adds: Vec<Add>, app: &str, number: u64) -> Result<()> {
        let partition_by = self.name.partition_columns().map(String::from).collect::<Vec<_>>();
        let partition_by = Some(partition_by).filter(|columns| !columns.is_empty());
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
        self.commit(adds.into_iter().map(Action::Add).collect(), operation, app, number).await
    }

    /// Writes what a query finds, if it is anything, and commits it as the step of a closing.
    async fn append_query(&mut self, rows: SendableRecordBatchStream, number: u64) -> Result<()> {
        let mut writer = self.writer()?;
        if query::write(rows, &mut writer).await.map_err(|error| self.failed(error))? {
            let adds = writer.flush().await.map_err(|error| self.failed(error))?;
            self.append(adds, STEP, number).await?;
            self.done = Some(number);
        }
        Ok(())
    }

    /// Writes batches and commits them as the step of a closing.
    async fn append_batch(&mut self, batch: RecordBatch, app: &str, number: u64) -> Result<()> {
        let mut writer = self.writer()?;
        writer.write(batch).await.map_err(|error| self.failed(error))?;
        let adds = writer.flush().await.map_err(|error| self.failed(error))?;
        self.append(adds, app, number).await
    }
}

/// The rows of one step.
struct DeltaRows {
    table: Arc<Mutex<Table>>,
    writer: RecordBatchWriter,
    number: u64,
    any: bool,
}

#[async_trait]
impl<T: ToBatch> Rows<T> for DeltaRows {
    async fn write(&mut self, rows: &[T]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.any = true;
        let failed = |error: &dyn std::fmt::Display| Error::Table { table: T::TABLE.as_str(), what: error.to_string() };
        let columns = T::columns(rows, self.number);
        let batch = RecordBatch::try_new(self.writer.arrow_schema(), columns).map_err(|error| failed(&error))?;
        self.writer.write(batch).await.map_err(|error| failed(&error))
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        // No rows are no rows on every try.
        if !self.any {
            return Ok(());
        }
        let mut table = self.table.lock().await;
        let adds = self.writer.flush().await.map_err(|error| table.failed(error))?;
        table.append(adds, STEP, self.number).await?;
        table.done = Some(self.number);
        Ok(())
    }
}

#[async_trait]
impl Backend for Delta {
    async fn entries(&self) -> Result<Vec<Entry>> {
        let table = self.table(Name::Closings).lock().await;
        query::entries(&self.session, &table).await
    }

    async fn put_entry(&self, entry: &Entry) -> Result<()> {
        let mut table = self.table(Name::Closings).lock().await;
        let app = if entry.kind.is_begun() { BEGUN } else { STEP };
        let schema = table.writer()?.arrow_schema();
        let columns = Entry::columns(std::slice::from_ref(entry), entry.number);
        let batch = RecordBatch::try_new(schema, columns).map_err(|error| table.failed(error))?;
        table.append_batch(batch, app, entry.number).await?;
        if !entry.kind.is_begun() {
            table.done = Some(entry.number);
        }
        Ok(())
    }

    async fn raw_clicks(&self, number: u64) -> Result<StepRows<RawRow>> {
        self.step(number).await
    }

    async fn quarantine(&self, number: u64) -> Result<StepRows<Quarantined>> {
        self.step(number).await
    }

    async fn click_corrections(&self, number: u64) -> Result<StepRows<Correction>> {
        self.step(number).await
    }

    async fn sum_corrections(&self, number: u64) -> Result<()> {
        // A closing without corrections left no step in their table, and has no sums.
        if self.table(Name::Corrections).lock().await.done != Some(number) {
            return Ok(());
        }
        for target in Name::CORRECTIONS {
            let mut into = self.table(target).lock().await;
            if into.done.is_some_and(|done| done >= number) {
                continue;
            }
            let source = self.table(Name::Corrections).lock().await;
            let rows = query::sum_corrections(&self.session, &source, target, number).await?;
            drop(source);
            into.append_query(rows, number).await?;
        }
        Ok(())
    }

    async fn clicks_by_minute(&self, number: u64) -> Result<StepRows<Count>> {
        self.step(number).await
    }

    async fn roll_up(&self, number: u64, from: Minute, through: Minute) -> Result<()> {
        for (source, target) in [(Name::Minutes, Name::QuarterHours), (Name::QuarterHours, Name::Days)] {
            let minutes = target.minutes();
            let start = |minute: Minute| Minute::from_number(minute.number().div_euclid(minutes) * minutes);
            let mut into = self.table(target).lock().await;
            if start(from) == start(through) || into.done.is_some_and(|done| done >= number) {
                continue;
            }
            let source = self.table(source).lock().await;
            let rows = query::roll_up(&self.session, &source, target, start(from), start(through)).await?;
            drop(source);
            into.append_query(rows, number).await?;
        }
        Ok(())
    }

    /// From the last step to the first, so that those that are left are always the first ones.
    async fn abandon(&self, number: u64) -> Result<()> {
        for name in Name::ALL.into_iter().rev().filter(|name| *name != Name::Closings) {
            self.table(name).lock().await.undo(number).await?;
        }
        Ok(())
    }

    async fn tidy(&self, from: Minute, through: Minute) -> Result<()> {
        for name in Name::ALL {
            let mut table = self.table(name).lock().await;
            tidy::tidy(&self.session, &mut table, from, through).await?;
        }
        Ok(())
    }

    async fn billable(
        &self,
        minutes: Range<Minute>,
        appended_before: Millis,
        before: &Offsets,
    ) -> Result<Vec<Billable>> {
        let provider = {
            let table = self.table(Name::RawClicks).lock().await;
            query::provider(&table).await?
        };
        let counted = query::billable(&self.session, provider, minutes, appended_before, before).await;
        counted.map_err(|error| Error::Table { table: Name::RawClicks.as_str(), what: error.to_string() })
    }

    async fn claimants(&self, log_id: LogId, partition: Partition, offsets: Range<Offset>) -> Result<Vec<Claimant>> {
        let provider = {
            let table = self.table(Name::RawClicks).lock().await;
            query::provider(&table).await?
        };
        let found = query::claimants(&self.session, provider, log_id, partition, offsets).await;
        found.map_err(|error| Error::Table { table: Name::RawClicks.as_str(), what: error.to_string() })
    }

    async fn known(&self, click_id: &str, impression_id: &str) -> Result<Known> {
        let provider = {
            let table = self.table(Name::RawClicks).lock().await;
            query::provider(&table).await?
        };
        let found = query::known(&self.session, provider, click_id, impression_id).await;
        found.map_err(|error| Error::Table { table: Name::RawClicks.as_str(), what: error.to_string() })
    }

    async fn view(&self, last: u64) -> Result<Arc<dyn View>> {
        let mut tables = Vec::new();
        for name in Name::COUNTS.into_iter().chain(Name::CORRECTIONS) {
            let table = self.table(name).lock().await;
            tables.push((name, query::provider(&table).await?));
        }
        Ok(Arc::new(report::DeltaView { session: self.session.clone(), tables, last }))
    }
}
