//! The tables on ClickHouse, for any number of reporting nodes.
//!
//! * `settings`: where it is; `server`: how the server is spoken to
//! * `migrations`: the schema, as numbered files of SQL
//! * `block`: rows in the format of inserts
//! * `step`: the steps of a closing, in blocks
//! * `entries`: the sequence of entries, each put if absent
//! * `provisional`: counts that are not final yet, published for readers
//! * `query`: reports and recounts; `claimants`: rows that hold a claim
//! * `reports`: [`ClickHouseReports`], which answers reports without a loader in its process
//!
//! # Written once, on a server without transactions
//!
//! An insert may be repeated, since nobody knows whether one that was not answered was made, and it may be made late,
//! when its loader is long dead. Neither may change a number. Three rules see to that; none of them asks whether parts
//! were merged, or how many inserts came between.
//!
//! 1. **A repeated row is the same key.** Every row of a closing carries the closing's number, which is a part of the
//!    table's sort key. What a closing comprises is fixed by its entry of kind `begun`, of which there is one a number,
//!    and everything else follows from it and the log: rows of one key are equal. The tables are `ReplacingMergeTree`
//!    and read with `FINAL`, which counts each key once.
//! 2. **Nothing counts before its entry.** A read takes rows of closings up to the last one that it knows, and none of
//!    a closing that was overtaken by a deployment of its number (`abandoned_closings`). The entry is put when each step
//!    was counted in the table and noted as done.
//! 3. **A number is put once**: `entries` says how.
//!
//! Deduplication by insert token, for which the tables keep the last 1,000, is not needed for any of this. It makes
//! repeats cheap: a block that was written already is dropped by the server. The token is a digest of the block's rows,
//! never of its place, because a second try may cut its blocks elsewhere.
//!
//! # Limits
//!
//! Reads have to see what was written before them. One server does that, ClickHouse's own replication does not by
//! itself: all loaders and readers have to use the same replica. Inserts are fsynced before they are answered.

mod block;
mod claimants;
mod entries;
mod migrations;
mod provisional;
mod query;
mod reports;
mod server;
mod settings;
mod step;

pub use reports::ClickHouseReports;
pub use server::ServerSettings;
pub use settings::ClickHouseSettings;

use crate::backend::{Answer, Backend, Billable, Claimant, Known, Pending, Provisional, StepRows, View};
use crate::error::Result;
use crate::report::ReportQuery;
use crate::rows::{Correction, Count, Quarantined, RawRow};
use crate::sequence::{Entry, Sequence};
use async_trait::async_trait;
use block::Encode;
use click::{LogId, Millis, Minute, Offset, Offsets, Partition};
use provisional::Publisher;
use query::{CORRECTIONS, COUNTS, Open, Sums};
use server::Server;
use std::ops::Range;
use std::sync::Arc;
use step::BlockRows;
use tokio::sync::Mutex;

/// An instant, as SQL.
fn time(at: Millis) -> String {
    format!("fromUnixTimestamp64Milli(toInt64({}), 'UTC')", at.get())
}

/// The tables in one database.
pub struct ClickHouse {
    server: Server,
    publisher: Mutex<Publisher>,
}

impl ClickHouse {
    /// Makes the database and brings its schema up to date. Returns how many migrations were applied.
    pub async fn migrate(settings: &ServerSettings) -> Result<u64> {
        migrations::migrate(&Server::new(settings)?).await
    }

    /// Connects, and refuses a schema that is not the one this code knows.
    pub async fn open(settings: &ServerSettings) -> Result<ClickHouse> {
        let server = Server::new(settings)?;
        migrations::check(&server).await?;
        Ok(ClickHouse { server, publisher: Mutex::new(Publisher::new()) })
    }

    /// What the entries come to; `None` where nothing was deployed yet, and where there are no tables yet.
    pub async fn sequence(settings: &ServerSettings) -> Result<Option<Sequence>> {
        let server = Server::new(settings)?;
        if migrations::number(&server).await? == 0 {
            return Ok(None);
        }
        migrations::check(&server).await?;
        Ok(Sequence::of(entries::entries(&server).await?))
    }

    async fn step<T: Encode>(&self, number: u64) -> Result<StepRows<T>> {
        if step::is_done(&self.server, number, T::TABLE).await? {
            return Ok(None);
        }
        Ok(Some(Box::new(BlockRows::<T>::new(self.server.clone(), number))))
    }

    /// A step of a closing that the server carries out from steps before it.
    async fn sum_up(&self, sums: Sums<'_>) -> Result<()> {
        let (number, step) = (sums.number, sums.target.table);
        if step::is_done(&self.server, number, step).await? {
            return Ok(());
        }
        query::sum_up(&self.server, &sums).await?;
        step::note_done(&self.server, number, step).await
    }
}

#[async_trait]
impl Backend for ClickHouse {
    async fn entries(&self) -> Result<Vec<Entry>> {
        entries::entries(&self.server).await
    }

    async fn put_entry(&self, entry: &Entry) -> Result<()> {
        entries::put(&self.server, entry).await
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
        let Some((from, to)) = query::corrected(&self.server, number).await? else { return Ok(()) };
        for target in &CORRECTIONS {
            let from = target.floor(from);
            self.sum_up(Sums { number, source: &query::CLICK_CORRECTIONS, target, from, to }).await?;
        }
        Ok(())
    }

    async fn clicks_by_minute(&self, number: u64) -> Result<StepRows<Count>> {
        self.step(number).await
    }

    async fn roll_up(&self, number: u64, from: Minute, through: Minute) -> Result<()> {
        let [days, quarter_hours, minutes] = &COUNTS;
        for (source, target) in [(minutes, quarter_hours), (quarter_hours, days)] {
            let (from, to) = (target.floor(from), target.floor(through));
            if from < to {
                self.sum_up(Sums { number, source, target, from, to }).await?;
            }
        }
        Ok(())
    }

    /// Its rows carry its number, and reads leave them out when a deployment has it.
    async fn abandon(&self, _: u64) -> Result<()> {
        Ok(())
    }

    /// The server merges by itself.
    async fn tidy(&self, _: Minute, _: Minute) -> Result<()> {
        Ok(())
    }

    async fn billable(
        &self,
        minutes: Range<Minute>,
        appended_before: Millis,
        before: &Offsets,
    ) -> Result<Vec<Billable>> {
        query::billable(&self.server, minutes, appended_before, before).await
    }

    async fn claimants(&self, log_id: LogId, partition: Partition, offsets: Range<Offset>) -> Result<Vec<Claimant>> {
        claimants::claimants(&self.server, log_id, partition, offsets, None).await
    }

    async fn known(&self, click_id: &str, impression_id: &str) -> Result<Known> {
        query::known(&self.server, click_id, impression_id).await
    }

    async fn view(&self, last: u64) -> Result<Arc<dyn View>> {
        Ok(Arc::new(ClosedView { server: self.server.clone(), last }))
    }

    fn publishes(&self) -> bool {
        true
    }

    async fn publish(&self, counts: &Provisional) -> Result<()> {
        self.publisher.lock().await.publish(&self.server, counts).await
    }
}

/// The closings up to one: rows are only ever added, and those of later closings carry their number.
struct ClosedView {
    server: Server,
    last: u64,
}

#[async_trait]
impl View for ClosedView {
    async fn report(&self, query: &ReportQuery, through: Minute, pending: Vec<Pending>) -> Result<Answer> {
        query::report(&self.server, query, self.last, through, Open::Pending(&pending)).await
    }
}
