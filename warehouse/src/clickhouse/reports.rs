//! Reports for any number of processes, from the tables alone.

use super::entries;
use super::migrations;
use super::provisional::newest;
use super::query::{Open, report};
use super::server::{Server, ServerSettings};
use crate::error::Result;
use crate::report::{Report, ReportError, ReportQuery, Reports};
use crate::sequence::Sequence;
use async_trait::async_trait;
use click::{Millis, Minute};

/// Answers reports from what a loader, in whatever process, has written. Each report is of one moment: closings, and
/// the counts that its loader had published beside them, together.
#[derive(Clone)]
pub struct ClickHouseReports {
    server: Server,
}

impl ClickHouseReports {
    /// Connects, and refuses a schema that is not the one this code knows.
    pub async fn open(settings: &ServerSettings) -> Result<ClickHouseReports> {
        let server = Server::new(settings)?;
        migrations::check(&server).await?;
        Ok(ClickHouseReports { server })
    }

    async fn answer(&self, query: &ReportQuery) -> Result<Report> {
        let server = &self.server;
        let (through, refreshed_at, answer) = match newest(server).await? {
            Some(publication) => {
                let (last, through) = (publication.closing, publication.through());
                let open = Open::Published(&publication);
                (through, publication.refreshed_at(), report(server, query, last, through, open).await?)
            }
            // Before a loader has published for the first time.
            None => {
                let last = Sequence::of(entries::entries(server).await?).map(|sequence| sequence.last);
                let (number, through, finalized_at) = last
                    .map_or((0, Minute::from_number(0), Millis::default()), |last| {
                        (last.number, last.through, last.finalized_at)
                    });
                (through, finalized_at, report(server, query, number, through, Open::Pending(&[])).await?)
            }
        };
        Ok(Report {
            rows: answer.rows,
            truncated: answer.truncated,
            clicks: answer.clicks,
            provisional_clicks: answer.provisional_clicks,
            complete_through: through.start(),
            refreshed_at,
        })
    }
}

#[async_trait]
impl Reports for ClickHouseReports {
    async fn report(&self, query: &ReportQuery) -> std::result::Result<Report, ReportError> {
        self.answer(query).await.map_err(|error| ReportError(error.to_string()))
    }
}
