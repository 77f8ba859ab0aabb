//! The table of cases that the runner's own claims are checked against as well.

use crate::log::{HORIZON_MS, LOG_ID, T0_MS};
use crate::worker::Worker;
use crate::{record, Deployment};
use arroyo_udf_common::parse::{ParsedUdf, UdfType};
use serde_json::Value;
use services::redis::{Redis, DURABLE};
use udfs_arroyo::{Asked, ALLOWED_IN_FLIGHT, TIMEOUT};

const CASES: &str = include_str!("../../../tests/claims.json");

#[test]
fn answers_are_those_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(dir.path(), &DURABLE) else { return };
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() >= 8, "only {} cases", cases.len());
    for case in cases {
        redis.call(&["FLUSHALL"]);
        let (mut deployments, mut worker) = (Vec::new(), Worker::start(&redis.url()));
        for step in case["steps"].as_array().unwrap() {
            if let Some(version) = step["version"].as_i64() {
                let start = step["start"].as_i64().unwrap();
                let positions = [(0, start), (1, start)].into_iter().collect();
                deployments.push(Deployment { version, log_id: LOG_ID.parse().unwrap(), positions });
                record(&redis, &deployments, step["horizon_ms"].as_i64().unwrap_or(HORIZON_MS)).unwrap();
                worker = Worker::start(&redis.url());
                continue;
            }
            for (asked, answer) in step["asked"].as_array().unwrap().iter().zip(step["answers"].as_array().unwrap()) {
                let number = |at: usize| asked[at].as_i64().unwrap();
                let asked = Asked {
                    key: asked[0].as_str().map(str::to_string),
                    log_id: LOG_ID.to_string(),
                    partition: number(1) as i32,
                    offset: number(2),
                    appended_ms: T0_MS + number(3),
                    version: deployments.last().unwrap().version,
                };
                // Gaps in the offsets are not what these cases are about.
                redis.call(&["HSET", "claims:through", &format!("{LOG_ID}:{}", asked.partition), "999:0"]);
                worker.ask(0, [&asked]);
                let answers = worker.all_answered();
                let given = answers[&(asked.partition, asked.offset)].last().unwrap();
                assert_eq!(*given, answer.as_i64(), "{}: {asked:?}", case["name"]);
            }
        }
    }
}

/// What Arroyo reads out of the file, and tells the library and the planner.
#[test]
fn arroyo_reads_the_file() {
    let source = udfs::sources().iter().find(|source| source.name == "claim_click").unwrap();
    let file = syn::parse_file(source.source).unwrap();
    let function = file.items.iter().find_map(|item| match item {
        syn::Item::Fn(function) if function.sig.ident == "claim_click" => Some(function),
        _ => None,
    });
    let parsed = ParsedUdf::try_parse(function.unwrap()).unwrap();
    let UdfType::Async(options) = parsed.udf_type else { panic!("it is asynchronous") };
    assert_eq!((options.ordered, options.timeout), (true, TIMEOUT));
    assert_eq!(options.max_concurrency, ALLOWED_IN_FLIGHT as usize);
    let arguments: Vec<String> =
        parsed.args.iter().map(|argument| format!("{} {}", argument.data_type, argument.nullable)).collect();
    assert_eq!(
        arguments,
        ["Utf8 true", "Utf8 false", "Int32 false", "Int64 false", "Int64 false", "Int64 false"],
        "the first columns of the view that calls it"
    );
    assert_eq!(format!("{} {}", parsed.ret_type.data_type, parsed.ret_type.nullable), "Int64 true");
}
