//! Reports and recounts, as SQL. Numbers and times are written out; texts are places (`?`) that the client fills,
//! escaped.

use super::provisional::Publication;
use super::server::Server;
use super::time;
use crate::backend::{Answer, Billable, Known, Pending};
use crate::cover::cover;
use crate::error::Result;
use crate::report::{Order, ReportQuery, ReportRow, TimeUnit};
use crate::rows::Count;
use click::{Dimensions, Millis, Minute, Offsets};
use clickhouse::Row;
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;

/// The five dimensions, as columns.
const DIMENSIONS: &str = "ad_id, campaign_id, publisher_id, country, device";

/// A table of counts.
pub(super) struct Counts {
    pub table: &'static str,
    /// The column that says when.
    time: &'static str,
    clicks: &'static str,
    /// Minutes that a row sums up.
    minutes: i64,
}

impl Counts {
    const fn new(table: &'static str, time: &'static str, clicks: &'static str, minutes: i64) -> Self {
        Counts { table, time, clicks, minutes }
    }

    /// The start of the row's stretch of time that contains the minute.
    pub fn floor(&self, minute: Minute) -> Minute {
        Minute::from_number(minute.number().div_euclid(self.minutes) * self.minutes)
    }
}

/// Minutes of the tables of counts and sums, from coarse to fine.
const UNITS: [i64; 3] = [24 * 60, 15, 1];
/// Counts of final minutes.
pub(super) const COUNTS: [Counts; 3] = [
    Counts::new("clicks_by_day", "day", "clicks", UNITS[0]),
    Counts::new("clicks_by_quarter_hour", "quarter_hour", "clicks", UNITS[1]),
    Counts::new("clicks_by_minute", "minute", "clicks", UNITS[2]),
];
/// Sums of the corrections of each closing.
pub(super) const CORRECTIONS: [Counts; 3] = [
    Counts::new("corrections_by_day", "day", "delta", UNITS[0]),
    Counts::new("corrections_by_quarter_hour", "quarter_hour", "delta", UNITS[1]),
    Counts::new("corrections_by_minute", "minute", "delta", UNITS[2]),
];
pub(super) const CLICK_CORRECTIONS: Counts = Counts::new("click_corrections", "minute", "delta", 1);
const PROVISIONAL: Counts = Counts::new("provisional", "minute", "clicks", 1);

/// Lets rows count that a closing up to this one wrote, but for closings that were given up.
fn counted(last: u64) -> String {
    format!("closing <= {last} AND closing NOT IN (SELECT number FROM abandoned_closings)")
}

/// The start, in milliseconds, of the stretch of so many minutes that contains the time, from 1970 on.
fn start_ms(minutes: i64, column: &str) -> String {
    let unit = minutes * Minute::MS;
    format!("intDiv(toUnixTimestamp64Milli({column}), {unit}) * {unit}")
}

fn between(column: &str, from: Minute, to: Minute) -> String {
    format!("{column} >= {} AND {column} < {}", time(from.start()), time(to.start()))
}

