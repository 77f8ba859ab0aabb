//! The oracle: what must be billed, from the answers alone. It shares no counting code with the product.

use click::{ClickId, Minute};
use std::collections::{BTreeMap, HashMap};

/// Where a click is counted: minute, ad, campaign, publisher, country, device.
pub type Cell = (Minute, String, String, String, String, String);

/// Everything that a report says, by cell.
pub type Cells = BTreeMap<Cell, i64>;

/// The eligible clicks of an impression.
#[derive(Debug, Clone, Default)]
struct Impression {
    /// Answered with a 302 or 204, by the click id that the answer named.
    answered: Vec<Cell>,
    /// Sent, and not answered: any of them may be in the log.
    unanswered: Vec<Cell>,
}

/// Remembers what was sent and answered.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    impressions: HashMap<String, Impression>,
    /// Clicks that must not be billed whatever happens, for the message.
    pub ineligible: u64,
    /// Answered clicks that a change of the rules would make ineligible.
    doubtful: Vec<(String, Cell)>,
    /// Answered clicks whose way to the log is not over, and whether a change of the rules would make them ineligible.
    spooled: Vec<(String, Cell, bool)>,
}

impl Judge {
    /// A click that was answered by a redirect whose clock is so far ahead of the log's. It is never later than its
    /// record: the log's clock, which stands still during a step, is the later bound.
    pub fn answered_at(&mut self, impression: &str, click: ClickId, ahead_ms: i64, dimensions: &[String; 5]) {
        let cell = cell(click.at().plus(-ahead_ms).minute(), dimensions);
        self.impressions.entry(impression.into()).or_default().answered.push(cell);
    }

    /// The rules change: they no longer bill the clicks that [`Judge::doubt`] named. What was final before `through` stays as
    /// it was. `any` says that append times and click times are so far apart that this tells nothing: which rules such a click
    /// met is not known from outside.
    pub fn change(&mut self, through: Minute, any: bool) {
        self.spooled.retain(|(_, _, changes)| !changes);
        for (impression, cell) in std::mem::take(&mut self.doubtful) {
            let Some(known) = self.impressions.get_mut(&impression).filter(|_| any || cell.0 >= through) else {
                continue;
            };
            if let Some(at) = known.answered.iter().position(|answered| *answered == cell) {
                known.unanswered.push(known.answered.swap_remove(at));
            }
        }
    }

    /// A click that was answered, and may wait in a spool: it counts when it has arrived.
    pub fn spooled(&mut self, impression: &str, click: ClickId, dimensions: &[String; 5], changes: bool) {
        let cell = cell(click.at().minute(), dimensions);
        self.impressions.entry(impression.into()).or_default().unanswered.push(cell.clone());
        self.spooled.push((impression.into(), cell, changes));
    }

    /// Every spool is empty: what was in one has arrived.
    pub fn arrived(&mut self) {
        for (impression, cell, _) in std::mem::take(&mut self.spooled) {
            self.impressions.entry(impression).or_default().answered.push(cell);
        }
    }

    /// The last answered click of this impression is one that a change of the rules would make ineligible.
    pub fn doubt(&mut self, impression: &str) {
        let last = self.impressions.get(impression).and_then(|known| known.answered.last());
        if let Some(cell) = last {
            self.doubtful.push((impression.into(), cell.clone()));
        }
    }

    /// A click that was answered. Its id tells its minute.
    #[cfg(test)]
    pub fn answered(&mut self, impression: &str, click: ClickId, dimensions: &[String; 5]) {
        let cell = cell(click.at().minute(), dimensions);
        self.impressions.entry(impression.into()).or_default().answered.push(cell);
    }

    /// A click that is sent in one of these minutes and has no answer: it may be in the log already.
    pub fn sent(&mut self, impression: &str, minutes: &[Minute], dimensions: &[String; 5]) {
        let cells = minutes.iter().map(|minute| cell(*minute, dimensions));
        self.impressions.entry(impression.into()).or_default().unanswered.extend(cells);
    }

    /// What was said of a click when it was sent is void: its answer says more.
    pub fn came(&mut self, impression: &str, minutes: &[Minute], dimensions: &[String; 5]) {
        let Some(known) = self.impressions.get_mut(impression) else { return };
        for cell in minutes.iter().map(|minute| cell(*minute, dimensions)) {
            if let Some(at) = known.unanswered.iter().position(|unanswered| *unanswered == cell) {
                known.unanswered.swap_remove(at);
            }
        }
    }

    /// How many impressions must be billed.
    pub fn must(&self) -> usize {
        self.impressions.values().filter(|impression| !impression.answered.is_empty()).count()
    }

