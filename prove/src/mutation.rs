//! Whether an fsync is needed: a process that leaves out one kind of them dies where the next would come to its help, and a
//! power cut takes what it should have kept. A kind that can be left out without harm is redundant, or the proof is blind.

use crate::browsers::AHEAD_MS;
use crate::disk::Cut;
use crate::fate::{Fate, Fault};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Lives of an attempt that goes through a start, and of one that dies anywhere.
const LIVES: [u64; 2] = [14, 7];

/// The lives of an attempt to find that fsyncs of a kind are left out.
///
/// In the first attempts each life dies one change later after its first such fsync than the one before. While a start is
/// undone as a whole by the power cut the next life makes the same changes again, so that one attempt goes through a start.
/// In later ones a life dies anywhere after one, or before the next of the same file or folder would make up for it, or is
/// killed there and another one goes on with what is not durable.
pub fn attempt(kind: &str, number: u64, seed: u64) -> Vec<Fate> {
    let mut rng = StdRng::seed_from_u64(seed ^ (number << 32));
    let of_what_was_left = kind.ends_with(" after nothing");
    let systematic = [Cut::All, Cut::AllButNewest, Cut::Bytes].get(number as usize).filter(|_| !of_what_was_left);
    let mut lives = Vec::new();
    if let Some(cut) = systematic {
        lives.extend((1..=LIVES[0]).map(|more| fate(Fault::AfterSync(1, more), Some(*cut), &mut rng)));
        return lives;
    }
    for _ in 0..LIVES[1] {
        let cut = Some(Cut::draw(&mut rng));
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
        clock_ms: 0,
        leap: None,
        skew_ms: AHEAD_MS,
    }
}
