//! Whether an fsync is needed: a process that leaves out one kind of them dies where the next would come to its help, and a
//! power cut takes what it should have kept. A kind that can be left out without harm is redundant, or the proof is blind.

use crate::disk::Cut;
use crate::fate::{Fate, Fault};
use crate::site::Word;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Lives of an attempt that goes through a start, and of one that dies anywhere.
const LIVES: [u64; 2] = [14, 7];

/// Which cuts the attempts that are made for a kind, or go through a start, try in turn.
const CUTS: [Cut; 4] = [Cut::All, Cut::AllButNewest, Cut::Bytes, Cut::LeftOut];

/// The store of claims has its name, and nobody has opened it yet.
const CLAIMS_NAMED: &str = "runner/ after rename to claims";

/// Longer than clicks wait in the spool before they are kept aside.
const TOO_OLD_MS: i64 = 4_200_000;

/// Ends the kinds of what was not changed since this process began: a process before it may have been killed.
const NOTHING: &str = " after nothing";

/// Kinds of which nothing can show that they are left out, each with its reason. All others have to be found; and these must
/// not be.
pub const UNSEEN: &[(&str, &str)] = &[
    (
        "runner/.claims.aside/*.jnl after size",
        "fjall lengthens its journal with zeros, and a shorter one reads the same",
    ),
    ("runner/.claims.aside/*.jnl after nothing", "nothing is in the journal while the store is made"),
    ("runner/.claims.aside/keyspaces/ after nothing", EMPTY),
    ("spool/probe after write", "it asks the disk whether it would take a click; nobody reads what it wrote"),
];
const EMPTY: &str = "fjall syncs a folder that is empty; its name, and what is put into it, are synced by others";

/// Why nothing can show that fsyncs of this kind are left out, if that is so.
pub fn unseen(kind: &str) -> Option<&'static str> {
    UNSEEN.iter().find(|(unseen, _)| *unseen == kind).map(|(_, why)| *why)
}

/// The paths whose fsyncs are of the same file or folder as those of this kind: one of them may make up for another.
pub fn same_file(kind: &str) -> Vec<String> {
    let path = kind.split(" after ").next().unwrap_or(kind);
    let twin = match path.rsplit_once('/') {
        // A tree of claims is written under a temporary name, synced, renamed and synced again.
        Some((folder, "current")) => Some(format!("{folder}/.*")),
        Some((folder, ".*")) => Some(format!("{folder}/current")),
        _ => None,
    };
    [path.to_string()].into_iter().chain(twin).collect()
}

/// The lives of the attempts that are made for the kinds that begin like this one, and come before those of all.
pub fn directed(kind: &str) -> Vec<Vec<Fate>> {
    let kill = |steps, word| Fate { steps, word: Some(word), ..Fate::QUIET };
    let lives = |cut| {
        let (cut, power_cut) = (|fate| Fate { power_cut: Some(cut), ..fate }, Some(cut));
        if kind.starts_with("runner/.claims.aside/") {
            // What opens the store syncs much of it again.
            vec![Fate { fault: Fault::AfterSyncOf(CLAIMS_NAMED), steps: 2, power_cut, ..Fate::QUIET }]
        } else if kind.starts_with("runner/ after ") {
            // The log is cut at what the newest checkpoint needs, and an older one or none is there afterwards; or it is there,
            // and the store of claims is not.
            let waits = Fate { away_ms: TOO_OLD_MS, ..kill(4, Word::Checkpoint) };
            let closes = [kill(6, Word::Settle), kill(3, Word::Checkpoint), cut(kill(3, Word::Retain))];
            [&[kill(10, Word::Settle), waits][..], &closes].concat().repeat(3)
        } else if kind.starts_with("spool/aside/settled/") {
            // What is kept aside of an impression that is billed is not sent but put away, and no other record of it is left
            // when the next start syncs the folder that it was in.
            let waits = Fate { away_ms: TOO_OLD_MS, ..kill(40, Word::Settle) };
            let mut lives = vec![waits, kill(6, Word::Settle), kill(2, Word::Send), cut(kill(2, Word::Beat))];
            if kind.ends_with(NOTHING) {
                lives.insert(2, Fate { fault: Fault::BeforeSync(1), ..kill(2, Word::Send) });
            }
            lives.repeat(3)
        } else if kind.starts_with("spool/aside/") {
            // Clicks are kept aside, and that is written down; then they are sent by hand.
            let waits = Fate { away_ms: TOO_OLD_MS, ..kill(10, Word::Beat) };
            [waits, cut(kill(8, Word::Tidy)), cut(kill(2, Word::Send))].repeat(3)
        } else if kind.starts_with("spool/") {
            // Clicks are answered from the spool, and some of them only; its files become full.
            vec![cut(kill(20, Word::Tidy)); 8]
        } else if kind.ends_with(NOTHING) {
            // The first start is killed before it syncs what it made, and the next goes on with that.
            let killed = Fate { fault: Fault::BeforeSync(1), steps: 2, ..Fate::QUIET };
            vec![killed, cut(Fate { steps: 8, ..Fate::QUIET })]
        } else {
            Vec::new()
        }
    };
    CUTS.into_iter().map(lives).filter(|lives| !lives.is_empty()).collect()
}