    /// Every impression with an answered eligible click is billed exactly once, in the cell of one of its eligible
    /// clicks; one with only unanswered ones at most once; and nothing else is billed. That is a matching of
    /// impressions to cells which fills every cell to the count reported.
    pub fn check(&self, reported: &Cells) -> Result<(), String> {
        let mut matching = Matching { room: reported.clone(), ..Matching::default() };
        let (must, may): (Vec<_>, Vec<_>) =
            self.impressions.iter().partition(|(_, impression)| !impression.answered.is_empty());
        for (name, impression) in &must {
            if !matching.add(impression.answered.iter().chain(&impression.unanswered).cloned().collect()) {
                return Err(format!(
                    "impression {name} is not billed: answered {:?}, unanswered {:?}; reported there {:?}",
                    impression.answered,
                    impression.unanswered,
                    impression.answered.iter().map(|cell| reported.get(cell)).collect::<Vec<_>>()
                ));
            }
        }
        for (_, impression) in &may {
            matching.add(impression.unanswered.clone());
        }
        match matching.room.iter().find(|(_, room)| **room > 0) {
            Some((cell, over)) => {
                Err(format!("{over} of {:?} clicks are billed without cause in {cell:?}", reported.get(cell)))
            }
            None => Ok(()),
        }
    }
}

fn cell(minute: Minute, dimensions: &[String; 5]) -> Cell {
    let [ad, campaign, publisher, country, device] = dimensions.clone();
    (minute, ad, campaign, publisher, country, device)
}

/// A matching with room in cells, grown by augmenting paths: what is matched stays matched.
#[derive(Default)]
struct Matching {
    room: Cells,
    options: Vec<Vec<Cell>>,
    held: Vec<Option<Cell>>,
    in_cell: BTreeMap<Cell, Vec<usize>>,
}

impl Matching {
    fn add(&mut self, options: Vec<Cell>) -> bool {
        self.options.push(options);
        self.held.push(None);
        let mut tried = std::collections::BTreeSet::new();
        self.place(self.options.len() - 1, &mut tried)
    }

    fn place(&mut self, who: usize, tried: &mut std::collections::BTreeSet<Cell>) -> bool {
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
                self.in_cell.entry(cell.clone()).or_default().push(who);
                self.held[who] = Some(cell);
                return true;
            }
        }
        false
    }

    fn place_elsewhere(&mut self, who: usize, from: &Cell, tried: &mut std::collections::BTreeSet<Cell>) -> bool {
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

#[test]
fn the_judge_can_say_no() {
    let at = |ms: i64| click::Millis::new(1_776_686_400_000 + ms);
    let dimensions = ["ad", "cmp", "pub", "DE", "mobile"].map(String::from);
    let [first, second] = [0, 60_000].map(|ms| cell(at(ms).minute(), &dimensions));
    let mut judge = Judge::default();
    judge.answered("a", ClickId::new(at(1)), &dimensions);
    judge.answered("a", ClickId::new(at(60_001)), &dimensions);
    judge.answered("b", ClickId::new(at(2)), &dimensions);
    judge.sent("c", &[at(0).minute()], &dimensions);
    judge.sent("b", &[at(60_000).minute()], &dimensions);
    judge.came("b", &[at(60_000).minute()], &dimensions);
    let check =
        |counts: &[(&Cell, i64)]| judge.check(&counts.iter().map(|(cell, n)| ((*cell).clone(), *n)).collect()).is_ok();
    assert!(check(&[(&first, 2)]), "both in the first minute");
    assert!(check(&[(&first, 1), (&second, 1)]), "a in the second");
    assert!(check(&[(&first, 2), (&second, 1)]), "and c");
    assert!(check(&[(&first, 3)]), "or all in the first");
    assert!(!check(&[(&first, 1)]), "one is missing");
    assert!(!check(&[(&second, 2)]), "b was not in the second");
    assert!(!check(&[(&first, 3), (&second, 1)]), "one too many");
}

#[test]
fn after_a_change_the_judge_doubts_what_was_not_final() {
    let at = |ms: i64| click::Millis::new(1_776_686_400_000 + ms);
    let dimensions = ["ad", "cmp", "pub", "DE", "mobile"].map(String::from);
    let [first, second] = [0, 60_000].map(|ms| cell(at(ms).minute(), &dimensions));
    let mut judge = Judge::default();
    for (impression, ms) in [("final", 1), ("open", 60_001)] {
        judge.answered_at(impression, ClickId::new(at(ms)), 0, &dimensions);
        judge.doubt(impression);
    }
    judge.spooled("slow", ClickId::new(at(2)), &dimensions, true);
    judge.answered_at("open", ClickId::new(at(60_002)), 0, &dimensions);
    judge.change(second.0, false);
    let check = |first_clicks, second_clicks| {
        judge.check(&[(first.clone(), first_clicks), (second.clone(), second_clicks)].into_iter().collect()).is_ok()
    };
    assert!(check(1, 1) && check(2, 1), "the slow one counts or not");
    assert!(!check(0, 1), "the final one counts");
    assert!(!check(1, 0), "another click of the open impression counts");
    assert!(!check(1, 2), "it counts once");
}

#[test]
fn a_click_in_a_spool_may_count_and_one_that_arrived_must() {
    let at = click::Millis::new(1_776_686_400_000);
    let dimensions = ["ad", "cmp", "pub", "DE", "mobile"].map(String::from);
    let only = cell(at.minute(), &dimensions);
    let mut judge = Judge::default();
    judge.spooled("a", ClickId::new(at), &dimensions, false);
    let check = |judge: &Judge, clicks: i64| judge.check(&[(only.clone(), clicks)].into_iter().collect()).is_ok();
    assert!(check(&judge, 0) && check(&judge, 1) && !check(&judge, 2));
    judge.arrived();
    assert!(!check(&judge, 0) && check(&judge, 1) && !check(&judge, 2));
}
