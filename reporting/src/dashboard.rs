//! The dashboard: one page with its scripts and its style, from this service alone.

use axum::Router;
use axum::http::header;
use axum::routing::get;

const HTML: &str = include_str!("dashboard/dashboard.html");
const SCRIPT: &str = include_str!("dashboard/dashboard.js");
const CHART: &str = include_str!("dashboard/chart.js");
const STYLE: &str = include_str!("dashboard/dashboard.css");

/// What the page may do: run its own script, use its own style, ask its own service. Nothing from elsewhere and
/// nothing inline, so a name that came in with a click stays text even if the script had an error.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of the page.
pub fn routes() -> Router {
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", HTML))
        .route("/dashboard.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/chart.js", file("text/javascript; charset=utf-8", CHART))
        .route("/dashboard.css", file("text/css; charset=utf-8", STYLE))
}
