//! What is refused before Arroyo sees it. Each case changes one place of the real file, or is a function of its own;
//! what is said stands in `tests/traps/refused.txt`. `UPDATE_EXPECT=1` writes it anew.

use super::{SQL, functions};
use click::Lateness;
use deploy::{Source, check, traps};
use pipeline_files::{PipelineFiles, SqlError};

const CALL: &str = "claim_click(claim_key, log_id, log_partition, log_offset, appended_ms, version)";
const WATERMARK: &str = "(CAST(arrow_cast(appended_ms, 'Timestamp(Millisecond, None)') AS TIMESTAMP)\n      - INTERVAL";

fn check_sql(from: &str, to: &str) -> Result<(), SqlError> {
    assert!(SQL.contains(from), "{from}");
    check(&PipelineFiles::one("clicks.sql", &SQL.replace(from, to)), &functions(), Lateness::DEFAULT)
}

fn check_function(source: &'static str) -> Result<(), SqlError> {
    traps::functions(&[Source { name: "f", source }]).map(|_| ())
}

#[test]
fn the_real_files_are_accepted() {
    check_sql("clicks", "clicks").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn other_ways_to_say_the_same_are_accepted() {
    for (from, to) in [
        (CALL, "CLAIM_CLICK(judged.claim_key, log_id, LOG_PARTITION, log_offset, appended_ms, version)"),
        ("SELECT *, claim_click", "SELECT reason, claim_click"),
        // What an aggregate reads has no UNION in it, though there is one.
        ("FROM verdicts;", "FROM verdicts UNION ALL SELECT * FROM verdicts;"),
        ("client_configs = '", "client_configs = 'fetch.wait.max.ms=50, "),
        // What is written may go to any topic.
        ("topic = 'clicks_by_minute'", "topic = 'clicks_by_ad'"),
    ] {
        check_sql(from, to).unwrap_or_else(|error| panic!("{to}\n{error}"));
    }
    for timeout in ["60s", "1m", "2 minutes", "1h", "8760 hours", "60000ms"] {
        let source = format!("#[udf(timeout=\"{timeout}\", unordered)]\nasync fn f(a: Option<&str>) -> i64 {{ 1 }}");
        check_function(source.leak()).unwrap();
    }
    check_function("#[udf]\nfn f(a: &str, b: Option<bool>) -> Option<i32> { None }").unwrap();
}

#[test]
fn traps_are_refused_with_their_place() {
    let sql = [
        // The arguments of an asynchronous function are the first columns of its view.
        (CALL, "claim_click(claim_key, log_id, log_partition, appended_ms, log_offset, version)"),
        (CALL, "claim_click(upper(claim_key), log_id, log_partition, log_offset, appended_ms, version)"),
        (CALL, "claim_click(claim_key, log_id, log_partition, log_offset, appended_ms)"),
        (
            "SELECT CASE WHEN reason IS NULL THEN impression_id END AS claim_key,",
            "SELECT kind AS k, CASE WHEN reason IS NULL THEN impression_id END AS claim_key,",
        ),
        ("FROM judged\n", "FROM judged JOIN reasons ON true\n"),
        ("CAST(${VERSION} AS BIGINT) AS version,\n", "CAST(${VERSION} AS INT) AS version,\n"),
        ("CAST(${VERSION} AS BIGINT) AS version,\n", "abs(${VERSION}) AS version,\n"),
        ("'${LOG_ID}' AS log_id", "kind AS log_id"),
        // A watermark is never NULL, and not of a generated column.
        (WATERMARK, "(appended_at - INTERVAL"),
        (WATERMARK, "(\"timestamp\" - INTERVAL"),
        (WATERMARK, "(to_timestamp_millis(appended_ms) - INTERVAL"),
        // An aggregate over a UNION, here, through a view, and out of a subquery.
        ("FROM billable\n", "FROM (SELECT * FROM billable UNION ALL SELECT * FROM billable) b\n"),
        (
            "verdict = 'billable';",
            "verdict = 'billable'\nUNION ALL SELECT clicked_at, ad_id, campaign_id, publisher_id, country, device FROM verdicts;",
        ),
        // A source begins where its version does.
        ("'source.offset' = 'group'", "'source.offset' = 'earliest'"),
        ("'source.group_id' = '${GROUP}'", "'source.group_id' = 'tally'"),
        (", client_configs = 'auto.offset.reset=error'", ""),
        ("topic = 'clicks', type = 'source'", "topic = 'raw_clicks', type = 'source'"),
        ("topic = 'clicks', type = 'source'", "type = 'source'"),
        (
            "bootstrap_servers = '${KAFKA}', topic = 'clicks', type",
            "bootstrap_servers = 'kafka:9092', topic = 'clicks', type",
        ),
        // A source goes on whatever comes.
        ("bad_data = 'drop',", ""),
        ("bad_data = 'drop',", "bad_data = 'fail',"),
    ];
    let functions = [
        "fn f(a: &str) -> i64 { 1 }",
        "use arroyo_udf_plugin::udf;\n#[udf]\nfn f(a: &str) -> i64 { 1 }\n#[udf]\nfn g(a: &str) -> i64 { 1 }",
        "#[udf]\nfn f(a: &str) -> Option<bool> { None }",
        "#[udf]\nfn g(a: &str) -> i64 { 1 }",
        "#[udf(ordered)]\nasync fn f(a: Option<&str>) -> i64 { 1 }",
        "#[udf(ordered, timeout = \"10ms\")]\nasync fn f(a: Option<&str>) -> i64 { 1 }",
        "#[udf(timeout = \"59 secs\", ordered)]\nasync fn f(a: Option<&str>) -> i64 { 1 }",
        "#[udf(timeout = \"1 day\")]\nasync fn f(a: Option<&str>) -> i64 { 1 }",
    ];
    let mut refused = String::new();
    for (from, to) in sql {
        let error = check_sql(from, to).err().unwrap_or_else(|| panic!("accepted: {to}"));
        refused.push_str(&format!("{error}\n\n"));
    }
    for source in functions {
        let error = check_function(source).err().unwrap_or_else(|| panic!("accepted: {source}"));
        refused.push_str(&format!("{error}\n\n"));
    }
    let path = format!("{}/tests/traps/refused.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &refused).unwrap();
    }
    assert_eq!(refused, std::fs::read_to_string(&path).unwrap_or_default(), "UPDATE_EXPECT=1 writes {path} anew");
}
