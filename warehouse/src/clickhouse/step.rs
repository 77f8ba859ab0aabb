//! The steps of a closing: rows of one table, in blocks, and a note that all of them are there.

use super::block::{Block, Encode};
use super::server::Server;
use crate::backend::Rows;
use crate::error::{Error, Result};
use async_trait::async_trait;
use std::marker::PhantomData;
use xxhash_rust::xxh3::xxh3_128;

/// A block is sent when it has so many rows or bytes. Far below where a server would cut it in two.
const BLOCK_ROWS: u64 = 65_536;
const BLOCK_BYTES: usize = 16 << 20;

/// Whether a step was done, by the note of its end.
pub(super) async fn is_done(server: &Server, number: u64, step: &str) -> Result<bool> {
    let noted = format!("SELECT count() AS answer FROM closing_steps WHERE number = {number} AND step = '{step}'");
    Ok(server.number(&noted, &[]).await? > 0)
}

/// Notes that a step was done. Noted twice it is noted.
pub(super) async fn note_done(server: &Server, number: u64, step: &str) -> Result<()> {
    let note = format!("INSERT INTO closing_steps (number, step) SELECT {number}, '{step}'");
    server.insert_selected(&note, &[], &format!("{number} {step}")).await
}

/// The rows of one step.
pub(super) struct BlockRows<T> {
    server: Server,
    number: u64,
    block: Block,
    /// What was sent before `block`.
    sent: Block,
    rows: PhantomData<fn(T)>,
}

impl<T: Encode> BlockRows<T> {
    pub fn new(server: Server, number: u64) -> Self {
        BlockRows { server, number, block: Block::default(), sent: Block::default(), rows: PhantomData }
    }

    async fn send(&mut self) -> Result<()> {
        let block = std::mem::take(&mut self.block);
        if block.rows() == 0 {
            return Ok(());
        }
        self.sent.count(&block);
        let token = token(self.number, block.bytes());
        let columns = format!("{}, closing", T::COLUMNS);
        self.server.insert(T::TABLE, &columns, block.into_bytes(), &token).await
    }
}

/// Equal tokens mean equal rows. A second try may cut its blocks in another way, as rows come in: then the server
/// takes them, and reads count each row once all the same.
pub(super) fn token(number: u64, rows: &[u8]) -> String {
    format!("{number}:{:032x}", xxh3_128(rows))
}

#[async_trait]
impl<T: Encode> Rows<T> for BlockRows<T> {
    async fn write(&mut self, rows: &[T]) -> Result<()> {
        for row in rows {
            self.block.push(row, self.number);
            if self.block.rows() >= BLOCK_ROWS || self.block.bytes().len() >= BLOCK_BYTES {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Counts what the table has of this closing before it is noted as done.
    async fn commit(mut self: Box<Self>) -> Result<()> {
        self.send().await?;
        let (number, sent) = (self.number, self.sent.rows());
        if let Some((first, last)) = self.sent.times() {
            let (table, column) = (T::TABLE, T::TIME_COLUMN);
            let (first, last) = (super::time(first), super::time(last));
            let count = format!(
                "SELECT count() AS answer FROM {table} FINAL \
                 WHERE closing = {number} AND {column} BETWEEN {first} AND {last}"
            );
            let found = self.server.number(&count, &[]).await?;
            if found != sent {
                let what = format!("table {table} has {found} rows of it, and {sent} were written");
                return Err(Error::Contradiction { number, what });
            }
        }
        note_done(&self.server, number, T::TABLE).await
    }
}
