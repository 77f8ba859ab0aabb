//! Arroyo's REST API, as much of it as a deployment needs.
//!
//! Requests and answers have the shapes that Arroyo 0.16 sends; of an answer only the fields that are looked at are
//! read. Every request has a deadline, every body a bound, and every answer but the expected one is an error that names
//! method, path and status.

mod types;

pub use types::{Checkpoint, Graph, Job, JobError, NewPipeline, Pipeline, Stop, Udf, UdfValidation, Validation};

use reqwest::{Client, Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use types::{Collection, Patch, Query, Refusal};

/// The longest answer that is read. A pipeline is answered with its SQL, its functions and its graph, about 50 kB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How much of an unexpected answer an error shows.
const SHOWN_CHARS_MAX: usize = 4_000;

/// Pipelines asked for at once. Arroyo goes on after a creation time in whole seconds, so a second page could miss
/// pipelines of the same second; a page of this size is the last one.
const PAGE: usize = 1_000;
const PAGES_MAX: usize = 10;

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub connect: Duration,
    /// Of every request but those that compile.
    pub answer: Duration,
    /// Of a request that compiles functions: the first build takes Arroyo minutes.
    pub build: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            build: Duration::from_secs(15 * 60),
        }
    }
}

/// An Arroyo at an address.
#[derive(Debug, Clone)]
pub struct Arroyo {
    client: Client,
    /// Ends in `/`.
    base: Url,
    deadlines: Deadlines,
}

/// A request that was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Arroyo's address {given:?}: {reason}; it looks like http://127.0.0.1:5115")]
    Address { given: String, reason: String },
    /// No answer at all, or not all of it.
    #[error("{method} {url}: {reason}")]
    Unanswered { method: Method, url: String, reason: String },
    /// Arroyo says no, and why.
    #[error("{method} {path} was answered with {status}: {text}")]
    Refused { method: Method, path: String, status: StatusCode, text: String },
    /// Something else than Arroyo 0.16 answers.
    #[error("{method} {path} was answered with {status} and what is not understood ({reason}): {text}")]
    NotUnderstood { method: Method, path: String, status: StatusCode, reason: String, text: String },
}

