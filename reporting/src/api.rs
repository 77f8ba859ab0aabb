//! The routes.

use crate::answer::Answer;
use crate::dashboard::{self, CONTENT_SECURITY_POLICY};
use crate::problem::{BadParameter, Problem};
use crate::query;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use click::Clock;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use warehouse::report::{Order, Report, ReportQuery, Reports};

/// Reports that are made at once: each may use every core and hold a large answer.
const RUNNING_MAX: usize = 8;
/// Reports that are made or wait for their turn. One more is refused at once, so that a crowd finds out early.
const PLACES_MAX: usize = 64;
/// How long a caller waits, for its turn and its report together.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the readiness probe waits: shorter than the probes of the usual orchestrators.
const READY_DEADLINE: Duration = Duration::from_secs(2);

/// The API and the dashboard.
pub fn router(reports: Arc<dyn Reports>, clock: Arc<dyn Clock>) -> Router {
    router_with(Service {
        reports,
        clock,
        places: Semaphore::new(PLACES_MAX),
        turns: Semaphore::new(RUNNING_MAX),
        deadline: DEADLINE,
    })
}

fn router_with(service: Service) -> Router {
    Router::new()
        .route("/api/v1/reports/clicks", get(clicks))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Arc::new(service))
        .merge(dashboard::routes())
        .fallback(|uri: Uri| async move { Problem::NotFound(uri.path().to_owned()) })
        .method_not_allowed_fallback(|method: Method| async move { Problem::MethodNotAllowed(method.to_string()) })
        .layer(middleware::map_response(with_headers))
}

struct Service {
    reports: Arc<dyn Reports>,
    /// Says which day is today.
    clock: Arc<dyn Clock>,
    /// One permit for each report that is made or waits.
    places: Semaphore,
    /// One permit for each report that is made.
    turns: Semaphore,
    deadline: Duration,
}

impl Service {
    /// Makes a report, or says why there is none.
    async fn report(&self, query: &ReportQuery) -> Result<Report, Problem> {
        let Ok(_place) = self.places.try_acquire() else {
            tracing::warn!(places = PLACES_MAX, "a report was refused: too many are being made");
            return Err(Problem::Busy);
        };
        let made = async {
            // The semaphore is never closed; if it were, a report without a turn is better than none.
            let _turn = self.turns.acquire().await;
            self.reports.report(query).await
        };
        match timeout(self.deadline, made).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(error)) => {
                tracing::error!(%error, ?query, "a report failed");
                Err(Problem::Failed)
            }
            Err(_) => {
                tracing::error!(seconds = self.deadline.as_secs(), ?query, "a report took too long");
                Err(Problem::TooSlow)
            }
        }
    }
}

async fn clicks(State(service): State<Arc<Service>>, uri: Uri) -> Result<Response, Problem> {
    // Any text is a list of parameters, so this does not fail; if it did, it would be the caller's text.
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).map_err(|error| {
        Problem::BadParameter(BadParameter::value("query", &error.to_string(), "name=value pairs with & between them"))
    })?;
    let query = query::parse(&pairs, service.clock.now()).map_err(Problem::BadParameter)?;
    let report = service.report(&query).await?;
    Ok(Json(Answer::new(&query, &report)).into_response())
}

/// The process runs and answers.
async fn healthz() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// How old the data is does not make this node less able to show it.
async fn readyz(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    match ready(&*service.reports, &*service.clock).await {
        Ok(report) => Ok(Json(json!({
            "status": "ready",
            "completeThrough": report.complete_through.minute().to_string(),
            "dataLastRefreshed": report.refreshed_at,
        }))
        .into_response()),
        // Why is for operators.
        Err(error) => {
            tracing::error!(error, "not ready");
            Err(Problem::NotReady)
        }
    }
}

/// Whether the warehouse answers. It is asked for one minute's total, past the queue of reports: a node that is busy is not
/// broken.
///
/// # Errors
/// What keeps it from it, or that it took longer than probes wait.
pub async fn ready(reports: &dyn Reports, clock: &dyn Clock) -> Result<Report, String> {
    let minute = clock.now().minute();
    let query = ReportQuery {
        from: minute.start(),
        to: minute.end(),
        filters: BTreeMap::new(),
        time: None,
        dimensions: Vec::new(),
        limit: 1,
        order: Order::Columns,
    };
    match timeout(READY_DEADLINE, reports.report(&query)).await {
        Ok(report) => report.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the warehouse did not answer within {} s", READY_DEADLINE.as_secs())),
    }
}

/// Every answer is of this moment and for its reader alone; none is to be guessed at or framed.
async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use click::SystemClock;
    use warehouse::report::ReportError;

    struct Never;

    #[async_trait]
    impl Reports for Never {
        async fn report(&self, _query: &ReportQuery) -> Result<Report, ReportError> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_report_that_never_comes_is_given_up_and_frees_its_place() {
        let service = Service {
            reports: Arc::new(Never),
            clock: Arc::new(SystemClock),
            places: Semaphore::new(1),
            turns: Semaphore::new(1),
            deadline: Duration::from_millis(5),
        };
        let query = query::parse(&[], service.clock.now()).unwrap();
        for _ in 0..3 {
            assert!(matches!(service.report(&query).await, Err(Problem::TooSlow)));
        }
    }
}
