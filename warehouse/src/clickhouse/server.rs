//! One ClickHouse server, and how it is spoken to: every statement has a deadline, and an error names it.

use crate::error::{Error, Result};
use clickhouse::{Client, Row, RowOwned, RowRead, query::Query};
use faults::Point;
use std::fmt;
use std::future::Future;
use std::time::Duration;

/// How much longer than the server the client waits: the server's own answer says more.
const GRACE: Duration = Duration::from_secs(5);
/// A statement holds the counts that are not final yet, as one literal.
const QUERY_BYTES_MAX: usize = 64 << 20;
/// As much of a statement as an error shows.
const SHOWN_MAX: usize = 300;

/// Where the tables are.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Of the HTTP interface, such as `http://127.0.0.1:8123`.
    pub url: String,
    /// Letters, digits and underscores, no digit first.
    pub database: String,
    /// The user, and its password; without one the server's default user.
    pub user: Option<(String, String)>,
    /// How long one statement may take.
    pub statement_timeout: Duration,
}

impl ServerSettings {
    /// The default user and a minute for a statement.
    pub fn new(url: &str, database: &str) -> Self {
        let (url, database) = (url.trim_end_matches('/').to_string(), database.to_string());
        ServerSettings { url, database, user: None, statement_timeout: Duration::from_secs(60) }
    }
}

/// Without the password.
impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(user, _)| user);
        f.debug_struct("ServerSettings")
            .field("url", &self.url)
            .field("database", &self.database)
            .field("user", &user)
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// A handle on the server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Server {
    client: Client,
    settings: ServerSettings,
}

impl Server {
    pub fn new(settings: &ServerSettings) -> Result<Server> {
        let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts = settings.database.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let settings = settings.clone();
        tls(&settings.url).map_err(|what| Error::Statement {
            server: format!("{}/{}", settings.url, settings.database),
            statement: "connect".into(),
            what,
        })?;
        let seconds = settings.statement_timeout.as_secs().max(1).to_string();
        let mut client = Client::default()
            .with_url(&settings.url)
            .with_database(&settings.database)
            .with_setting("max_execution_time", seconds)
            // An answer comes whole, or as an error.
            .with_setting("wait_end_of_query", "1")
            .with_setting("max_query_size", QUERY_BYTES_MAX.to_string());
        if let Some((user, password)) = &settings.user {
            client = client.with_user(user).with_password(password);
        }
        let server = Server { client, settings };
        if !starts || !server.settings.database.chars().all(named) {
            let what = "a database has a name of letters, digits and underscores, no digit first".to_string();
            return Err(server.error("connect", what));
        }
        Ok(server)
    }

    pub fn database(&self) -> &str {
        &self.settings.database
    }

    /// An error of a statement.
    pub fn error(&self, statement: &str, what: String) -> Error {
        let words = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = words.char_indices().nth(SHOWN_MAX).map_or(words.len(), |(end, _)| end);
        let ServerSettings { url, database, .. } = &self.settings;
        let statement = format!("{}{}", &words[..end], if end < words.len() { "…" } else { "" });
        Error::Statement { server: format!("{url}/{database}"), statement, what: what.trim().to_string() }
    }

    /// Waits for a statement, not longer than it may take.
    async fn within<T>(
        &self,
        statement: &str,
        running: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.settings.statement_timeout + GRACE, running).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.error(statement, with_causes(&error))),
            Err(_) => Err(self.error(statement, format!("no answer within {:?}", self.settings.statement_timeout))),
        }
    }

    /// A statement whose places (`?`) are filled with these texts, escaped.
    fn query(&self, statement: &str, texts: &[String]) -> Query {
        texts.iter().fold(self.client.query(statement), |query, text| query.bind(text))
    }

    pub async fn rows<T: RowOwned + RowRead>(&self, statement: &str, texts: &[String]) -> Result<Vec<T>> {
        // Equal keys are in one partition, since its column follows from the key's.
        let query = self.query(statement, texts).with_setting("do_not_merge_across_partitions_select_final", "1");
        self.within(statement, query.fetch_all()).await
    }

    /// The one number, in column `answer`, that a query has.
    pub async fn number(&self, statement: &str, texts: &[String]) -> Result<u64> {
        let rows = self.rows::<Number>(statement, texts).await?;
        let number = rows.first().map(|row| row.answer);
        number.ok_or_else(|| self.error(statement, "no row, where there always is one".to_string()))
    }

    pub async fn execute(&self, statement: &str, texts: &[String]) -> Result<()> {
        self.within(statement, self.query(statement, texts).execute()).await
    }

    /// The same before there is a database.
    pub async fn execute_without_database(&self, statement: &str) -> Result<()> {
        let query = self.client.clone().with_database("default").query(statement);
        self.within(statement, query.execute()).await
    }

    /// `INSERT … SELECT` that the server leaves out if it has taken an insert with this token already.
    pub async fn insert_selected(&self, statement: &str, texts: &[String], token: &str) -> Result<()> {
        let query = self.query(statement, texts);
        let query = inserting(token).into_iter().fold(query, |query, (name, value)| query.with_setting(name, value));
        self.within(statement, query.execute()).await
    }

    /// Inserts rows in `RowBinary` as one block, which is left out in the same way.
    pub async fn insert(&self, table: &str, columns: &str, rows: bytes::Bytes, token: &str) -> Result<()> {
        let statement = format!("INSERT INTO {table} ({columns}) FORMAT RowBinary");
        let insert = self.client.insert_formatted_with(&statement);
        let mut insert =
            inserting(token).into_iter().fold(insert, |insert, (name, value)| insert.with_setting(name, value));
        faults::at(Point::ClickHouseBefore);
        let sending = async move {
            insert.send(rows).await?;
            insert.end().await
        };
        self.within(&statement, sending).await?;
        faults::at(Point::ClickHouseAfter);
        Ok(())
    }
}

/// Whether this build and this machine can speak to a server of this URL. Without any certificate the client would panic.
#[cfg(feature = "clickhouse-tls")]
fn tls(_: &str) -> std::result::Result<(), String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "this machine has no certificates of authorities ({}): install ca-certificates, or name a file of them in SSL_CERT_FILE",
            errors.join(", ")
        ));
    }
    Ok(())
}

#[cfg(not(feature = "clickhouse-tls"))]
fn tls(url: &str) -> std::result::Result<(), String> {
    match url.to_ascii_lowercase().starts_with("https:") {
        true => Err("https takes a build with the feature clickhouse-tls".into()),
        false => Ok(()),
    }
}

/// An error and what is behind it: one says that a connection failed, and another below it why.
fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(below) = cause {
        let said = below.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = below.source();
    }
    text
}

/// Settings of an insert that is on disk, or refused, when it is answered.
fn inserting(token: &str) -> [(&'static str, String); 3] {
    [
        ("async_insert", "0".to_string()),
        ("insert_deduplicate", "1".to_string()),
        ("insert_deduplication_token", token.to_string()),
    ]
}

#[derive(Row, serde::Deserialize)]
struct Number {
    answer: u64,
}
