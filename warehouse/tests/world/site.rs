//! Where a warehouse keeps its tables: every test runs on each kind.

use super::{copy, settings};
use click::{ManualClock, Millis};
use services::clickhouse::{ClickHouse as Service, Database};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use warehouse::backend::Backend;
use warehouse::clickhouse::{ClickHouse, ServerSettings};
use warehouse::delta::Delta;
use warehouse::{Result, Settings, Warehouse};

/// The kinds of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Delta,
    ClickHouse,
}

impl Kind {
    /// Whether this machine has what it needs; says so if not.
    pub fn is_there(self) -> bool {
        self == Kind::Delta || Service::shared().is_some()
    }
}

/// One test's folder, with the log in it, and its tables, there or in a database. Gone with the last handle.
#[derive(Clone)]
pub struct Site {
    dir: Arc<tempfile::TempDir>,
    database: Option<Arc<Database>>,
}

/// A new site with empty tables.
pub async fn temp(kind: Kind) -> Site {
    let database = match kind {
        Kind::Delta => None,
        Kind::ClickHouse => Some(Arc::new(Database::new(Service::shared().unwrap()))),
    };
    let site = Site { dir: Arc::new(tempfile::tempdir().unwrap()), database };
    if let Some(settings) = site.server() {
        ClickHouse::migrate(&settings).await.unwrap();
    }
    site
}

