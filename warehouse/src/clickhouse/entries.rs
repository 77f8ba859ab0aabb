//! The sequence of entries. ClickHouse has no compare-and-set; an entry is put by an insert that the server makes only
//! if there is none of its number, with a token of the number, so that of two at the same moment it takes one. Then it
//! is read back whose it is. `ORDER BY ALL` tells the server that what is selected comes in one order, without which some
//! versions look at no token.
//!
//! Either alone would not do: two inserts at one moment both see that there is none, and tokens are forgotten after
//! some inserts, or when the power goes. An insert that arrives after minutes or years finds the number taken. That two
//! entries have one number all the same cannot come from this code; it is refused, never resolved.

use super::server::Server;
use super::time;
use crate::error::{Error, Result};
use crate::sequence::{Entry, Kind};
use click::Millis;
use clickhouse::Row;
use serde::Deserialize;
use std::collections::BTreeSet;

const TABLE: &str = "closings";

/// The kinds of entries that count.
const COUNT: &str = "('deployment', 'closing', 'repair')";

#[derive(Row, Deserialize)]
struct EntryRow {
    number: u64,
    kind: String,
    through_ms: i64,
    version: i64,
    log_id: String,
    positions: String,
    result_positions: String,
    digest: String,
    totals: String,
    quarantined: String,
    finalized_at_ms: i64,
}

#[derive(Row, Deserialize)]
struct Writer {
    writer: String,
}

/// A deployment, a closing and a repair share one sequence; what began has the number that it will have at its end.
fn kinds(kind: Kind) -> &'static str {
    match kind {
        Kind::Begun | Kind::RepairBegun => "('begun', 'repair_begun')",
        Kind::Deployment | Kind::Closing | Kind::Repair => COUNT,
    }
}

/// All deployments, the last two closings, and what began after them.
pub(super) async fn entries(server: &Server) -> Result<Vec<Entry>> {
    let rows = server
        .rows::<EntryRow>(
            &format!(
                "SELECT number, toString(kind) AS kind, toUnixTimestamp64Milli(through) AS through_ms, version, \
             toString(log_id) AS log_id, positions, result_positions, digest, totals, quarantined, \
             toUnixTimestamp64Milli(finalized_at) AS finalized_at_ms \
             FROM closings WHERE kind = 'deployment' \
             OR number + 1 >= (SELECT max(number) FROM closings WHERE kind IN {COUNT}) \
             ORDER BY number"
            ),
            &[],
        )
        .await?;
    let mut entries = Vec::new();
    let mut seen = BTreeSet::new();
    for row in rows {
        let entry = row.entry().map_err(|what| Error::Table { table: TABLE, what })?;
        if !seen.insert((kinds(entry.kind), entry.number)) {
            return Err(twice(entry.number));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn twice(number: u64) -> Error {
    Error::Table { table: TABLE, what: format!("entry {number} is there twice, written by something else than Tally") }
}

impl EntryRow {
    fn entry(self) -> std::result::Result<Entry, String> {
        let number = self.number;
        let json = |column: &str, error: serde_json::Error| format!("entry {number}, column {column}: {error}");
        Ok(Entry {
            number,
            kind: serde_json::from_value(self.kind.into()).map_err(|error| json("kind", error))?,
            through: Millis::new(self.through_ms).minute(),
            log_id: self.log_id.parse().map_err(|error: click::Invalid| format!("entry {number}: {error}"))?,
            positions: serde_json::from_str(&self.positions).map_err(|error| json("positions", error))?,
            result_positions: serde_json::from_str(&self.result_positions)
                .map_err(|error| json("result_positions", error))?,
            version: self.version,
            digest: self.digest,
            totals: self.totals,
            quarantined: serde_json::from_str(&self.quarantined).map_err(|error| json("quarantined", error))?,
            finalized_at: Millis::new(self.finalized_at_ms),
        })
    }
}

/// Puts an entry if its number is free, else fails with [`Taken`](Error::Taken).
pub(super) async fn put(server: &Server, entry: &Entry) -> Result<()> {
    let (number, kinds) = (entry.number, kinds(entry.kind));
    let writer = uuid::Uuid::new_v4().to_string();
    let json = |text: serde_json::Result<String>| {
        text.map_err(|error| Error::Table { table: TABLE, what: format!("entry {number}: {error}") })
    };
    let texts = [
        entry.log_id.to_string(),
        json(serde_json::to_string(&entry.positions))?,
        json(serde_json::to_string(&entry.result_positions))?,
        entry.digest.clone(),
        entry.totals.clone(),
        json(serde_json::to_string(&entry.quarantined))?,
        writer.clone(),
    ];
    let (kind, through, version) = (entry.kind.as_str(), time(entry.through.start()), entry.version);
    let finalized_at = time(entry.finalized_at);
    let insert = format!(
        "INSERT INTO closings (number, kind, through, version, finalized_at, log_id, positions, result_positions, \
         digest, totals, quarantined, writer) \
         SELECT {number}, '{kind}', {through}, {version}, {finalized_at}, ?, ?, ?, ?, ?, ?, ? \
         WHERE (SELECT count() FROM closings WHERE number = {number} AND kind IN {kinds}) = 0 \
         ORDER BY ALL"
    );
    let inserted = server.insert_selected(&insert, &texts, &format!("{number} {kinds}")).await;
    // Also an insert that failed may have been made: who it was is read back in any case.
    let read = format!("SELECT writer FROM closings WHERE number = {number} AND kind IN {kinds}");
    match (server.rows::<Writer>(&read, &[]).await, inserted) {
        (Ok(rows), inserted) => match (rows.as_slice(), inserted) {
            ([row], _) if row.writer == writer => Ok(()),
            ([_], _) => Err(Error::Taken { table: TABLE, number }),
            ([], Ok(())) => {
                let what = format!("entry {number} was not taken, and nobody else's is there; try again later");
                Err(Error::Table { table: TABLE, what })
            }
            ([], Err(error)) => Err(error),
            _ => Err(twice(number)),
        },
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
    }
}
