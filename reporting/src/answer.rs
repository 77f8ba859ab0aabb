//! A report as JSON.

use crate::columns::{key, parameter, time_text, unit_name};
use click::Millis;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use warehouse::report::{Order, Report, ReportQuery, ReportRow};

/// The body of an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer<'a> {
    rows: Rows<'a>,
    totals: Totals,
    /// There were more rows than `limit`; the totals count those too.
    truncated: bool,
    /// Minutes before this are final. Always the start of a minute.
    complete_through: String,
    /// When the provisional counts were last brought up to date.
    data_last_refreshed: Millis,
    query: Query<'a>,
    /// Reserved for answers in several pages: always null, all rows are in this one.
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    clicks: i64,
    provisional_clicks: i64,
}

/// The query as it was understood, in the words of the request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Query<'a> {
    from: String,
    to: String,
    group_by: Vec<&'static str>,
    filters: Filters<'a>,
    order_by: &'static str,
    limit: usize,
}

impl<'a> Answer<'a> {
    pub fn new(query: &'a ReportQuery, report: &'a Report) -> Self {
        Answer {
            rows: Rows { query, report },
            totals: Totals { clicks: report.clicks, provisional_clicks: report.provisional_clicks },
            truncated: report.truncated,
            complete_through: report.complete_through.minute().to_string(),
            data_last_refreshed: report.refreshed_at,
            query: Query {
                from: query.from.minute().to_string(),
                to: query.to.minute().to_string(),
                group_by: query
                    .time
                    .map(unit_name)
                    .into_iter()
                    .chain(query.dimensions.iter().map(|dimension| parameter(*dimension)))
                    .collect(),
                filters: Filters(query),
                order_by: match query.order {
                    Order::Columns => "time",
                    Order::ClicksDescending => "-clicks",
                },
                limit: query.limit,
            },
            next_cursor: None,
        }
    }
}

struct Filters<'a>(&'a ReportQuery);

impl Serialize for Filters<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.filters.iter().map(|(dimension, values)| (parameter(*dimension), values)))
    }
}

struct Rows<'a> {
    query: &'a ReportQuery,
    report: &'a Report,
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Rows { query, report } = *self;
        // A report without columns is one row, also when there was nothing to count.
        let nothing = (report.rows.is_empty() && query.time.is_none() && query.dimensions.is_empty()).then(|| {
            let provisional = query.to > report.complete_through;
            ReportRow { time: None, values: Vec::new(), clicks: report.clicks, provisional }
        });
        let rows = report.rows.iter().chain(&nothing);
        let mut list = to.serialize_seq(Some(report.rows.len() + usize::from(nothing.is_some())))?;
        for row in rows {
            list.serialize_element(&Row { query, row })?;
        }
        list.end()
    }
}

/// A row, whose keys depend on the query: the time, the dimensions in their order, then the figures.
struct Row<'a> {
    query: &'a ReportQuery,
    row: &'a ReportRow,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        if let (Some(unit), Some(start)) = (self.query.time, self.row.time) {
            map.serialize_entry(unit_name(unit), &time_text(unit, start))?;
        }
        for (dimension, value) in self.query.dimensions.iter().zip(&self.row.values) {
            map.serialize_entry(key(*dimension), value.as_ref())?;
        }
        map.serialize_entry("clicks", &self.row.clicks)?;
        map.serialize_entry("provisional", &self.row.provisional)?;
        map.end()
    }
}
