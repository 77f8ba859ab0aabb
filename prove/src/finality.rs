//! What is final stays as it is: every look is compared with the one before.

use crate::judge::Cells;
use click::Minute;

/// What was final at the last look.
#[derive(Debug, Clone, Default)]
pub struct Finality {
    /// Minutes before this one.
    through: Option<Minute>,
    /// As they were first closed, without corrections.
    closed: Cells,
}

impl Finality {
    /// Takes a later look: minutes before `through` are final, and were closed so.
    ///
    /// # Errors
    /// What is final no more, or is another number.
    pub fn look(&mut self, through: Minute, closed: Cells) -> Result<(), String> {
        if let Some(before) = self.through {
            if through < before {
                return Err(format!("minutes were final up to {before}, and are up to {through} only"));
            }
            let still = closed.iter().filter(|(cell, _)| cell.0 < before);
            if let Some((cell, clicks)) = still.clone().find(|(cell, clicks)| self.closed.get(cell) != Some(clicks)) {
                let was = self.closed.get(cell);
                return Err(format!("{cell:?} was final as {was:?}, and was first closed as {clicks} now"));
            }
            if still.count() != self.closed.len() {
                let gone = self.closed.iter().find(|(cell, _)| !closed.contains_key(cell));
                return Err(format!("{gone:?} was final, and is gone"));
            }
        }
        *self = Finality { through: Some(through), closed };
        Ok(())
    }
}

#[test]
fn what_was_final_is_missed() {
    let minute = Minute::from_number;
    let cell =
        |at: i64, ad: &str| (minute(at), ad.to_string(), String::new(), String::new(), String::new(), String::new());
    let first = Cells::from([(cell(1, "a"), 1), (cell(2, "b"), 2)]);
    let then = |through: i64, cells: &[(crate::judge::Cell, i64)]| {
        let mut finality = Finality::default();
        finality
            .look(minute(3), first.clone())
            .and_then(|()| finality.look(minute(through), cells.iter().cloned().collect()))
    };
    let (a, b) = ((cell(1, "a"), 1), (cell(2, "b"), 2));
    assert_eq!(then(3, &[a.clone(), b.clone()]), Ok(()));
    assert_eq!(then(4, &[a.clone(), b.clone(), (cell(3, "a"), 1)]), Ok(()), "a minute more");
    assert!(then(2, std::slice::from_ref(&a)).is_err(), "less is final");
    assert!(then(4, std::slice::from_ref(&a)).is_err(), "a cell is gone");
    assert!(then(4, &[a.clone(), (cell(2, "b"), 1)]).is_err(), "a cell is less");
    assert!(then(4, &[a, b, (cell(2, "a"), 1)]).is_err(), "a click came to a final minute");
    assert!(then(3, &[(cell(1, "b"), 1), (cell(2, "b"), 2)]).is_err(), "a click moved to another cell of its minute");
}
