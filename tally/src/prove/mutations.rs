//! `tally prove --mutate`: every kind of fsync is left out in turn, and a power cut has to find it.

use super::one;
use crate::status::say;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use prove::mutation::{attempt, directed, same_file, unseen};
use prove::run::Kind;
use prove::site::{Mutation, Setting};
use std::collections::BTreeMap;

/// Runs in which nothing is left out, from which the kinds are learned: as many with random power cuts, and as the attempts;
/// beside those with the lives that are made for some kinds.
const UNCHANGED: [u64; 2] = [2, 4];

/// Kinds that are tried at once: a run waits more than it works.
const AT_ONCE: usize = 3;

/// What came of a kind.
enum Verdict {
    Found(String),
    /// Not if it alone is left out, but with all others of the same file or folder: each of them makes up for the others.
    FoundTogether(String),
    Missed,
    /// The same lives do harm also if nothing is left out.
    Wrong(String),
}

struct Tried {
    verdict: Verdict,
    runs: u64,
    /// Fsyncs that were left out.
    skipped: u64,
}

/// Tries all kinds that begin so, with at most `runs` each.
///
/// # Errors
/// If a kind is not found that is not known for that, or one is found that is, or something is wrong without anything left out.
pub async fn all(first: u64, runs: u64, only: &str, setting: &Setting) -> Result<()> {
    let kinds = kinds(first, setting).await?;
    say(&format!("{} kinds of fsync, and how often they were done in unchanged runs:", kinds.len()));
    for (kind, times) in &kinds {
        say(&format!("{times:>7}  {kind}"));
    }
    let kinds = kinds.keys().filter(|kind| kind.starts_with(only));
    let tries = kinds.map(|kind| async move { (kind, try_one(kind, first, runs, setting).await) });
    let mut tries = futures::stream::iter(tries).buffer_unordered(AT_ONCE);
    let (mut found, mut together, mut known, mut most) = (0, 0, 0, 0);
    let (mut missed, mut wrong) = (Vec::new(), Vec::new());
    while let Some((kind, Tried { verdict, runs, skipped })) = tries.next().await {
        match (verdict, unseen(kind)) {
            (Verdict::Missed, Some(why)) => {
                say(&format!("not found in {runs} runs, {skipped} left out, as is known: {kind}: {why}"));
                known += 1;
            }
            (Verdict::Found(how) | Verdict::FoundTogether(how), Some(_)) => {
                say(&format!("FOUND in run {runs}, and listed as one that cannot be: {kind}: {how}"));
                wrong.push(kind.as_str());
            }
            (Verdict::Found(how), None) => {
                say(&format!("found in run {runs}: {kind}: {how}"));
                (found, most) = (found + 1, most.max(runs));
            }
            (Verdict::FoundTogether(how), None) => {
                say(&format!("found in run {runs} with all others of its path left out: {kind}: {how}"));
                together += 1;
            }
            (Verdict::Missed, None) => {
                say(&format!("NOT FOUND in {runs} runs, {skipped} left out: {kind}"));
                missed.push(kind.as_str());
            }
            (Verdict::Wrong(how), _) => {
                say(&format!("WRONG in run {runs} also if nothing is left out: {kind}: {how}"));
                wrong.push(kind.as_str());
            }
        }
    }
    say(&format!(
        "{found} kinds of fsync are found when they are left out, in at most {most} runs each; {together} when all of the same \
         file or folder are; {known} cannot be, as is known; {} are not, and have to be; {} times something else was wrong",
        missed.len(),
        wrong.len()
    ));
    if missed.is_empty() && wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "left out and not missed: {}; something else: {} (`tally prove --mutate --runs {runs} --seed {first} --deaf KIND` replays one)",
        missed.join(", "),
        wrong.join(", ")
    )
}

/// The kinds of fsync that are done, and how often.
async fn kinds(first: u64, setting: &Setting) -> Result<BTreeMap<String, u64>> {
    let [random, planned] = UNCHANGED;
    let mut plans = vec![Kind::PowerCuts; usize::try_from(random).unwrap_or(0)];
    // Of no kind, so that nobody dies of it.
    plans.extend((0..planned).map(|number| Kind::Lives(attempt("", number, first))));
    plans.extend(
        ["spool/", "spool/aside/", "spool/aside/settled/"]
            .into_iter()
            .flat_map(|of| directed(of).into_iter().take(1))
            .map(Kind::Lives),
    );
    let runs = (first..).zip(&plans).map(|(seed, plan)| async move {
        one(seed, plan, setting).await.with_context(|| format!("seed {seed}, unchanged"))
    });
    let mut runs = futures::stream::iter(runs).buffer_unordered(AT_ONCE);
    let mut kinds = BTreeMap::new();
    while let Some(done) = runs.next().await {
        let done = done?;
        done.syncs.into_iter().for_each(|(kind, times)| *kinds.entry(kind).or_default() += times);
    }
    Ok(kinds)
}

async fn try_one(kind: &str, first: u64, runs: u64, setting: &Setting) -> Tried {
    let alone = try_deaf_to(&[kind.into()], kind, first, runs, setting).await;
    if !matches!(alone.verdict, Verdict::Missed) {
        return alone;
    }
    let together = try_deaf_to(&same_file(kind), kind, first, runs, setting).await;
    match together.verdict {
        Verdict::Found(how) => Tried { verdict: Verdict::FoundTogether(how), ..together },
        Verdict::Missed => alone,
        _ => together,
    }
}

/// Leaves out fsyncs of `deaf` in the attempts for `kind`, whose lives die by the first of them.
async fn try_deaf_to(deaf: &[String], kind: &str, first: u64, runs: u64, setting: &Setting) -> Tried {
    let of = deaf.first().map_or("", String::as_str);
    let with = |deaf: &[String]| Setting {
        mutation: Some(Mutation { kind: of.into(), deaf: deaf.into() }),
        ..setting.clone()
    };
    let mut skipped = 0;
    for number in 0..runs {
        let plan = Kind::Lives(attempt(kind, number, first));
        let seed = first + number;
        match one(seed, &plan, &with(deaf)).await {
            Ok(done) => skipped += done.skipped,
            Err(error) => {
                // The same lives and deaths must do no harm when the fsync is done: or something else was found.
                let verdict = match one(seed, &plan, &with(&[])).await {
                    Ok(_) => Verdict::Found(what(&error)),
                    Err(error) => Verdict::Wrong(format!("{error:#}")),
                };
                return Tried { verdict, runs: number + 1, skipped };
            }
        }
    }
    Tried { verdict: Verdict::Missed, runs, skipped }
}

/// The shortest that says what was wrong.
fn what(error: &anyhow::Error) -> String {
    let why = error.root_cause().to_string();
    let folder = std::env::temp_dir();
    // Folders of runs are gone, and have other names each time.
    let why = why.replace(&*folder.to_string_lossy(), "");
    why.lines().next().unwrap_or_default().chars().take(240).collect()
}
