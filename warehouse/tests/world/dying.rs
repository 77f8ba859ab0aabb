//! Tables under which a process dies.

use super::{Site, World, settings};
use async_trait::async_trait;
use click::{LogId, Millis, Minute, Offset, Offsets, Partition};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use warehouse::backend::{Backend, Billable, Provisional, Rows, StepRows, View};
use warehouse::rows::{Correction, Count, Quarantined, RawRow};
use warehouse::sequence::Entry;
use warehouse::{Claimant, Error, Known, Result, Warehouse};

/// Dies at the k-th place, and at every later one.
struct Dying {
    tables: Arc<dyn Backend>,
    left: Arc<AtomicI64>,
    /// Raw rows that were written before are not there when they are counted.
    forgets: bool,
}

fn place(left: &AtomicI64) -> Result<()> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(Error::Died("as it should".into())) }
}

impl Dying {
    fn rows<T: Sync + 'static>(&self, rows: StepRows<T>) -> Result<StepRows<T>> {
        place(&self.left)?;
        Ok(rows.map(|rows| Box::new(DyingRows { rows, left: self.left.clone() }) as Box<dyn Rows<T>>))
    }
}

struct DyingRows<T> {
    rows: Box<dyn Rows<T>>,
    left: Arc<AtomicI64>,
}

#[async_trait]
impl<T: Sync + 'static> Rows<T> for DyingRows<T> {
    async fn write(&mut self, rows: &[T]) -> Result<()> {
        place(&self.left)?;
        self.rows.write(rows).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        place(&self.left)?;
        self.rows.commit().await?;
        place(&self.left)
    }
}

#[async_trait]
impl Backend for Dying {
    async fn entries(&self) -> Result<Vec<Entry>> {
        self.tables.entries().await
    }

    async fn put_entry(&self, entry: &Entry) -> Result<()> {
        place(&self.left)?;
        self.tables.put_entry(entry).await?;
        place(&self.left)
    }

    async fn raw_clicks(&self, number: u64) -> Result<StepRows<RawRow>> {
        self.rows(self.tables.raw_clicks(number).await?)
    }

    async fn quarantine(&self, number: u64) -> Result<StepRows<Quarantined>> {
        self.rows(self.tables.quarantine(number).await?)
    }

    async fn click_corrections(&self, number: u64) -> Result<StepRows<Correction>> {
        self.rows(self.tables.click_corrections(number).await?)
    }

    async fn sum_corrections(&self, number: u64) -> Result<()> {
        place(&self.left)?;
        self.tables.sum_corrections(number).await?;
        place(&self.left)
    }

    async fn clicks_by_minute(&self, number: u64) -> Result<StepRows<Count>> {
        self.rows(self.tables.clicks_by_minute(number).await?)
    }

    async fn roll_up(&self, number: u64, from: Minute, through: Minute) -> Result<()> {
        place(&self.left)?;
        self.tables.roll_up(number, from, through).await?;
        place(&self.left)
    }

    async fn abandon(&self, number: u64) -> Result<()> {
        place(&self.left)?;
        self.tables.abandon(number).await?;
        place(&self.left)
    }

    async fn tidy(&self, from: Minute, through: Minute) -> Result<()> {
        place(&self.left)?;
        self.tables.tidy(from, through).await?;
        place(&self.left)
    }

    async fn billable(&self, minutes: Range<Minute>, before_time: Millis, before: &Offsets) -> Result<Vec<Billable>> {
        let mut rows = self.tables.billable(minutes, before_time, before).await?;
        if self.forgets {
            rows.clear();
        }
        Ok(rows)
    }

    async fn claimants(&self, log_id: LogId, partition: Partition, offsets: Range<Offset>) -> Result<Vec<Claimant>> {
        self.tables.claimants(log_id, partition, offsets).await
    }

    async fn known(&self, click_id: &str, impression_id: &str) -> Result<Known> {
        self.tables.known(click_id, impression_id).await
    }

    async fn view(&self, last: u64) -> Result<Arc<dyn View>> {
        self.tables.view(last).await
    }

    fn publishes(&self) -> bool {
        self.tables.publishes()
    }

    async fn publish(&self, counts: &Provisional) -> Result<()> {
        place(&self.left)?;
        self.tables.publish(counts).await?;
        place(&self.left)
    }
}

/// Opens the world of a site on tables that die at the k-th place.
pub async fn dying(site: &Site, now: Millis, places: i64) -> (World, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(places));
    let clock = Arc::new(click::ManualClock::new(now));
    let warehouse = dying_tables(site, &clock, left.clone(), false).await;
    let log = World::open_log(site.path(), &clock);
    (World::with(site, clock, log, warehouse).await, left)
}

pub async fn dying_tables(
    site: &Site,
    clock: &Arc<click::ManualClock>,
    left: Arc<AtomicI64>,
    forgets: bool,
) -> Warehouse {
    let tables = site.backend().await.unwrap();
    let backend = Arc::new(Dying { tables, left, forgets });
    Warehouse::open_on(backend, settings(), clock.clone()).await.unwrap()
}
