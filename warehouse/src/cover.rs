//! Which tables answer a stretch of time.

use click::Minute;

/// A stretch of whole units of so many minutes: unit, first minute, minute after the last.
pub(crate) type Piece = (i64, Minute, Minute);

/// Covers [`from`, `to`) once: with whole units of the coarsest kind that fits, its edges with finer ones. `units` are
/// their lengths in minutes, the coarsest first, each a multiple of the next; the last is 1.
pub(crate) fn cover(from: Minute, to: Minute, units: &[i64]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    add(from, to, units, &mut pieces);
    pieces
}

fn add(from: Minute, to: Minute, units: &[i64], pieces: &mut Vec<Piece>) {
    let Some((unit, finer)) = units.split_first() else { return };
    if from >= to {
        return;
    }
    let floor = |minute: Minute| Minute::from_number(minute.number().div_euclid(*unit) * unit);
    let start = floor(Minute::from_number(from.number().saturating_add(unit - 1)));
    let end = floor(to);
    if start >= end {
        return add(from, to, finer, pieces);
    }
    pieces.push((*unit, start, end));
    add(from, start, finer, pieces);
    add(end, to, finer, pieces);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_covered_once_by_the_coarsest_units() {
        let check = |from: i64, to: i64, expected: &[(i64, i64, i64)]| {
            let (from, to) = (Minute::from_number(from), Minute::from_number(to));
            let pieces = cover(from, to, &[1440, 15, 1]);
            let pieces: Vec<_> = pieces.iter().map(|(unit, from, to)| (*unit, from.number(), to.number())).collect();
            assert_eq!(pieces, expected);
        };
        check(0, 1440, &[(1440, 0, 1440)]);
        check(7, 7, &[]);
        check(9, 7, &[]);
        check(1, 14, &[(1, 1, 14)]);
        check(1, 31, &[(15, 15, 30), (1, 1, 15), (1, 30, 31)]);
        check(-1, 1456, &[(1440, 0, 1440), (1, -1, 0), (15, 1440, 1455), (1, 1455, 1456)]);
    }
}