/// The counts that are not in the tables of closings.
pub(super) enum Open<'a> {
    /// Of this process.
    Pending(&'a [Pending]),
    /// Of the loader, from the tables.
    Published(&'a Publication),
}

/// A statement in the making, and the texts of its places in their order.
#[derive(Default)]
struct Sql {
    parts: Vec<String>,
    texts: Vec<String>,
}

impl Sql {
    /// Adds rows of one table, in the columns of the query, `clicks` and `pending`.
    fn part(&mut self, query: &ReportQuery, counts: &Counts, range: (Minute, Minute), rows: &str, pending: bool) {
        let Counts { table, time, clicks, .. } = counts;
        let mut wanted = format!("{} AND {rows}", between(time, range.0, range.1));
        for (dimension, allowed) in &query.filters {
            if allowed.is_empty() {
                wanted.push_str(" AND 0");
                continue;
            }
            let places = vec!["?"; allowed.len()].join(", ");
            wanted.push_str(&format!(" AND {} IN ({places})", dimension.column()));
            self.texts.extend(allowed.iter().cloned());
        }
        let start = query.time.map_or("toInt64(0)".to_string(), |unit| start_ms(unit.minutes(), time));
        let mut columns = vec![format!("{start} AS at")];
        let values = query.dimensions.iter().enumerate();
        columns.extend(values.map(|(index, dimension)| format!("CAST({}, 'String') AS v{index}", dimension.column())));
        columns.push(format!("{clicks} AS counted"));
        columns.push(format!("{} AS pending", if pending { *clicks } else { "toInt64(0)" }));
        self.parts.push(format!("SELECT {} FROM {table} FINAL WHERE {wanted}", columns.join(", ")));
    }

    /// Adds counts that are in memory, as a text of values separated by tabs.
    fn pending(&mut self, query: &ReportQuery, pending: &[Pending]) {
        if pending.is_empty() {
            return;
        }
        let values = (0..query.dimensions.len()).map(|index| format!("v{index}"));
        let columns: Vec<String> = std::iter::once("at".to_string()).chain(values).collect();
        let mut structure = vec!["at Int64".to_string()];
        structure.extend(columns[1..].iter().map(|column| format!("{column} String")));
        structure.push("counted Int64".to_string());
        let mut rows = String::new();
        for row in pending {
            rows.push_str(&row.time.get().to_string());
            for value in &row.values {
                rows.push('\t');
                rows.push_str(&value.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n"));
            }
            rows.push_str(&format!("\t{}\n", row.clicks));
        }
        let (columns, structure) = (columns.join(", "), structure.join(", "));
        self.parts.push(format!("SELECT {columns}, counted, counted AS pending FROM format(TSV, '{structure}', ?)"));
        self.texts.push(rows);
    }

    /// Sums all parts up, in order, with the sums of all rows in each row.
    fn summed(&self, query: &ReportQuery) -> String {
        let values: Vec<String> = (0..query.dimensions.len()).map(|index| format!("v{index}")).collect();
        let groups = std::iter::once("at").chain(values.iter().map(String::as_str)).collect::<Vec<_>>().join(", ");
        let order = match query.order {
            Order::Columns => "at, texts",
            Order::ClicksDescending => "clicks DESC, at, texts",
        };
        let (values, parts) = (values.join(", "), self.parts.join(" UNION ALL "));
        // The sums are in a row, so there has to be one.
        let limit = query.limit.max(1);
        format!(
            "SELECT at, texts, clicks, provisional, sum(clicks) OVER () AS all_clicks, \
             sum(provisional) OVER () AS all_provisional, count() OVER () AS all_rows \
             FROM (SELECT at, CAST([{values}], 'Array(String)') AS texts, sum(counted) AS clicks, \
             sum(pending) AS provisional FROM ({parts}) GROUP BY {groups}) ORDER BY {order} LIMIT {limit}"
        )
    }
}

#[derive(Row, Deserialize)]
struct GroupRow {
    at: i64,
    texts: Vec<String>,
    clicks: i64,
    provisional: i64,
    all_clicks: i64,
    all_provisional: i64,
    all_rows: u64,
}

/// Answers from closed minutes before `through`, as closings up to `last` left them, and from what is open.
pub(super) async fn report(
    server: &Server,
    query: &ReportQuery,
    last: u64,
    through: Minute,
    open: Open<'_>,
) -> Result<Answer> {
    let (from, to) = (query.from.minute(), query.to.minute());
    // Tables of longer units than the query's cannot answer.
    let coarsest = match query.time {
        Some(TimeUnit::Minute) => 2,
        Some(TimeUnit::Hour) => 1,
        Some(TimeUnit::Day) | None => 0,
    };
    let mut sql = Sql::default();
    let final_rows = counted(last);
    // A correction may be about a minute that is not final yet.
    for (tables, to) in [(&COUNTS, to.min(through)), (&CORRECTIONS, to)] {
        for (unit, from, to) in cover(from, to, &UNITS[coarsest..]) {
            for counts in tables.iter().filter(|counts| counts.minutes == unit) {
                sql.part(query, counts, (from, to), &final_rows, false);
            }
        }
    }
    match open {
        Open::Pending(pending) => sql.pending(query, pending),
        Open::Published(publication) => {
            sql.texts.push(publication.loader.clone());
            let rows = format!("epoch = {} AND sequence <= {} AND loader = ?", publication.epoch, publication.sequence);
            sql.part(query, &PROVISIONAL, (from, to), &rows, true);
        }
    }
    // A stretch without minutes has no parts.
    let rows = match sql.parts.is_empty() {
        true => Vec::new(),
        false => server.rows::<GroupRow>(&sql.summed(query), &sql.texts).await?,
    };
    Ok(answer(query, through, rows))
}

fn answer(query: &ReportQuery, through: Minute, rows: Vec<GroupRow>) -> Answer {
    let first = rows.first();
    let (clicks, provisional_clicks) = first.map_or((0, 0), |row| (row.all_clicks, row.all_provisional));
    let all_rows = first.map_or(0, |row| row.all_rows);
    let row = |row: GroupRow| {
        let time = query.time.map(|unit| (unit, Millis::new(row.at)));
        let end = time.map_or(query.to, |(unit, start)| start.plus(unit.minutes() * Minute::MS).min(query.to));
        ReportRow {
            time: time.map(|(_, start)| start),
            values: row.texts.into_iter().map(Arc::from).collect(),
            clicks: row.clicks,
            provisional: end > through.start() || row.provisional != 0,
        }
    };
    let rows: Vec<ReportRow> = rows.into_iter().take(query.limit).map(row).collect();
    Answer { truncated: (rows.len() as u64) < all_rows, rows, clicks, provisional_clicks }
}

/// What a step sums up: rows of the source, into whole units of the target from `from` to `to`.
pub(super) struct Sums<'a> {
    pub number: u64,
    pub source: &'a Counts,
    pub target: &'a Counts,
    pub from: Minute,
    pub to: Minute,
}

/// Sums a finer table up, as rows of a closing. Counts are those of all closings, corrections those of this one.
pub(super) async fn sum_up(server: &Server, sums: &Sums<'_>) -> Result<()> {
    let Sums { number, source, target, from, to } = *sums;
    let own = format!("closing = {number}");
    let rows = if source.table == CLICK_CORRECTIONS.table { own.clone() } else { counted(number) };
    let start = start_ms(target.minutes, source.time);
    let insert = format!(
        "INSERT INTO {} ({}, {DIMENSIONS}, {}, closing) \
         SELECT fromUnixTimestamp64Milli({start}, 'UTC') AS start, {DIMENSIONS}, sum({}), {number} \
         FROM {} FINAL WHERE {} AND {rows} GROUP BY start, {DIMENSIONS}",
        target.table,
        target.time,
        target.clicks,
        source.clicks,
        source.table,
        between(source.time, from, to)
    );
    // The groups come in any order, so no second try has the same blocks: each has a token of its own.
    server.insert_selected(&insert, &[], &uuid::Uuid::new_v4().to_string()).await?;
    let sum = |counts: &Counts, rows: &str| {
        let Counts { table, time, clicks, .. } = counts;
        format!("SELECT sum({clicks}) FROM {table} FINAL WHERE {} AND {rows}", between(time, from, to))
    };
    let differs = format!("SELECT toUInt64(ifNull(({}) != ({}), 1)) AS answer", sum(target, &own), sum(source, &rows));
    match server.number(&differs, &[]).await? {
        0 => Ok(()),
        _ => {
            let what = format!("the sums in {} are not those of {}", target.table, source.table);
            Err(crate::Error::Contradiction { number, what })
        }
    }
}

#[derive(Row, Deserialize)]
struct CorrectedRow {
    rows: u64,
    first: i64,
    last: i64,
}

/// The stretch of minutes that a closing corrects, if it does.
pub(super) async fn corrected(server: &Server, number: u64) -> Result<Option<(Minute, Minute)>> {
    let statement = format!(
        "SELECT count() AS rows, toUnixTimestamp64Milli(min(minute)) AS first, \
         toUnixTimestamp64Milli(max(minute)) AS last FROM click_corrections WHERE closing = {number}"
    );
    let rows = server.rows::<CorrectedRow>(&statement, &[]).await?;
    let stretch = |row: CorrectedRow| (Millis::new(row.first).minute(), Millis::new(row.last).minute().next());
    Ok(rows.into_iter().find(|row| row.rows > 0).map(stretch))
}

#[derive(Row, Deserialize)]
struct BillableRow {
    minute: i64,
    version: i64,
    texts: Vec<String>,
    clicks: u64,
}

/// What the raw rows say of a click.
pub(super) async fn known(server: &Server, click_id: &str, impression_id: &str) -> Result<Known> {
    let records = [
        ("click_id = ?", click_id, Known::Recorded),
        ("impression_id = ? AND verdict IN ('billable', 'late')", impression_id, Known::Billed),
    ];
    for (wanted, id, known) in records {
        let statement = format!(
            "SELECT count() AS answer FROM raw_clicks \
             WHERE {wanted} AND closing NOT IN (SELECT number FROM abandoned_closings)"
        );
        if server.number(&statement, &[id.to_string()]).await? > 0 {
            return Ok(known);
        }
    }
    Ok(Known::Unknown)
}

/// Counts billable raw rows.
pub(super) async fn billable(
    server: &Server,
    minutes: Range<Minute>,
    appended_before: Millis,
    before: &Offsets,
) -> Result<Vec<Billable>> {
    let of_partition = |(partition, end)| format!("(partition = {partition} AND offset < {end})");
    let before: Vec<String> = before.iter().map(of_partition).collect();
    let before = if before.is_empty() { "0".to_string() } else { before.join(" OR ") };
    let statement = format!(
        "SELECT {} AS minute, version, {} AS texts, count() AS clicks \
         FROM raw_clicks FINAL WHERE verdict = 'billable' AND appended_at >= {} AND appended_at < {} AND {} \
         AND ({before}) AND closing NOT IN (SELECT number FROM abandoned_closings) GROUP BY minute, version, texts",
        start_ms(1, CLICKED_AT),
        texts(),
        time(minutes.start.start()),
        time(appended_before),
        between(CLICKED_AT, minutes.start, minutes.end),
    );
    let rows = server.rows::<BillableRow>(&statement, &[]).await?;
    let billable = |row: BillableRow| {
        let dimensions = dimensions(row.texts).map_err(|why| server.error(&statement, why))?;
        let minute = Millis::new(row.minute).minute();
        let clicks = i64::try_from(row.clicks).unwrap_or(i64::MAX);
        Ok(Billable { version: row.version, count: Count { minute, dimensions, clicks } })
    };
    rows.into_iter().map(billable).collect()
}

/// `LEAST(timestamp, appended_at)`, as the pipelines have it.
pub(super) const CLICKED_AT: &str = "least(ifNull(timestamp, appended_at), appended_at)";

/// The dimensions of a raw row, as one column that [`dimensions`] takes.
pub(super) fn texts() -> String {
    let texts = Dimensions::NAMES.map(|name| format!("ifNull({name}, '')"));
    format!("CAST([{}], 'Array(String)')", texts.join(", "))
}

/// # Errors
/// If it is not as [`texts`] says.
pub(super) fn dimensions(texts: Vec<String>) -> std::result::Result<Dimensions, String> {
    let texts = <[String; 5]>::try_from(texts);
    let texts = texts.map_err(|texts| format!("{} dimensions, where there are five", texts.len()))?;
    let [ad_id, campaign_id, publisher_id, country, device] = texts.map(Arc::from);
    Ok(Dimensions { ad_id, campaign_id, publisher_id, country, device })
}
