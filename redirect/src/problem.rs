//! What a caller hears when there is no redirect: problem details, RFC 9457.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use click::Invalid;
use serde::Serialize;

/// A refused request: what was wrong with it, what was given, and what is allowed.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<&'static str>,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u16(status.as_u16())
}

impl Problem {
    fn about(
        field: &'static str,
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        invalid: Invalid,
    ) -> Self {
        let detail = format!("{field}: {invalid}");
        Problem {
            kind,
            title,
            status,
            detail,
            field: Some(field),
            given: Some(invalid.given),
            allowed: Some(invalid.allowed),
        }
    }

    /// A field whose value cannot be taken.
    pub fn malformed(field: &'static str, invalid: Invalid) -> Self {
        Self::about(field, StatusCode::BAD_REQUEST, "urn:tally:problem:malformed", "malformed value", invalid)
    }

    /// A parameter that stands in the query more than once.
    pub fn repeated(field: &'static str, given: &str) -> Self {
        let invalid = Invalid::new("second value", given, "one value");
        Self::about(field, StatusCode::BAD_REQUEST, "urn:tally:problem:repeated", "repeated parameter", invalid)
    }

    /// A parameter that must be there.
    pub fn missing(field: &'static str, allowed: &'static str) -> Self {
        Problem {
            kind: "urn:tally:problem:missing",
            title: "missing parameter",
            status: StatusCode::BAD_REQUEST,
            detail: format!("{field} is missing: {allowed}"),
            field: Some(field),
            given: None,
            allowed: Some(allowed),
        }
    }

    /// An ad that is in no catalog.
    pub fn unknown_ad(given: &str) -> Self {
        let invalid = Invalid::new("ad id", given, "the id of an ad in the catalog");
        Self::about("ad_id", StatusCode::NOT_FOUND, "urn:tally:problem:unknown-ad", "unknown ad", invalid)
    }

    /// A path that leads nowhere.
    pub fn unknown_path(given: &str) -> Self {
        let invalid = Invalid::new("path", given, "/api/v1/click/{impressionId}, /healthz or /readyz");
        Self::about("path", StatusCode::NOT_FOUND, "urn:tally:problem:unknown-path", "unknown path", invalid)
    }

    /// A method that the path does not have. `allowed` is also the header `Allow`.
    pub fn method(given: &str, allowed: &'static str) -> Self {
        let invalid = Invalid::new("method", given, allowed);
        let kind = "urn:tally:problem:method-not-allowed";
        Self::about("method", StatusCode::METHOD_NOT_ALLOWED, kind, "method not allowed", invalid)
    }

    /// A body that is longer than a beacon's can be.
    pub fn too_large(given: &str) -> Self {
        let invalid = Invalid::new("content length", given, "at most 65536 bytes, which are ignored");
        let (status, kind) = (StatusCode::PAYLOAD_TOO_LARGE, "urn:tally:problem:body-too-large");
        Self::about("content-length", status, kind, "body too large", invalid)
    }

    /// The click may not be recorded, so there is no redirect. Why is the operator's to know.
    pub fn not_recorded() -> Self {
        Problem {
            kind: "urn:tally:problem:not-recorded",
            title: "not recorded",
            status: StatusCode::SERVICE_UNAVAILABLE,
            detail: "the click could not be recorded in time, so it was not redirected; try again".to_owned(),
            field: None,
            given: None,
            allowed: None,
        }
    }

    /// A page that was asked for before anybody clicked. It is answered like a failure, so that the browser asks
    /// again when somebody does.
    pub fn prefetch() -> Self {
        Problem {
            kind: "urn:tally:problem:prefetch",
            title: "not fetched ahead",
            status: StatusCode::SERVICE_UNAVAILABLE,
            detail: "a click is not fetched ahead of the person who makes it".to_owned(),
            field: None,
            given: None,
            allowed: None,
        }
    }

    /// The service was put behind a server that does not say who is calling. A mistake of ours, seen at the first
    /// request.
    pub fn no_peer() -> Self {
        Problem {
            kind: "urn:tally:problem:internal",
            title: "internal error",
            status: StatusCode::INTERNAL_SERVER_ERROR,
            detail: "the server does not tell the client's address".to_owned(),
            field: None,
            given: None,
            allowed: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let allow = (self.status == StatusCode::METHOD_NOT_ALLOWED).then_some(self.allowed).flatten();
        let mut response = (self.status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