/// The lives of an attempt to find that fsyncs of a kind are left out.
///
/// First come those that are made for such kinds. In those that follow each life dies one change later after its first such
/// fsync than the one before. While a start is undone as a whole by the power cut the next life makes the same changes again, so
/// that one attempt goes through a start. In later ones a life dies anywhere after one, or before the next of the same file or
/// folder would make up for it, or is killed there and another one goes on with what is not durable.
pub fn attempt(kind: &str, number: u64, seed: u64) -> Vec<Fate> {
    let mut directed = directed(kind).into_iter();
    let first = directed.len() as u64;
    if let Some(lives) = directed.nth(number as usize) {
        return lives;
    }
    let number = number - first;
    let mut rng = StdRng::seed_from_u64(seed ^ (number << 32));
    let of_what_was_left = kind.ends_with(NOTHING);
    let systematic = CUTS.get(number as usize).filter(|_| !of_what_was_left);
    let mut lives = Vec::new();
    if let Some(cut) = systematic {
        lives.extend((1..=LIVES[0]).map(|more| fate(Fault::AfterSync(1, more), Some(*cut), &mut rng)));
        return lives;
    }
    for _ in 0..LIVES[1] {
        let cut = Some(if rng.random_bool(0.2) { Cut::LeftOut } else { Cut::draw(&mut rng) });
        let before = Fault::BeforeSync(if rng.random() { rng.random_range(1..3) } else { rng.random_range(1..13) });
        match rng.random_range(0..3) {
            0 if !of_what_was_left => {
                let more = *[1, 2, 3, 4, 5, 6, 9, 14, 30, 60].choose(&mut rng).unwrap_or(&1);
                let often = *[1, 1, 1, 2, 3, 5, 8, 20].choose(&mut rng).unwrap_or(&1);
                lives.push(fate(Fault::AfterSync(often, more), cut, &mut rng));
            }
            1 if !of_what_was_left => lives.push(fate(before, cut, &mut rng)),
            _ => {
                lives.push(Fate { away_ms: 0, ..fate(before, None, &mut rng) });
                lives.push(fate(Fault::None, cut, &mut rng));
            }
        }
    }
    lives
}

fn fate(fault: Fault, power_cut: Option<Cut>, rng: &mut StdRng) -> Fate {
    Fate {
        fault,
        steps: rng.random_range(2..10),
        power_cut,
        // Long enough for minutes to become final, and sometimes for segments to be removed.
        away_ms: *[0, 70_000, 70_000, 4_200_000].choose(rng).unwrap_or(&0),
        ..Fate::QUIET
    }
}

#[test]
fn a_file_that_is_renamed_is_one_file() {
    assert_eq!(same_file("spool/log/ after nothing"), ["spool/log/"]);
    let tree = "runner/claims/keyspaces/*";
    let both = [format!("{tree}/.*"), format!("{tree}/current")];
    assert_eq!(same_file(&format!("{tree}/.* after write")), both);
    assert_eq!(same_file(&format!("{tree}/current after nothing")), [both[1].clone(), both[0].clone()]);
}

#[test]
fn attempts_that_are_made_for_a_kind_come_before_those_of_all() {
    let kind = "runner/.claims.aside/keyspaces/*/ after create *";
    let faults = |number| attempt(kind, number, 1).iter().map(|fate| fate.fault).collect::<Vec<_>>();
    assert!((0..4).all(|number| faults(number) == [Fault::AfterSyncOf(CLAIMS_NAMED)]));
    assert_eq!(faults(4)[..2], [Fault::AfterSync(1, 1), Fault::AfterSync(1, 2)]);
    assert_eq!(attempt("log/ after make folder", 0, 1).len() as u64, LIVES[0], "none is made for it");
}
