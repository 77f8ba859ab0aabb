//! A matching with room in cells, grown by augmenting paths: what is matched stays matched.

use crate::judge::{Cell, Cells};
use std::collections::{BTreeMap, BTreeSet};

/// Who has a place in which cell.
#[derive(Default)]
pub struct Matching {
    /// What is left of each cell.
    room: Cells,
    options: Vec<Vec<Cell>>,
    in_cell: BTreeMap<Cell, Vec<usize>>,
}

impl Matching {
    pub fn new(room: Cells) -> Matching {
        Matching { room, ..Matching::default() }
    }

    /// Gives somebody a place in one of these cells, if there is one when others move.
    pub fn add(&mut self, options: Vec<Cell>) -> bool {
        self.options.push(options);
        self.place(self.options.len() - 1, &mut BTreeSet::new())
    }

    /// A cell that has more room than those who need it.
    pub fn over(&self) -> Option<(&Cell, i64)> {
        self.room.iter().find(|(_, room)| **room > 0).map(|(cell, room)| (cell, *room))
    }

    fn place(&mut self, who: usize, tried: &mut BTreeSet<Cell>) -> bool {
        for cell in self.options[who].clone() {
            if !tried.insert(cell.clone()) {
                continue;
            }
            let free = self.room.get(&cell).copied().unwrap_or(0) > 0;
            let moved = free || {
                let others = self.in_cell.get(&cell).cloned().unwrap_or_default();
                others
                    .into_iter()
                    .any(|other| self.options[other].len() > 1 && self.place_elsewhere(other, &cell, tried))
            };
            if moved {
                *self.room.entry(cell.clone()).or_default() -= 1;
                self.in_cell.entry(cell).or_default().push(who);
                return true;
            }
        }
        false
    }

    fn place_elsewhere(&mut self, who: usize, from: &Cell, tried: &mut BTreeSet<Cell>) -> bool {
        if !self.place(who, tried) {
            return false;
        }
        if let Some(held) = self.in_cell.get_mut(from) {
            held.retain(|other| *other != who);
        }
        *self.room.entry(from.clone()).or_default() += 1;
        true
    }
}
