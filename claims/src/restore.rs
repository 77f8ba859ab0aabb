//! Claims that Redis lost, put back: before the newest version's start from final rows, as they were billed and never by
//! judging again; from there on from the log, as they were made.

use crate::claim_click::{Asked, BATCH_MAX, STORE, bucket, claim, claim_script};
use crate::{Claims, ClaimsError, Deployment};
use click::{Millis, Offset, Offsets, Partition, Position};
use futures::{Stream, StreamExt, TryStreamExt};
use redis::Script;
use std::fmt;
use std::pin::pin;

/// A final raw row whose verdict is billable or late: it holds the claim of its impression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billed {
    /// As `claim_click` was given it.
    pub impression_id: String,
    pub position: Position,
    pub appended_at: Millis,
    /// The pipeline version that judged it.
    pub version: i64,
}

/// A record of the log as the newest version judges it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// The impression that it claims; none for a record that is not billed whatever was claimed (a heartbeat, a bot).
    pub claim_key: Option<String>,
    pub partition: Partition,
    pub offset: Offset,
    pub appended_at: Millis,
}

/// Where claims are restored from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    FinalRows,
    Log,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::FinalRows => "final rows",
            Source::Log => "the log",
        })
    }
}

/// What a rebuild did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Final rows whose claims were not there, and those that were read.
    pub restored: u64,
    pub rows: u64,
    /// Records of the log that hold the claim of their impression, and those that were read.
    pub claimed: u64,
    pub records: u64,
    /// By partition the first offset that was not read.
    pub next: Offsets,
}

// ARGV: seven for each claim: impression, bucket, log id, partition, offset, append time, version. Answers how many were
// not there.
const RESTORE: &str = r"
local restored = 0
for i = 1, #ARGV, 7 do
  local impression, bucket, log = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local partition, offset, at, version = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
  local is_held, held_in_own = false, ''
  for _, span in ipairs(redis.call('SMEMBERS', 'claims:spans')) do
    local held = redis.call('HGET', key_of(span, bucket), impression) or ''
    if span == span_of(at) then held_in_own = held end
    for from = 1, #held, BYTES do
      local held_log, held_partition, held_offset = struct.unpack(FORMAT, held, from)
      if held_log == log_number(log) and held_partition == partition and held_offset == offset then is_held = true end
    end
  end
  if not is_held then
    add(impression, bucket, held_in_own, log, partition, offset, at, version)
    restored = restored + 1
  end
end
return restored
";

const DROP: &str = "return drop_some()";

// Claims are complete from an append time on, and up to the newest version's start. Those after it may be there in part
// only, so they count as not made until the log has been read up to them; nor is anything dropped before that.
// ARGV: append time, log id, then partition and first offset by turns.
const RESTORED: &str = r"
redis.call('SET', 'claims:dropped_ms', ARGV[1])
for i = 3, #ARGV, 2 do
  redis.call('HSET', 'claims:through', ARGV[2]..':'..ARGV[i], text(tonumber(ARGV[i + 1]) - 1)..':0')
end
return 1
";

impl Claims {
    /// Restores claims that Redis lost, by a failover to an older copy or a flush, and those of records that the engine
    /// skipped. `claim_click`, which waits meanwhile, goes on by itself as soon as it finds what it needs. What is there
    /// already stays; a rebuild that failed half-way is made again.
    ///
    /// - `deployments`, `horizon_ms`: as for [`Claims::record`], which is part of it. The last is the newest version.
    /// - `rows`: the final raw rows before the newest version's start whose verdict is billable or late, in any order:
    ///   all that were appended at or after `from`. For a start whose first record was appended at T that must reach
    ///   back to T less the horizon.
    /// - `log`: every record from the newest version's start on, as that version judges it, in the order of each
    ///   partition, at least as far as the engine came. Further is harmless: who asks for a position later gets the
    ///   answer that it has.
    ///
    /// # Errors
    /// If Redis or one of the sources fails, or the sources are not those of the deployments. Claims that were not
    /// restored are missed as before.
    pub async fn rebuild<E>(
        &mut self,
        deployments: &[Deployment],
        horizon_ms: i64,
        from: Millis,
        rows: impl Stream<Item = Result<Billed, E>>,
        log: impl Stream<Item = Result<LogRecord, E>>,
    ) -> Result<Rebuilt, ClaimsError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let newest = deployments.last().ok_or(ClaimsError::NoDeployment)?;
        self.record(deployments, horizon_ms).await?;
        // A span that is half dropped must not take claims that are dropped with it.
        let drop_some = Script::new(&format!("{STORE}{DROP}"));
        while drop_some.invoke_async::<_, i64>(&mut self.connection).await? == 1 {}