impl Arroyo {
    /// `address` is where its web interface and API are, e.g. `http://127.0.0.1:5115`.
    pub fn new(address: &str, deadlines: Deadlines) -> Result<Self, ApiError> {
        let wrong = |reason: String| ApiError::Address { given: address.to_string(), reason };
        let mut base = Url::parse(address).map_err(|error| wrong(error.to_string()))?;
        if !["http", "https"].contains(&base.scheme()) || base.host_str().is_none() {
            return Err(wrong("it must begin with http:// or https:// and name a host".into()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(wrong("it cannot have a query or a fragment".into()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A redirect would turn a POST into a GET.
        let client = Client::builder().connect_timeout(deadlines.connect).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(|error| wrong(error.to_string()))?;
        Ok(Arroyo { client, base, deadlines })
    }

    /// Whether an Arroyo answers.
    pub(crate) async fn ping(&self) -> Result<(), ApiError> {
        let request = self.request(Method::GET, "ping")?;
        let path = request.url.path().to_string();
        let text: String = request.send().await?;
        if text == "Pong" {
            return Ok(());
        }
        let reason = "an Arroyo answers \"Pong\"".to_string();
        Err(ApiError::NotUnderstood { method: Method::GET, path, status: StatusCode::OK, reason, text })
    }

    /// Plans a query; compiles nothing.
    pub(crate) async fn validate_query(&self, query: &str, udfs: &[Udf]) -> Result<Validation, ApiError> {
        self.request(Method::POST, "pipelines/validate_query")?.body(&Query { query, udfs })?.send().await
    }

    /// Compiles a function, and keeps nothing of it.
    pub(crate) async fn validate_udf(&self, udf: &Udf) -> Result<UdfValidation, ApiError> {
        self.request(Method::POST, "udfs/validate")?.within(self.deadlines.build).body(udf)?.send().await
    }

    /// All pipelines but previews, newest first.
    pub(crate) async fn pipelines(&self) -> Result<Vec<Pipeline>, ApiError> {
        let mut pipelines: Vec<Pipeline> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = pipelines.last().map(|last| format!("&starting_after={}", last.id)).unwrap_or_default();
            let request = self.request(Method::GET, &format!("pipelines?limit={PAGE}{after}"))?;
            let page: Collection<Pipeline> = request.send().await?;
            let more = page.has_more && !page.data.is_empty();
            pipelines.extend(page.data);
            if !more {
                break;
            }
        }
        Ok(pipelines)
    }

    /// Compiles the functions, unless they are compiled already, plans the query and starts it.
    pub(crate) async fn create(&self, pipeline: &NewPipeline<'_>) -> Result<Pipeline, ApiError> {
        self.request(Method::POST, "pipelines")?.within(self.deadlines.build).body(pipeline)?.send().await
    }

    /// Tells a pipeline to stop, or with [`Stop::None`] to go on from its last checkpoint. Returns before it has.
    pub(crate) async fn set_stop(&self, pipeline: &str, stop: Stop) -> Result<Pipeline, ApiError> {
        self.request(Method::PATCH, &format!("pipelines/{pipeline}"))?.body(&Patch { stop })?.send().await
    }

    /// The newest job of a pipeline; `None` for a moment after its creation.
    pub(crate) async fn job(&self, pipeline: &str) -> Result<Option<Job>, ApiError> {
        let jobs: Collection<Job> = self.request(Method::GET, &format!("pipelines/{pipeline}/jobs"))?.send().await?;
        Ok(jobs.data.into_iter().max_by_key(|job| job.created_at))
    }

    /// In order of their epochs; those that failed or were merged into later ones are left out.
    pub(crate) async fn checkpoints(&self, pipeline: &str, job: &str) -> Result<Vec<Checkpoint>, ApiError> {
        let path = format!("pipelines/{pipeline}/jobs/{job}/checkpoints");
        let mut checkpoints: Collection<Checkpoint> = self.request(Method::GET, &path)?.send().await?;
        checkpoints.data.sort_by_key(|checkpoint| checkpoint.epoch);
        Ok(checkpoints.data)
    }

    /// The last errors of a job, newest first, as many as Arroyo gives at once.
    pub(crate) async fn errors(&self, pipeline: &str, job: &str) -> Result<Vec<JobError>, ApiError> {
        let path = format!("pipelines/{pipeline}/jobs/{job}/errors");
        let errors: Collection<JobError> = self.request(Method::GET, &path)?.send().await?;
        Ok(errors.data)
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<'_>, ApiError> {
        let path = format!("api/v1/{path}");
        let url = self
            .base
            .join(&path)
            .map_err(|error| ApiError::Address { given: format!("{}{path}", self.base), reason: error.to_string() })?;
        Ok(Request { arroyo: self, method, url, body: None, deadline: self.deadlines.answer })
    }
}

struct Request<'a> {
    arroyo: &'a Arroyo,
    method: Method,
    url: Url,
    body: Option<Vec<u8>>,
    deadline: Duration,
}

impl Request<'_> {
    fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    fn body(mut self, body: &impl Serialize) -> Result<Self, ApiError> {
        self.body = Some(serde_json::to_vec(body).map_err(|error| self.unanswered(error.to_string()))?);
        Ok(self)
    }

    async fn send<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        let mut request = self.arroyo.client.request(self.method.clone(), self.url.clone());
        if let Some(body) = &self.body {
            request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let answer = tokio::time::timeout(self.deadline, read(request)).await;
        let answer = answer.map_err(|_| self.unanswered(format!("no answer within {:?}", self.deadline)))?;
        let (status, body) = answer.map_err(|reason| self.unanswered(reason))?;
        if !status.is_success() {
            let text = match serde_json::from_slice::<Refusal>(&body) {
                Ok(refusal) => refusal.error,
                Err(_) => shown(&body),
            };
            return Err(ApiError::Refused { method: self.method, path: self.url.path().into(), status, text });
        }
        serde_json::from_slice(&body).map_err(|error| ApiError::NotUnderstood {
            method: self.method,
            path: self.url.path().into(),
            status,
            reason: error.to_string(),
            text: shown(&body),
        })
    }

    fn unanswered(&self, reason: String) -> ApiError {
        ApiError::Unanswered { method: self.method.clone(), url: self.url.to_string(), reason }
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<(StatusCode, Vec<u8>), String> {
    let mut answer = request.send().await.map_err(|error| chain(&error))?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&part);
    }
    Ok((answer.status(), body))
}

/// An error with its causes: reqwest's own text says only that a request failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}