impl Site {
    pub fn kind(&self) -> Kind {
        if self.database.is_some() { Kind::ClickHouse } else { Kind::Delta }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the tables are, on ClickHouse.
    pub fn server(&self) -> Option<ServerSettings> {
        self.database.as_ref().map(|database| {
            let settings = ServerSettings::new(&database.server.url, &database.name);
            ServerSettings { user: database.server.user.clone(), ..settings }
        })
    }

    /// The tables alone.
    pub async fn backend(&self) -> Result<Arc<dyn Backend>> {
        Ok(match self.server() {
            Some(settings) => Arc::new(ClickHouse::open(&settings).await?),
            None => Arc::new(Delta::open(&self.path().join("warehouse")).await?),
        })
    }

    pub async fn warehouse(&self, clock: &Arc<ManualClock>) -> Result<Warehouse> {
        self.warehouse_with(settings(), clock).await
    }

    pub async fn warehouse_with(&self, settings: Settings, clock: &Arc<ManualClock>) -> Result<Warehouse> {
        match self.kind() {
            Kind::Delta => Warehouse::open(&self.path().join("warehouse"), settings, clock.clone()).await,
            Kind::ClickHouse => Warehouse::open_on(self.backend().await?, settings, clock.clone()).await,
        }
    }

    /// Another site with the same log and the same rows.
    pub async fn copy(&self) -> Site {
        let site = temp(self.kind()).await;
        copy(self.path(), site.path());
        if let (Some(from), Some(to)) = (&self.database, &site.database) {
            for table in tables(from) {
                to.server.query(&format!("INSERT INTO {0}.{table} SELECT * FROM {1}.{table}", to.name, from.name));
            }
        }
        site
    }

    /// Clicks of final minutes and corrections by a unit of time, from the tables of single minutes and corrections.
    pub async fn clicks_by(&self, unit: &str, from: Millis, to: Millis) -> BTreeMap<Millis, i64> {
        let Some(database) = &self.database else { return clicks_in_folder(self.path(), unit, from, to).await };
        let Database { server, name } = &**database;
        let text = server.query(&format!(
            "SELECT toUnixTimestamp(date_trunc('{unit}', toDateTime(minute, 'UTC'))) AS time, sum(clicks) FROM ( \
             SELECT minute, clicks FROM {name}.clicks_by_minute FINAL UNION ALL \
             SELECT minute, delta AS clicks FROM {name}.click_corrections FINAL) \
             WHERE toUnixTimestamp64Milli(minute) >= {} AND toUnixTimestamp64Milli(minute) < {} GROUP BY time",
            from.get(),
            to.get()
        ));
        let row = |line: &str| {
            let (time, clicks) = line.split_once('\t').unwrap();
            (Millis::new(time.parse::<i64>().unwrap() * 1000), clicks.parse().unwrap())
        };
        text.lines().map(row).collect()
    }

    /// All rows of all tables, sorted, without what differs between two runs: times that a clock gave, and closings.
    pub async fn dump(&self) -> BTreeMap<String, Vec<String>> {
        match &self.database {
            Some(database) => dump_database(database),
            None => dump_folder(&self.path().join("warehouse")).await,
        }
    }
}

/// Tables that hold rows of closings, and closings.
fn tables(database: &Database) -> Vec<String> {
    let Database { server, name } = database;
    let names = server.query(&format!(
        "SELECT name FROM system.tables WHERE database = '{name}' AND engine LIKE '%MergeTree' \
         AND name NOT IN ('schema_migrations', 'provisional', 'publications')"
    ));
    names.lines().map(String::from).collect()
}

/// Lines as [`dump_folder`] makes them: a head and a line for each row.
fn dump_database(database: &Database) -> BTreeMap<String, Vec<String>> {
    let Database { server, name } = database;
    let of_table = |table: String| {
        let (columns, rows) = match table.as_str() {
            "closings" => ("* EXCEPT (finalized_at, writer)", "WHERE kind != 'begun'"),
            "closing_steps" => return None,
            table if table.contains("corrections") => ("*", "FINAL"),
            _ => ("* EXCEPT closing", "FINAL"),
        };
        let text = server.query(&format!(
            "SELECT {columns} FROM {name}.{table} {rows} SETTINGS date_time_output_format = 'iso' FORMAT TSVWithNames"
        ));
        let line = |line: &str| format!("| {} |", line.replace('\t', " | ").replace(".000Z", "Z"));
        let mut lines: Vec<String> = text.lines().map(line).collect();
        lines.sort();
        Some((table, lines))
    };
    tables(database).into_iter().filter_map(of_table).collect()
}

async fn dump_folder(warehouse: &Path) -> BTreeMap<String, Vec<String>> {
    use datafusion::prelude::SessionContext;
    let mut tables = BTreeMap::new();
    for entry in std::fs::read_dir(warehouse).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let url = deltalake_core::ensure_table_uri(path.to_str().unwrap()).unwrap();
        let table = deltalake_core::open_table(url).await.unwrap();
        let session = SessionContext::new();
        session.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let except = if name == "closings" { "EXCEPT (finalized_at)" } else { "" };
        let sql = if name == "closings" { "WHERE kind <> 'begun'" } else { "" };
        let frame = session.sql(&format!("SELECT * {except} FROM t {sql}")).await.unwrap();
        let batches = frame.collect().await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        let mut rows: Vec<String> = text.lines().filter(|line| line.starts_with('|')).map(String::from).collect();
        rows.sort();
        tables.insert(name, rows);
    }
    tables
}

async fn clicks_in_folder(site: &Path, unit: &str, from: Millis, to: Millis) -> BTreeMap<Millis, i64> {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
    let session = datafusion::prelude::SessionContext::new();
    for table in ["click_corrections", "clicks_by_minute"] {
        let url = deltalake_core::ensure_table_uri(site.join("warehouse").join(table).to_str().unwrap()).unwrap();
        let table_of = deltalake_core::open_table(url).await.unwrap().table_provider().await.unwrap();
        session.register_table(table, table_of).unwrap();
    }
    let sql = format!(
        "SELECT date_trunc('{unit}', minute) AS time, CAST(sum(clicks) AS BIGINT) AS clicks FROM (
             SELECT minute, clicks FROM clicks_by_minute UNION ALL
             SELECT minute, delta AS clicks FROM click_corrections)
         WHERE minute >= '{from}' AND minute < '{to}' GROUP BY 1"
    );
    let mut rows = BTreeMap::new();
    for batch in session.sql(&sql).await.unwrap().collect().await.unwrap() {
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        let clicks = batch.column(1).as_primitive::<Int64Type>();
        rows.extend((0..batch.num_rows()).map(|row| (Millis::new(times.value(row) / 1000), clicks.value(row))));
    }
    rows
}