        let mut rebuilt = Rebuilt { next: newest.positions.clone(), ..Rebuilt::default() };
        let before = |row: &Billed| match row.position {
            Position { log_id, partition, offset }
                if log_id == newest.log_id && offset >= newest.positions.get(partition) =>
            {
                let (version, start) = (newest.version, newest.positions.get(partition));
                let what = format!(
                    "a final row at {} is not before version {version}, which starts at offset {start}",
                    row.position
                );
                Err(ClaimsError::Unfit(what))
            }
            _ => Ok(()),
        };
        self.restore_rows(rows, before, &mut rebuilt).await?;
        let restored = Script::new(&format!("{STORE}{RESTORED}"));
        let mut call = restored.prepare_invoke();
        call.arg(from.get()).arg(newest.log_id.to_string());
        for (partition, offset) in newest.positions.iter() {
            call.arg(partition).arg(offset);
        }
        call.invoke_async::<i64>(&mut self.connection).await?;
        self.claim_again(newest, log, &mut rebuilt).await?;
        Ok(rebuilt)
    }

    /// Restores the claims of final rows alone, also of such that the newest version should have judged and did not, and
    /// beside what other clicks on their impressions have claimed since: a repair billed them. Answers how many were not there.
    ///
    /// # Errors
    /// If Redis or the source fails. What came before is restored, and it can be run again.
    pub async fn restore<E>(&mut self, rows: impl Stream<Item = Result<Billed, E>>) -> Result<u64, ClaimsError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut rebuilt = Rebuilt::default();
        self.restore_rows(rows, |_| Ok(()), &mut rebuilt).await?;
        Ok(rebuilt.restored)
    }

    async fn restore_rows<E>(
        &mut self,
        rows: impl Stream<Item = Result<Billed, E>>,
        check: impl Fn(&Billed) -> Result<(), ClaimsError>,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), ClaimsError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let script = Script::new(&format!("{STORE}{RESTORE}"));
        let mut chunks = pin!(rows.map_err(|e| failed(Source::FinalRows, e)).try_chunks(BATCH_MAX));
        while let Some(chunk) = chunks.next().await {
            // What came before the failure is restored when the rebuild is made again.
            let chunk = chunk.map_err(|error| error.1)?;
            let mut call = script.prepare_invoke();
            for row in &chunk {
                check(row)?;
                let Position { log_id, partition, offset } = row.position;
                let impression = &*row.impression_id;
                call.arg(impression).arg(bucket(impression)).arg(log_id.to_string()).arg(partition).arg(offset);
                call.arg(row.appended_at.get()).arg(row.version);
            }
            rebuilt.restored += call.invoke_async::<u64>(&mut self.connection).await?;
            rebuilt.rows += chunk.len() as u64;
        }
        Ok(())
    }

    async fn claim_again<E>(
        &mut self,
        newest: &Deployment,
        log: impl Stream<Item = Result<LogRecord, E>>,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), ClaimsError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (script, log_id) = (claim_script(), newest.log_id.to_string());
        let mut chunks = pin!(log.map_err(|e| failed(Source::Log, e)).try_chunks(BATCH_MAX));
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| error.1)?;
            let mut batch = Vec::with_capacity(chunk.len());
            for record in chunk {
                let next = rebuilt.next.get(record.partition);
                if record.offset < next {
                    return Err(ClaimsError::Unfit(format!(
                        "the log gives partition {} offset {}, and version {} goes on from {next}",
                        record.partition, record.offset, newest.version
                    )));
                }
                rebuilt.next.set(record.partition, record.offset + 1);
                let key = record.claim_key;
                let (partition, offset, appended_ms) = (record.partition, record.offset, record.appended_at.get());
                batch.push(Asked { key, partition, offset, before: None, appended_ms });
            }
            let answers = claim(&mut self.connection, &script, newest.version, &log_id, batch.iter()).await?;
            rebuilt.claimed += answers.iter().filter(|answer| **answer == 1).count() as u64;
            rebuilt.records += batch.len() as u64;
        }
        Ok(())
    }
}

fn failed(from: Source, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClaimsError {
    ClaimsError::Source { from, error: error.into() }
}
