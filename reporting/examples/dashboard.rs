//! The dashboard with made-up clicks, to look at while working on it:
//! `cargo run -p reporting --example dashboard [port] [empty|broken|behind]`, then open the printed address.

#![allow(clippy::unwrap_used)]

#[path = "../tests/memory/mod.rs"]
mod memory;

use click::{Clock, Millis, SystemClock};
use memory::MemoryReports;
use std::sync::Arc;
use std::time::Duration;

const MINUTE_MS: i64 = 60_000;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().map_or(8081, |port| port.parse().unwrap());
    let state = arguments.next().unwrap_or_default();
    let behind_ms = if state == "behind" { 20 * MINUTE_MS } else { 0 };

    let now = move || SystemClock.now().plus(-behind_ms);
    let complete_through = |now: Millis| now.plus(-6 * MINUTE_MS).minute().start();
    let reports = Arc::new(MemoryReports::new(complete_through(now()), now()));
    // Counts that look like traffic: a wave over the day, some noise, eight ads in three campaigns.
    let count = {
        let reports = reports.clone();
        move |at: Millis, share: i64| {
            let number = at.minute().number();
            for ad in 0..8_i64 {
                let wave = (number as f64 / 229.0).sin() * 40.0 + 60.0;
                let noise = (number * 7919 + ad * 104_729) % 37;
                let (ad_id, campaign_id) = (format!("ad_{ad}"), format!("cmp_{}", 6 + ad % 3));
                let country = if number % 3 == 0 { "DE" } else { "FR" };
                let clicks = (wave as i64 + noise) * share / (ad + 1) / 10;
                reports.count(at, [&ad_id, &campaign_id, "pub_4", country, "mobile"], clicks);
            }
        }
    };
    if state.is_empty() || state == "behind" {
        // The minute that runs now has only begun.
        (1..8 * 1440).for_each(|minutes| count(now().plus(-minutes * MINUTE_MS), 10));
    }
    if state == "broken" {
        reports.0.lock().unwrap().failure = Some("disk /secret is on fire".into());
    }
    if state.is_empty() || state == "empty" {
        let reports = reports.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if state.is_empty() {
                    count(now(), 1);
                }
                let mut counts = reports.0.lock().unwrap();
                counts.refreshed_at = now();
                counts.complete_through = complete_through(now());
            }
        });
    }

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}", listener.local_addr()?);
    let stop = async { tokio::signal::ctrl_c().await.unwrap() };
    let router = reporting::router(reports, Arc::new(SystemClock));
    serving::serve(listener, router, serving::Limits::default(), stop).await;
    Ok(())
}
