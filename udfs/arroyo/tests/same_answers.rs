//! A UDF answers the same in Arroyo's library and linked into a program.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use udfs_arroyo::TextUdf;

/// The library that `cargo test` builds from a UDF's file, beside the folder of this test.
fn open(name: &str) -> TextUdf {
    let test = std::env::current_exe().unwrap();
    let mut library: PathBuf = test.parent().unwrap().parent().unwrap().join("examples");
    library.push(format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    TextUdf::open(&library).unwrap_or_else(|e| panic!("run `cargo test` without naming a test: {e}"))
}

/// Each agent of the table, every beginning and every end of it, and NULL between them: tens of thousands of texts.
fn agents() -> Vec<Option<&'static str>> {
    let mut agents = vec![None, Some(""), Some("Grüße, 世界 🤖 bot")];
    for line in include_str!("../../tests/agents.tsv").lines().filter(|line| !line.starts_with('#')) {
        let agent = line.splitn(3, '\t').nth(2).unwrap();
        agents.push(None);
        agents.extend(agent.char_indices().flat_map(|(at, _)| [Some(&agent[..at]), Some(&agent[at..])]));
    }
    assert!(agents.len() > 10_000, "only {} texts", agents.len());
    agents
}

fn check(name: &str, linked: impl Fn(Option<&str>) -> Option<String>) {
    let udf = open(name);
    let agents = agents();
    let answers = udf.call(agents.iter().copied()).unwrap();
    assert_eq!(answers.len(), agents.len());
    for (agent, answer) in agents.iter().zip(answers) {
        assert_eq!(answer, linked(*agent), "{name} of {agent:?}");
    }
    assert_eq!(udf.call([]).unwrap(), vec![], "a batch without rows");
}

#[test]
fn bot_reason() {
    check("bot_reason", udfs::bot_reason);
}

#[test]
fn device_class() {
    check("device_class", |agent| Some(udfs::device_class(agent)));
}

#[test]
fn every_source_is_compared() {
    let names: Vec<&str> = udfs::sources().iter().map(|source| source.name).collect();
    assert_eq!(names, ["bot_reason", "claim_click", "device_class"], "a new UDF needs its own library and test here");
}
