//! The landing pages of the sample catalog: they say what became of the click that led here.

use crate::verdicts::Verdicts;
use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use click::{AdId, ClickId, Clock, SystemClock};
use std::net::SocketAddr;
use std::sync::Arc;

/// A click whose verdict is not there after so long was judged before this process began, or long ago, or never made.
const HELD_MS: i64 = 30_000;

#[derive(Clone)]
struct Pages {
    verdicts: Arc<Verdicts>,
    reporting: SocketAddr,
}

/// Serves `/ads/{ad}?click={click id}`.
pub fn router(verdicts: Arc<Verdicts>, reporting: SocketAddr) -> Router {
    Router::new().route("/ads/{ad}", get(page)).with_state(Pages { verdicts, reporting })
}

async fn page(State(pages): State<Pages>, Path(ad): Path<String>, RawQuery(query): RawQuery) -> impl IntoResponse {
    // Both are checked ids, whose characters need no escaping in HTML.
    let ad = ad.parse::<AdId>().ok();
    let click = query.as_deref().and_then(|q| q.strip_prefix("click=")).and_then(|id| id.parse::<ClickId>().ok());
    let title = ad.map_or("A page that is not in the catalog".to_string(), |ad| format!("The page of {ad}"));
    let (text, done) = match click {
        None => ("You came here without a click on an ad.".to_string(), true),
        Some(click) => match pages.verdicts.of(&click.to_string()) {
            Some(judged) => (told(&judged.verdict, judged.campaign_id.as_deref().unwrap_or("?")), true),
            None if SystemClock.now().get() - click.at().get() > HELD_MS => {
                ("What became of this click is not held here any more: see the report.".to_string(), true)
            }
            None => ("Your click is durable. It is being counted …".to_string(), false),
        },
    };
    let id = click.map_or(String::new(), |click| format!("<p class=id>click {click}</p>"));
    let again = if done { "" } else { r#"<meta http-equiv="refresh" content="1">"# };
    let reporting = pages.reporting;
    let html = format!(
        r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{again}
<title>{title}</title><style>:root{{color-scheme:light dark}}body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:12vh auto;padding:0 1rem}}
.id{{font-family:monospace;opacity:.7;font-size:.9rem}}a{{margin-right:1.5rem}}</style></head>
<body><h1>{title}</h1><p role="status"><strong>{text}</strong></p>{id}
<p><a href="http://{reporting}/">See the dashboard</a><a href="http://{reporting}/api/v1/reports/clicks?groupBy=minute,campaign_id,ad_id">See the report</a></p>
</body></html>"#
    );
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Html(html))
}

fn told(verdict: &str, campaign: &str) -> String {
    // Both come from the log: a pipeline may name a reason as it likes.
    let [verdict, campaign] = [verdict, campaign].map(escaped);
    match verdict.as_str() {
        "billable" => format!("Your click was counted as billable in campaign {campaign}."),
        "late" => format!("Your click was counted as late in campaign {campaign}: it is billed as a correction."),
        "duplicate" => format!(
            "Your click was counted as a duplicate in campaign {campaign}: the impression was clicked before, and is billed once."
        ),
        other => format!("Your click was counted as {other} in campaign {campaign}: it is logged, and not billed."),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pipeline_says_cannot_become_markup() {
        assert!(told("<script>", "c&").contains("counted as &lt;script&gt; in campaign c&amp;"));
    }
}
