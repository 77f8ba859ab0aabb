//! Counts that are not final yet, for readers in other processes.
//!
//! An epoch begins with all counts of its loader and goes on with changes. A publication says: of this epoch count the
//! changes up to this sequence, beside the closings up to this number. What it names was written before it and is never
//! changed, so whoever reads a publication has all of one moment, in as many statements as it likes. A closing ends the
//! epoch; it is dropped ten minutes after a newer one could be read, which no statement takes.

use super::block::Block;
use super::server::Server;
use super::step::token;
use super::time;
use crate::backend::Provisional;
use crate::error::{Error, Result};
use click::{Millis, Minute};
use clickhouse::Row;
use serde::Deserialize;

/// Counts of one insert.
const BLOCK_ROWS: usize = 65_536;
/// Epochs that are dropped at a time.
const DROPPED_MAX: usize = 100;

/// What readers may see.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(super) struct Publication {
    pub epoch: u64,
    pub loader: String,
    pub sequence: u64,
    /// The last closing that it goes beside.
    pub closing: u64,
    through_ms: i64,
    refreshed_at_ms: i64,
}

impl Publication {
    pub fn through(&self) -> Minute {
        Millis::new(self.through_ms).minute()
    }

    pub fn refreshed_at(&self) -> Millis {
        Millis::new(self.refreshed_at_ms)
    }
}

/// The newest publication, if there is one. Of two loaders the one that closed more is right; the other will stop.
pub(super) async fn newest(server: &Server) -> Result<Option<Publication>> {
    let rows = server
        .rows::<Publication>(
            "SELECT epoch, loader, sequence, closing, toUnixTimestamp64Milli(through) AS through_ms, \
             toUnixTimestamp64Milli(refreshed_at) AS refreshed_at_ms FROM publications \
             ORDER BY closing DESC, epoch DESC, sequence DESC LIMIT 1",
            &[],
        )
        .await?;
    Ok(rows.into_iter().next())
}

/// The publishing side: one loader.
pub(super) struct Publisher {
    /// Tells two loaders apart that take one epoch.
    loader: String,
    /// Epoch and sequence of the last publication; none when the next one has to begin an epoch.
    last: Option<(u64, u64)>,
}

#[derive(Row, Deserialize)]
struct Epoch {
    epoch: u64,
}

impl Publisher {
    pub fn new() -> Self {
        Publisher { loader: uuid::Uuid::new_v4().to_string(), last: None }
    }

    pub async fn publish(&mut self, server: &Server, counts: &Provisional) -> Result<()> {
        // After an error nobody knows what was written: the next publication begins anew.
        let last = self.last.take();
        let (epoch, sequence) = match (counts.whole, last) {
            (true, _) => (server.number("SELECT max(epoch) AS answer FROM publications", &[]).await? + 1, 0),
            (false, Some((epoch, sequence))) => (epoch, sequence + 1),
            (false, None) => {
                let what = "changes of counts that were not published whole".to_string();
                return Err(Error::Table { table: "provisional", what });
            }
        };
        for rows in counts.counts.chunks(BLOCK_ROWS) {
            let mut block = Block::default();
            for count in rows {
                block.unsigned(epoch);
                block.text(&self.loader);
                block.unsigned(sequence);
                block.time(count.minute.start());
                block.dimensions(&count.dimensions);
                block.long(count.clicks);
            }
            let columns = "epoch, loader, sequence, minute, ad_id, campaign_id, publisher_id, country, device, clicks";
            let token = token(epoch, block.bytes());
            server.insert("provisional", columns, block.into_bytes(), &token).await?;
        }
        let (closing, through) = (counts.last, time(counts.through.start()));
        let insert = format!(
            "INSERT INTO publications (epoch, loader, sequence, closing, through, refreshed_at) \
             SELECT {epoch}, ?, {sequence}, {closing}, {through}, {}",
            time(counts.refreshed_at)
        );
        let token = format!("{epoch} {} {sequence}", self.loader);
        server.insert_selected(&insert, std::slice::from_ref(&self.loader), &token).await?;
        self.last = Some((epoch, sequence));
        if counts.whole {
            drop_old(server).await?;
        }
        Ok(())
    }
}

/// Drops epochs that were older, ten minutes ago, than the one that was the newest then.
async fn drop_old(server: &Server) -> Result<()> {
    let old = format!(
        "WITH (SELECT (closing, epoch) FROM publications WHERE published_at < now64(3) - INTERVAL 10 MINUTE \
         ORDER BY closing DESC, epoch DESC LIMIT 1) AS newest \
         SELECT DISTINCT epoch FROM ( \
         SELECT epoch FROM publications WHERE (closing, epoch) < newest \
         UNION ALL SELECT epoch FROM provisional WHERE epoch < newest.2 \
         AND epoch NOT IN (SELECT epoch FROM publications)) ORDER BY epoch LIMIT {DROPPED_MAX}"
    );
    let epochs = server.rows::<Epoch>(&old, &[]).await?;
    if epochs.is_empty() {
        return Ok(());
    }
    let drops: Vec<String> = epochs.iter().map(|row| format!("DROP PARTITION {}", row.epoch)).collect();
    for table in ["publications", "provisional"] {
        server.execute(&format!("ALTER TABLE {table} {}", drops.join(", ")), &[]).await?;
    }
    Ok(())
}
