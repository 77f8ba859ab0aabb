//! What is answered when there is no report: RFC 9457 problem details.
//!
//! The caller reads what it can do about it. What went wrong inside is the operator's to read, in the log.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Text of the caller that is repeated is cut at this many characters.
const GIVEN_CHARS_MAX: usize = 80;

/// Seconds after which a caller is asked to try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A parameter that does not mean anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadParameter {
    /// The parameter.
    field: String,
    /// What was given, shortened to a length that fits a message.
    given: String,
    /// What may be given instead, as a phrase that follows "must be".
    allowed: String,
    /// All of it as a sentence.
    detail: String,
}

impl BadParameter {
    /// A parameter with a value that it cannot have.
    pub fn value(field: &str, given: &str, allowed: impl Into<String>) -> Self {
        let (given, allowed) = (shortened(given), allowed.into());
        let detail = format!("parameter {field} is {given:?}, and must be {allowed}");
        BadParameter { field: field.to_owned(), given, allowed, detail }
    }

    /// A parameter that there is not.
    pub fn unknown(name: &str, allowed: impl Into<String>) -> Self {
        let (given, allowed) = (shortened(name), allowed.into());
        let detail = format!("there is no parameter {given:?}: it must be {allowed}");
        BadParameter { field: given.clone(), given, allowed, detail }
    }
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(GIVEN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// Every way not to get an answer.
#[derive(Debug)]
pub enum Problem {
    /// 400.
    BadParameter(BadParameter),
    /// 404, with the path that was asked for.
    NotFound(String),
    /// 405, with the method that was used.
    MethodNotAllowed(String),
    /// 500: the warehouse could not answer; why is in the log.
    Failed,
    /// 503: the warehouse does not answer, said to a probe.
    NotReady,
    /// 503: too many reports are being made.
    Busy,
    /// 503: the report took too long.
    TooSlow,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Problem::BadParameter(_) => StatusCode::BAD_REQUEST,
            Problem::NotFound(_) => StatusCode::NOT_FOUND,
            Problem::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Problem::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Problem::NotReady | Problem::Busy | Problem::TooSlow => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn detail(&self) -> String {
        match self {
            Problem::BadParameter(bad) => bad.to_string(),
            Problem::NotFound(path) => format!("there is nothing at {}", shortened(path)),
            Problem::MethodNotAllowed(method) => {
                format!("{} is not possible here: reports are read with GET or HEAD", shortened(method))
            }
            Problem::Failed => "the report could not be made; the reason is in the service's log".into(),
            Problem::NotReady => "the warehouse does not answer; the reason is in the service's log".into(),
            Problem::Busy => "too many reports are being made just now; try again shortly".into(),
            Problem::TooSlow => {
                "the report took too long; try again, or ask for a shorter range or fewer groups".into()
            }
        }
    }
}

/// The body.
#[derive(Serialize)]
struct Details<'a> {
    /// The status says it all: there are no kinds of problems beyond it.
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: String,
    #[serde(flatten)]
    parameter: Option<Parameter<'a>>,
}

#[derive(Serialize)]
struct Parameter<'a> {
    field: &'a str,
    given: &'a str,
    allowed: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let details = Details {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: self.detail(),
            parameter: match &self {
                Problem::BadParameter(BadParameter { field, given, allowed, .. }) => {
                    Some(Parameter { field, given, allowed })
                }
                _ => None,
            },
        };
        let mut response = (status, Json(details)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
