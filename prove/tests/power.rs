//! The disk under a real process: what a shell wrote and did not fsync is gone after a power cut, and nothing else.
#![allow(clippy::unwrap_used)]

use prove::disk::{Cut, Disk};
use prove::site;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// A disk, and a shell on it.
struct World {
    _dir: tempfile::TempDir,
    disk: Disk,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().canonicalize().unwrap()).unwrap();
        World { _dir: dir, disk }
    }

    fn run(&self, script: &str, variables: &[(&str, &str)]) -> ExitStatus {
        self.disk.begin_life().unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).current_dir(&self.disk.root).env("LD_PRELOAD", site::power().unwrap());
        shell.envs(self.disk.variables()).envs(variables.iter().copied()).status().unwrap()
    }

    fn ok(&self, script: &str) {
        assert!(self.run(script, &[]).success(), "{script}");
    }

    /// Cuts the power, and keeps nothing that was not durable.
    fn cut(&self) {
        self.cut_with(Cut::All, 0);
    }

    fn cut_with(&self, cut: Cut, seed: u64) {
        self.disk.cut_power(cut, &mut StdRng::seed_from_u64(seed)).unwrap();
    }

    /// Every file with what is in it, and every folder.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        walk(&self.disk.root, "", &mut files);
        files
    }
}

