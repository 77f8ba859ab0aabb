//! The schema: numbered files of statements, each of which does nothing where it was done already.

use super::server::Server;
use crate::error::{Error, Result};

/// The files, from number 1 on. A file that was ever released never changes.
const FILES: [(&str, &str); 1] = [("0001_tables", include_str!("migrations/0001_tables.sql"))];

/// What files were applied. Its rows are few, and a number that is there twice is there.
const APPLIED: &str = "CREATE TABLE IF NOT EXISTS schema_migrations \
     (number UInt64, name String, applied_at DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY number \
     SETTINGS fsync_after_insert = 1, fsync_part_directory = 1";

/// Brings the schema up to date, from nothing or from where an earlier call died. Returns how many files were applied.
pub(super) async fn migrate(server: &Server) -> Result<u64> {
    server.execute_without_database(&format!("CREATE DATABASE IF NOT EXISTS {}", server.database())).await?;
    server.execute(APPLIED, &[]).await?;
    let done = applied(server).await?;
    let newest = FILES.len() as u64;
    if done > newest {
        return Err(newer(server, done, newest));
    }
    for (number, (name, file)) in (1_u64..).zip(FILES).skip(usize::try_from(done).unwrap_or(FILES.len())) {
        for statement in statements(file) {
            server.execute(&statement, &[]).await?;
        }
        let record = format!("INSERT INTO schema_migrations (number, name) SELECT {number}, '{name}'");
        server.insert_selected(&record, &[], &format!("migration {number}")).await?;
        tracing::info!(number, name, database = server.database(), "migrated");
    }
    Ok(newest - done)
}

/// The number of the schema that is there, 0 for none.
pub(super) async fn number(server: &Server) -> Result<u64> {
    let there = format!(
        "SELECT count() AS answer FROM system.tables WHERE database = '{}' AND name = 'schema_migrations'",
        server.database()
    );
    match server.number(&there, &[]).await {
        Ok(0) => Ok(0),
        Ok(_) => applied(server).await,
        // Without the database no query works.
        Err(Error::Statement { what, .. }) if what.contains("UNKNOWN_DATABASE") => Ok(0),
        Err(error) => Err(error),
    }
}

/// Refuses a schema that is not the one this code knows.
pub(super) async fn check(server: &Server) -> Result<()> {
    let (newest, done) = (FILES.len() as u64, number(server).await?);
    if done > newest {
        return Err(newer(server, done, newest));
    }
    if done < newest {
        let what = format!("has schema {done} (0 is none), and {newest} is needed: run `tally load --migrate` once");
        return Err(Error::Schema { database: server.database().to_string(), what });
    }
    Ok(())
}

fn newer(server: &Server, done: u64, newest: u64) -> Error {
    let what =
        format!("has schema {done}, made by a newer version; this one knows up to {newest}: install the newer one");
    Error::Schema { database: server.database().to_string(), what }
}

async fn applied(server: &Server) -> Result<u64> {
    server.number("SELECT max(number) AS answer FROM schema_migrations", &[]).await
}

/// Statements of a file: each ends with a semicolon at the end of a line.
fn statements(file: &str) -> Vec<String> {
    let lines = file.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
    lines
        .split(";\n")
        .map(|text| text.trim_end_matches(';').trim().to_string())
        .filter(|text| !text.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered_and_can_be_applied_again() {
        for (index, (name, file)) in FILES.iter().enumerate() {
            assert!(name.starts_with(&format!("{:04}_", index + 1)), "{name}");
            let statements = statements(file);
            assert!(!statements.is_empty());
            for statement in statements {
                assert!(statement.contains("IF NOT EXISTS") && !statement.contains(';'), "{statement}");
                assert!(!statement.contains('?'), "a place to be filled: {statement}");
            }
        }
    }
}
