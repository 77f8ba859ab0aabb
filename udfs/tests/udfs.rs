//! What the functions say of user agents, and that their files are what Arroyo takes.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use udfs::{bot_reason, device_class, sources};

/// Lines of `reason TAB device TAB user agent`; `-` is a person.
const AGENTS: &str = include_str!("agents.tsv");

const REASONS: [&str; 4] = ["no_user_agent", "headless", "bot", "tool"];
const DEVICES: [&str; 5] = ["desktop", "mobile", "tablet", "tv", "other"];

fn agents() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    AGENTS.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut fields = line.splitn(3, '\t');
        let mut field = || fields.next().unwrap();
        (field(), field(), field())
    })
}

/// Panics with every agent whose answer is not the expected one.
fn check(expected: impl Iterator<Item = (&'static str, &'static str)>, answer: impl Fn(&str) -> String) {
    let wrong: Vec<String> = expected
        .filter(|(expected, agent)| answer(agent) != *expected)
        .map(|(expected, agent)| format!("expected {expected}, got {}: {agent}", answer(agent)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bots_have_a_reason_and_people_none() {
    check(agents().map(|(reason, _, agent)| (reason, agent)), |agent| bot_reason(Some(agent)).unwrap_or("-".into()));
}

#[test]
fn every_agent_has_its_device() {
    check(agents().map(|(_, device, agent)| (device, agent)), |agent| device_class(Some(agent)));
}

#[test]
fn the_table_shows_every_reason_and_every_device_of_people() {
    for reason in REASONS {
        assert!(agents().any(|(r, _, _)| r == reason), "no agent is {reason}");
    }
    for device in DEVICES {
        assert!(agents().any(|(r, d, _)| r == "-" && d == device), "no person has {device}");
    }
}

#[test]
fn a_missing_user_agent_is_not_a_person_and_has_a_device() {
    assert_eq!(bot_reason(None).as_deref(), Some("no_user_agent"));
    assert_eq!(device_class(None), "other");
}

#[test]
fn blanks_around_an_agent_change_nothing() {
    for (_, _, agent) in agents() {
        assert_eq!(bot_reason(Some(&format!(" {agent}\t"))), bot_reason(Some(agent)), "{agent}");
    }
}

/// Any text; half of the time pieces of real agents, which reach deeper than noise does.
fn any_agent() -> impl Strategy<Value = String> {
    let pieces: Vec<&str> = AGENTS.split([' ', '\t', '\n', ';', '(', ')']).filter(|p| !p.is_empty()).collect();
    let mixed = proptest::collection::vec((proptest::sample::select(pieces), any::<char>()), 0..20)
        .prop_map(|pieces| pieces.into_iter().flat_map(|(piece, c)| [piece.to_string(), c.to_string()]).collect());
    let bytes =
        proptest::collection::vec(any::<u8>(), 0..2000).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    prop_oneof![2 => mixed, 1 => bytes, 1 => any::<String>()]
}

proptest! {
    #[test]
    fn any_text_has_an_answer_from_the_lists(agent in any_agent()) {
        let device = device_class(Some(&agent));
        prop_assert!(DEVICES.contains(&device.as_str()), "{device}");
        let reason = bot_reason(Some(&agent));
        prop_assert!(reason.as_deref().is_none_or(|reason| REASONS.contains(&reason)), "{reason:?}");
        prop_assert_eq!(device_class(Some(&agent)), device);
        prop_assert_eq!(bot_reason(Some(&agent)), reason);
    }
}

#[test]
fn sources_are_the_files_of_src_by_name() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_string(), std::fs::read_to_string(path).unwrap()))
        .filter(|(name, _)| name != "lib")
        .collect();
    files.sort();
    let listed: Vec<(String, String)> = sources().iter().map(|s| (s.name.into(), s.source.into())).collect();
    assert_eq!(listed, files);
}

/// The part of Arroyo's own reading of a file that a compiler does not check.
#[test]
fn a_source_has_one_udf_of_its_name_and_one_header_with_the_workspace_versions() {
    let read = |file: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        toml::from_str::<toml::Table>(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let workspace = read("Cargo.toml");
    let lock = read("Cargo.lock");
    let arroyo = read("udfs/arroyo/Cargo.toml");
    for udf in sources() {
        let name = udf.name;
        assert_eq!(udf.source.matches("#[udf").count(), 1, "{name}");
        let functions = [format!("#[udf]\npub fn {name}("), format!(")]\npub async fn {name}(")];
        assert!(functions.iter().any(|function| udf.source.contains(function)), "{name}");
        assert_eq!(udf.source.matches("use arroyo_udf_plugin::udf;").count(), 1, "{name}");

        assert_eq!(udf.source.matches("/*\n[dependencies]\n").count(), 1, "{name}");
        let header = udf.source.strip_prefix("/*\n").unwrap().split_once("*/").unwrap().0;
        let header: toml::Table = toml::from_str(header).unwrap();
        for (dependency, version) in header["dependencies"].as_table().unwrap() {
            // Features may differ: the workspace's are those of everything else, too.
            let wanted = |of: &toml::Value| of.get("version").unwrap_or(of).as_str().unwrap().to_string();
            let version = wanted(version);
            assert_eq!(version, wanted(&workspace["workspace"]["dependencies"][dependency]), "{name}: {dependency}");
            assert_eq!(version, wanted(&arroyo["dependencies"][dependency]), "{name}: {dependency}");
            let locked = lock["package"].as_array().unwrap().iter().filter(|p| p["name"].as_str() == Some(dependency));
            let locked: Vec<&str> = locked.map(|package| package["version"].as_str().unwrap()).collect();
            let exact = version.strip_prefix('=');
            assert!(
                locked.len() == 1 && exact.is_none_or(|exact| exact == locked[0]),
                "{name}: {dependency} {version} is locked at {locked:?}"
            );
        }
    }
}