fn walk(folder: &Path, name: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.insert(format!("{name}/"), String::new());
            walk(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

fn check(script: &str, expected: &[(&str, &str)]) {
    let world = World::new();
    world.ok(script);
    world.cut();
    let expected = expected.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    assert_eq!(world.files(), expected, "{script}");
}

#[test]
fn what_was_not_synced_is_gone() {
    check("echo one > a", &[]);
    check("echo one > a; sync a", &[]);
    check("echo one > a; sync .", &[("a", "")]);
    check("echo one > a; sync a .", &[("a", "one\n")]);
    check("echo one > a; sync a .; echo two >> a", &[("a", "one\n")]);
    check("echo one > a; sync a .; echo two > a", &[("a", "one\n")]);
    check("echo one > a; sync a .; echo two > a; sync a", &[("a", "two\n")]);
}

#[test]
fn names_are_durable_when_their_folder_was_synced() {
    let before = "echo one > a; echo two > b; mkdir d; sync a b . d;";
    let all = &[("a", "one\n"), ("b", "two\n"), ("d/", "")];
    check(&format!("{before} rm a"), all);
    check(&format!("{before} rm a; sync ."), &[("b", "two\n"), ("d/", "")]);
    check(&format!("{before} mv a b"), all);
    check(&format!("{before} mv a b; sync ."), &[("b", "one\n"), ("d/", "")]);
    check(&format!("{before} mv a d/a; sync d"), all);
    check(&format!("{before} mv a d/a; sync . d"), &[("b", "two\n"), ("d/", ""), ("d/a", "one\n")]);
    check(&format!("{before} ln a c"), all);
    check(&format!("{before} ln a c; sync .; rm a"), &[("a", "one\n"), ("b", "two\n"), ("c", "one\n"), ("d/", "")]);
    check(&format!("{before} rmdir d"), all);
    check(&format!("{before} mkdir e; mv -T e d; mkdir f"), all);
    check(&format!("{before} rmdir d; echo x > e; mkdir f; echo y > f/y; rm a"), all);
    check(
        &format!("{before} echo x > d/x; sync d/x d; rm d/x; rmdir d; mkdir d; echo y > d/y"),
        &[("a", "one\n"), ("b", "two\n"), ("d/", ""), ("d/x", "x\n")],
    );
    check(&format!("{before} mkdir e; echo x > e/x; sync e/x e"), all);
    check(
        &format!("{before} echo x > d/x; sync d/x d; mv d e"),
        &[("a", "one\n"), ("b", "two\n"), ("d/", ""), ("d/x", "x\n")],
    );
    check(&format!("{before} mv d e; echo x > e/x; sync e/x; sync ."), &[("a", "one\n"), ("b", "two\n"), ("e/", "")]);
}

#[test]
fn a_process_dies_at_a_change_or_meets_what_a_disk_does() {
    let script = "echo one > a; sync a .; echo two >> a; echo three >> a";
    // The shell's own changes: it creates the file and writes it three times, each in half when it dies of it.
    for (die, expected) in [("1", None), ("2", Some("on")), ("3", Some("one\ntw")), ("4", Some("one\ntwo\nthr"))] {
        let world = World::new();
        let status = world.run(script, &[("POWER_CUT_DIE", die)]);
        assert_eq!(status.signal(), Some(9), "{die}");
        assert_eq!(world.files().get("a").map(String::as_str), expected, "{die}");
        assert!(world.disk.seen().unwrap().died.unwrap().starts_with(die));
    }
    let world = World::new();
    world.run(script, &[("POWER_CUT_FULL", "3+1")]);
    assert_eq!(world.files()["a"], "one\nthree\n");
    let world = World::new();
    assert!(!world.run("echo one > a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "", "a later fsync does not bring back what an earlier one could not write");
    let world = World::new();
    assert!(!world.run("echo one > a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("echo two >> a; sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "\0\0\0\0two\n", "nor does it take what came later");
    let world = World::new();
    assert!(!world.run("echo one > a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("echo six 1<> a; sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "six\n", "what is written again is there");
    // A part of it is written again, before and after what stays lost.
    let world = World::new();
    assert!(!world.run("echo abcdefgh > a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("echo -n XY 1<> a; sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "XY");
    let world = World::new();
    assert!(!world.run("echo abcdefgh > a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("truncate -s 4 a; echo XYZ >> a; sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "\0\0\0\0XYZ\n", "what was cut off and written again is there");
    // A cut that an fsync did not confirm, and the next one did.
    let world = World::new();
    world.ok("echo abcdefgh > a; sync a .");
    assert!(!world.run("truncate -s 4 a; sync a", &[("POWER_CUT_EIO", "1")]).success());
    world.ok("echo XYZ >> a; sync a .");
    world.cut();
    assert_eq!(world.files()["a"], "abcdXYZ\n");
}

#[test]
fn what_an_fsync_that_was_left_out_should_have_kept_goes_alone() {
    let world = World::new();
    world.run("echo one > a; echo two > b; sync a b .; echo more > c", &[("POWER_CUT_DEAF", "b")]);
    world.cut_with(Cut::LeftOut, 0);
    let files = world.files();
    assert_eq!(["a", "b", "c"].map(|name| &*files[name]), ["one\n", "", "more\n"]);
}

#[test]
fn deaf_to_one_kind_of_fsync_it_loses_what_that_kept() {
    // One process writes and syncs: what was done before another one came is not known to that.
    let script = "mkdir d; echo one | dd of=d/17.log conv=fsync status=none; sync d .";
    for (deaf, expected) in [
        ("d/*.log", Some("")),
        ("d/*.log after write", Some("")),
        ("d/*.log after size", Some("one\n")),
        ("d/", None),
        ("d/ after nothing", None),
        ("d/ after remove *.log", Some("one\n")),
        ("other", Some("one\n")),
    ] {
        let world = World::new();
        world.run(script, &[("POWER_CUT_DEAF", deaf)]);
        world.cut();
        assert_eq!(world.files().get("d/17.log").map(String::as_str), expected, "{deaf}");
    }
}

#[test]
fn what_has_a_name_now_keeps_it_from_what_had_it_before() {
    for (again, expected) in [("rmdir d; mkdir d; echo x > d/x", "d/x"), ("rm a; echo new > a", "a")] {
        let world = World::new();
        world.ok("mkdir d; echo one > a; sync a d .");
        world.ok(again);
        world.cut_with(Cut::AllButNewest, 0);
        assert_eq!(world.files().get(expected).map(String::as_str), Some(""), "{again}");
    }
}

#[test]
fn a_kill_without_a_power_cut_loses_nothing_and_a_later_cut_still_does() {
    let world = World::new();
    world.ok("echo one > a; sync a .; echo two >> a");
    assert_eq!(world.files()["a"], "one\ntwo\n");
    world.ok("echo three >> a");
    world.cut();
    assert_eq!(world.files()["a"], "one\n");
}

#[test]
fn a_note_that_a_kill_cut_short_is_of_nothing_that_was_done() {
    use std::io::Write;
    let world = World::new();
    world.ok("echo one > a; sync a .");
    let mut journal = fs::OpenOptions::new().append(true).open(&world.disk.journal).unwrap();
    for part in ["si", "size 1 4 0 bytes=4", "size 1 4 0 bytes=4\non"] {
        let whole = journal.metadata().unwrap().len();
        journal.write_all(part.as_bytes()).unwrap();
        world.ok("echo two >> a; sync a");
        assert_eq!(world.disk.seen().unwrap().changes, 1);
        assert!(journal.metadata().unwrap().len() > whole);
    }
    world.cut();
    assert_eq!(world.files()["a"], "one\ntwo\ntwo\ntwo\n");
}

#[test]
fn whatever_is_kept_of_the_rest_is_an_older_part_of_it() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let world = World::new();
        world.ok("echo one > a; sync a .; echo two >> a; echo three >> a");
        world.cut_with(Cut::Younger, seed);
        let left = world.files()["a"].clone();
        assert!("one\ntwo\nthree\n".starts_with(&left) && left.len() >= 4, "{left:?}");
        seen.insert(left);
    }
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn names_that_tell_one_file_from_another_are_no_part_of_its_kind() {
    let world = World::new();
    let script = "mkdir d; for file in one one_two; do echo x | dd of=d/$file conv=fsync status=none; done; sync d";
    world.run(script, &[("POWER_CUT_NAMES", "one_two,one")]);
    let syncs: Vec<_> = world.disk.seen().unwrap().syncs.into_iter().collect();
    assert_eq!(syncs, [("d/ after nothing".to_string(), 1), ("d/* after write".to_string(), 2)]);
}

#[test]
fn a_process_dies_after_an_fsync_of_a_kind_or_one_of_them_fails() {
    let script = "set -e; echo one > a.1; echo x > b; sync a.1 b a.1; echo y > c";
    // The fsync itself, and then the changes after it.
    for (after, died) in [("2 0 a.*", "sync a.1"), ("1 1 a.* after nothing", "sync b"), ("1 1 b", "sync a.1")] {
        let world = World::new();
        assert!(!world.run(script, &[("POWER_CUT_DIE_AFTER_SYNC", after)]).success(), "{after}");
        assert!(!world.files().contains_key("c"), "{after}");
        let said = world.disk.seen().unwrap().died.unwrap();
        assert!(said.ends_with(died), "{after}: {said}");
    }
    let world = World::new();
    assert!(world.run(script, &[("POWER_CUT_DIE_AFTER_SYNC", "3 0 a.*")]).success(), "there is no third");
    for (fails, succeeds) in [("2 a.", false), ("3 a.", true), ("1 b", false), ("3", false), ("4", true)] {
        let world = World::new();
        assert_eq!(world.run(script, &[("POWER_CUT_EIO", fails)]).success(), succeeds, "{fails}");
    }
}

#[test]
fn names_and_bytes_reach_the_disk_in_any_order() {
    for (cut, expected) in [
        (Cut::All, vec![("a", "one\n")]),
        (Cut::Bytes, vec![("a", "one\n"), ("b", ""), ("d/", ""), ("d/c", "")]),
        (Cut::AllButNewest, vec![("a", "one\n"), ("d/", "")]),
        (Cut::InNewFolders, vec![("a", "one\ntwo\n"), ("b", "x\n"), ("d/", "")]),
    ] {
        let world = World::new();
        world.ok("echo one > a; sync a .; echo two >> a; echo x > b; mkdir d; echo y > d/c");
        world.cut_with(cut, 0);
        let expected: BTreeMap<String, String> =
            expected.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        let mut files = world.files();
        if cut == Cut::AllButNewest {
            assert_eq!(files.remove("d/c").as_deref(), Some(""), "the newest name of its own folder");
        }
        assert_eq!(files, expected, "{cut}");
    }
}
