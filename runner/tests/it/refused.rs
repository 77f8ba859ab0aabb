//! What a pipeline file cannot say: refused with its place and what to use instead.

use super::SQL;
use click::Lateness;
use runner::PipelineFiles;

/// Replaces a part of the real file, and expects the error at that line.
async fn check(from: &str, to: &str, expected: &str) {
    assert!(SQL.contains(from), "{from}");
    let text = SQL.replace(from, to);
    let error = runner::check(&PipelineFiles::one("clicks.sql", &text), Lateness::DEFAULT).await.unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains(expected), "{to}\n{shown}");
    let line = text.lines().nth(error.line as usize - 1).unwrap_or_default();
    assert!(shown.starts_with(&format!("clicks.sql:{}:{}: ", error.line, error.column)), "{shown}");
    // With nothing to fill in, the line is shown as it stands in the file.
    assert!(line.contains("${") || shown.contains(line), "{shown}");
}

const BILLABLE: &str = "FROM verdicts WHERE verdict = 'billable'";

#[tokio::test]
async fn the_real_file_is_accepted() {
    runner::check(&PipelineFiles::one("clicks.sql", SQL), Lateness::DEFAULT).await.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test]
async fn syntax_has_a_place() {
    check(BILLABLE, "FRM verdicts", "expected `;` after the statement, found `verdicts`").await;
    check("CREATE VIEW billable", "CREATE VIW billable", "found: VIW").await;
    check(
        "INSERT INTO raw_clicks",
        "DELETE FROM raw_clicks; INSERT INTO raw_clicks",
        "`DELETE FROM …` is not supported",
    )
    .await;
    check("'${LOG_ID}'", "'${LOGID}'", "`${LOGID}` is not known").await;
}

#[tokio::test]
async fn names_have_a_place() {
    check("country, device FROM verdicts", "county, device FROM verdicts", "county").await;
    check(BILLABLE, "FROM verdict WHERE verdict = 'billable'", "verdict").await;
    check(r#"ELSE bot_reason("userAgent")"#, r#"ELSE bot_raison("userAgent")"#, "bot_raison").await;
    check("INSERT INTO raw_clicks", "INSERT INTO raw_click", "no sink `raw_click`").await;
}

#[tokio::test]
async fn what_a_stream_cannot_do_is_refused() {
    check(BILLABLE, "FROM verdicts WHERE verdict = 'billable' ORDER BY ad_id", "ORDER BY is not supported").await;
    check(BILLABLE, "FROM verdicts WHERE verdict = 'billable' LIMIT 5", "LIMIT is not supported").await;
    check("FROM reasons;", "FROM reasons CROSS JOIN (SELECT 1);", "a join is not supported").await;
    check("SELECT clicked_at, ad_id", "SELECT DISTINCT clicked_at, ad_id", "DISTINCT is not supported").await;
    check("count(*) AS clicks", "row_number() OVER () AS clicks", "is not supported").await;
    check("verdict = 'billable'", "verdict = 'billable' AND now() > clicked_at", "other answers on a replay").await;
    check("verdict = 'billable'", "random() < 0.5", "other answers on a replay").await;
    check("verdict = 'billable'", "verdict = (SELECT 'billable')", "a subquery in an expression is not supported")
        .await;
}

#[tokio::test]
async fn windows_are_tumbling_and_by_a_fixed_interval() {
    check("SELECT tumble(INTERVAL '1 minute') AS window,", "SELECT", "window").await;
    check("tumble(INTERVAL '1 minute')", "tumble(INTERVAL '1 month')", "fixed interval").await;
    check("tumble(INTERVAL '1 minute')", "tumble(INTERVAL '0 minutes')", "fixed interval").await;
    check("count(*) AS clicks", "array_agg(ad_id) AS clicks", "array_agg() is not supported in a window").await;
    check("count(*) AS clicks", "sum(DISTINCT 1) AS clicks", "sum(DISTINCT …) is not supported").await;
    check("verdict = 'billable'", "tumble(INTERVAL '1 minute') IS NOT NULL", "GROUP BY only").await;
    check("GROUP BY window, ad_id,", "GROUP BY window, tumble(INTERVAL '1 hour'), ad_id,", "two tumble").await;
}

#[tokio::test]
async fn tables_are_checked() {
    check("bad_data = 'drop'", "bad_data = 'fail'", "it must be 'drop'").await;
    check("bad_data = 'drop'", "bad_date = 'drop'", "option `bad_date` is not supported").await;
    check("METADATA FROM 'offset_id'", "METADATA FROM 'offset'", "no metadata 'offset'").await;
    check("WATERMARK FOR clicked_at", "WATERMARK FOR click_time", "no column `click_time`").await;
    check("clicked_at TIMESTAMP NOT NULL", "clicked_at TIMESTAMP", "must be NOT NULL").await;
    check("attempt INT, invalid_reason TEXT", "attempt INT", "columns and `raw_clicks` has").await;
    check(
        "CREATE VIEW billable",
        "CREATE VIEW spare AS SELECT kind FROM reasons; CREATE VIEW billable",
        "`spare` is never read",
    )
    .await;
}

const CLAIM: &str =
    "claim_click(claim_key, log_id, log_partition, log_offset, appended_ms, version) AS first_claim FROM judged";

#[tokio::test]
async fn claims_are_asked_once_and_for_every_record() {
    let call = CLAIM.replace(" AS first_claim FROM judged", "");
    check(CLAIM, &format!("1 AS first_claim FROM judged WHERE {call} = 1"), "must be a column of a SELECT").await;
    check(CLAIM, &format!("COALESCE({call}, 0) AS first_claim FROM judged"), "must be a column of a SELECT").await;
    check(CLAIM, &format!("{call} AS again, {CLAIM}"), "a second claim_click").await;
}

#[tokio::test]
async fn nothing_is_accepted_and_ignored() {
    check("FROM reasons;", "FROM reasons TABLESAMPLE SYSTEM (10);", "TABLESAMPLE is not supported").await;
    check("FROM reasons;", "FROM reasons FOR UPDATE;", "UPDATE is not supported").await;
    check("publisher_id, country, device;", "publisher_id, ROLLUP(country, device);", "ROLLUP is not supported").await;
    check("CREATE VIEW judged AS", "CREATE OR REPLACE VIEW judged AS", "CREATE VIEW with anything but a name").await;
    check("CREATE VIEW judged AS", "CREATE VIEW IF NOT EXISTS judged AS", "CREATE VIEW with anything but a name").await;
    check("INSERT INTO raw_clicks", "INSERT OVERWRITE raw_clicks", "").await;
    check("clicks BIGINT, version BIGINT", "clicks BIGINT NOT NULL, version BIGINT", "cannot be NOT NULL").await;
    check(
        "CAST(arrow_cast(appended_ms, 'Timestamp(Millisecond, None)') AS TIMESTAMP)\n      -",
        "\"timestamp\"\n      -",
        "can be NULL",
    )
    .await;
}
