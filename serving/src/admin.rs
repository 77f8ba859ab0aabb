//! The port for operators: whether a process lives, whether it works, and its metrics. Never the one that the public
//! reaches.

use crate::metrics::{CONTENT_TYPE, Metrics};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;

/// Whether a process can do its work now: `Ok`, or what keeps it from it. It answers within a few seconds.
pub type Ready = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Of something that is known at once.
pub fn known(ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Ready {
    Arc::new(move || Box::pin(std::future::ready(ready())))
}

/// What else an operator wants to know beside that, as JSON.
pub type Details = Arc<dyn Fn() -> Value + Send + Sync>;

struct Admin {
    metrics: Metrics,
    ready: Ready,
    details: Option<Details>,
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn router(metrics: Metrics, ready: Ready) -> Router {
    routes(Admin { metrics, ready, details: None })
}

/// The same with more on `/readyz`.
pub fn router_with(metrics: Metrics, ready: Ready, details: Details) -> Router {
    routes(Admin { metrics, ready, details: Some(details) })
}

fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Arc::new(admin))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let (status, mut said) = match (admin.ready)().await {
        Ok(()) => (StatusCode::OK, json!({ "status": "ready" })),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "not ready", "why": why })),
    };
    if let Some(details) = &admin.details {
        said["details"] = details();
    }
    (status, Json(said)).into_response()
}

async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
