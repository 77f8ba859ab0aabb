/*
[dependencies]
*/
use arroyo_udf_plugin::udf;

#[udf(ordered, allowed_in_flight = 4096, timeout = "600s")]
async fn claim_click(
    claim_key: Option<&str>,
    log_id: &str,
    partition: i32,
    offset: i64,
    appended_ms: i64,
    version: i64,
) -> Option<i64> {
    None
}
