//! The oracle: what must be billed, from the answers alone. It shares no counting code with the product.

use crate::matching::Matching;
use crate::tables::Row;
use click::{ClickId, Millis, Minute};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Where a click is counted: minute, ad, campaign, publisher, country, device.
pub type Cell = (Minute, String, String, String, String, String);

/// Everything that a report says, by cell.
pub type Cells = BTreeMap<Cell, i64>;

/// When a click was made and when it was recorded, as far as virtual time tells: the first and the last it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub clicked: (Millis, Millis),
    pub appended: (Millis, Millis),
}

impl Times {
    /// Of a click whose id says `id`, by a redirect whose clock is so far from the log's. The log's time does not go back
    /// with its clock, and was at most `latest` when the answer came; a click is never later than its record.
    pub fn of(id: Millis, skew_ms: i64, latest: Millis) -> Times {
        let now = id.plus(-skew_ms);
        let appended = (now, latest.max(now));
        Times { clicked: (now.min(id), appended.1.min(id)), appended }
    }

    /// Of a click that is recorded at another time than it is answered: by a log whose clock may have gone `back_ms` back
    /// since.
    pub fn waiting(id: Millis, back_ms: i64) -> Times {
        Times { clicked: (id.plus(-back_ms), id), appended: (Millis::new(0), Millis::new(i64::MAX / 2)) }
    }

    /// The minutes of which one is the click's.
    fn minutes(self) -> Vec<Minute> {
        minutes(self.clicked.0, self.clicked.1)
    }
}

/// Every minute from that of `from` to that of `to`.
pub fn minutes(from: Millis, to: Millis) -> Vec<Minute> {
    let (mut at, last) = (from.minute(), to.minute());
    let mut minutes = vec![at];
    while at < last {
        at = at.next();
        minutes.push(at);
    }
    minutes
}

/// A click that was answered with a 302 or 204.
#[derive(Debug, Clone)]
struct Answered {
    /// The answer names it.
    click: ClickId,
    /// It is counted in one of these.
    cells: Vec<Cell>,
    appended: (Millis, Millis),
    /// A change of the rules would make it ineligible.
    doubtful: bool,
}

/// The eligible clicks of an impression.
#[derive(Debug, Clone, Default)]
struct Impression {
    /// They count.
    must: Vec<Answered>,
    /// They were answered, and their way to the log is not over.
    waiting: Vec<Answered>,
    /// They were answered, and which rules they met is not known from outside.
    may: Vec<Answered>,
    /// Sent, and not answered: any of them may be in the log.
    unanswered: Vec<Cell>,
}

impl Impression {
    fn answered(&self) -> impl Iterator<Item = &Answered> {
        self.must.iter().chain(&self.waiting).chain(&self.may)
    }

    /// Where it may be counted.
    fn cells(&self) -> Vec<Cell> {
        self.answered().flat_map(|answered| &answered.cells).chain(&self.unanswered).cloned().collect()
    }
}

/// Remembers what was sent and answered.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    impressions: HashMap<String, Impression>,
    /// Every click that an answer named, whether or not it may be billed.
    named: Vec<ClickId>,
    /// Clicks that must not be billed whatever happens, for the message.
    pub ineligible: u64,
}

impl Judge {
    /// A click that was answered, and is in the log. `doubtful` says that a change of the rules would make it ineligible.
    pub fn answered_at(
        &mut self,
        impression: &str,
        click: ClickId,
        times: Times,
        dimensions: &[String; 5],
        doubtful: bool,
    ) {
        let cells = times.minutes().into_iter().map(|minute| cell(minute, dimensions)).collect();
        let answered = Answered { click, cells, appended: times.appended, doubtful };
        self.impressions.entry(impression.into()).or_default().must.push(answered);
    }

    /// The same of a redirect whose clock is the log's. Its id tells its minute.
    pub fn answered(&mut self, impression: &str, click: ClickId, dimensions: &[String; 5]) {
        self.answered_at(impression, click, Times::of(click.at(), 0, click.at()), dimensions, false);
    }

    /// A click that was answered has a record for ever, be it billed or not.
    pub fn has_record(&mut self, click: ClickId) {
        self.named.push(click);
    }

    /// The rules change: records from the position on which the last closing ended are judged by the new ones, and these do
    /// not bill what was answered as doubtful. `from` is that position's append time.
    pub fn change(&mut self, from: Millis) {
        for known in self.impressions.values_mut() {
            let (doubtful, must) = std::mem::take(&mut known.must).into_iter().partition(|click| click.doubtful);
            known.must = must;
            for mut click in Vec::from_iter::<Vec<Answered>>(doubtful) {
                let (first, last) = click.appended;
                click.doubtful = false;
                if last < from {
                    known.must.push(click);
                } else if first < from {
                    known.may.push(click);
                } else {
                    self.ineligible += 1;
                }
            }
            // Nobody outside knows when they came to the log, or will.
            let (doubtful, waiting) = std::mem::take(&mut known.waiting).into_iter().partition(|click| click.doubtful);
            known.waiting = waiting;
            known.may.extend(Vec::from_iter::<Vec<Answered>>(doubtful));
        }
    }

    /// A click that was answered, and may wait in a spool: it counts when it has arrived. Until then the log's clock may go
    /// `back_ms` back.
    pub fn spooled(
        &mut self,
        impression: &str,
        click: ClickId,
        back_ms: i64,
        dimensions: &[String; 5],
        doubtful: bool,
    ) {
        let times = Times::waiting(click.at(), back_ms);
        let cells = times.minutes().into_iter().map(|minute| cell(minute, dimensions)).collect();
        let answered = Answered { click, cells, appended: times.appended, doubtful };
        self.impressions.entry(impression.into()).or_default().waiting.push(answered);
    }

    /// Every spool is empty: what was in one has arrived.
    pub fn arrived(&mut self) {
        for known in self.impressions.values_mut() {
            known.must.append(&mut known.waiting);
        }
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
        self.impressions.values().filter(|impression| !impression.must.is_empty()).count()
    }

    /// Every impression with an answered eligible click is billed exactly once, in the cell of one of its eligible
    /// clicks; one with only unanswered ones at most once; and nothing else is billed. That is a matching of
    /// impressions to cells which fills every cell to the count reported.
    ///
    /// # Errors
    /// What is billed wrongly.
    pub fn check(&self, reported: &Cells) -> Result<(), String> {
        let mut matching = Matching::new(reported.clone());
        let (must, may): (Vec<_>, Vec<_>) =
            self.impressions.iter().partition(|(_, impression)| !impression.must.is_empty());
        for (name, impression) in &must {
            let cells = impression.cells();
            if !matching.add(cells.clone()) {
                let there = cells.iter().map(|cell| reported.get(cell)).collect::<Vec<_>>();
                return Err(format!("impression {name} is not billed: {impression:?}; reported there {there:?}"));
            }
        }
        for (_, impression) in &may {
            matching.add(impression.cells());
        }
        match matching.over() {
            Some((cell, over)) => {
                Err(format!("{over} of {:?} clicks are billed without cause in {cell:?}", reported.get(cell)))
            }
            None => Ok(()),
        }
    }

    /// The same by name, over every row of the log: sums of cells do not tell one impression from another.
    ///
    /// # Errors
    /// What is billed wrongly.
    pub fn check_rows(&self, rows: &[Row]) -> Result<(), String> {
        let mut billed: HashMap<&str, &Row> = HashMap::new();
        for row in rows.iter().filter(|row| row.is_billed()) {
            if let Some(other) = billed.insert(&row.impression, row) {
                return Err(format!("impression {} is billed twice: {other:?} and {row:?}", row.impression));
            }
            let Some(known) = self.impressions.get(&row.impression) else {
                return Err(format!("no click of its impression may be billed: {row:?}"));
            };
            let named = known.answered().find(|answered| answered.click.to_string() == row.click);
            let is_right = match named {
                Some(answered) => answered.cells.contains(&row.cell),
                None => known.unanswered.contains(&row.cell),
            };
            if !is_right {
                return Err(format!("not a click that may be billed: {row:?}; of its impression {known:?}"));
            }
        }
        let missed =
            self.impressions.iter().find(|(name, known)| !known.must.is_empty() && !billed.contains_key(&***name));
        match missed {
            Some((name, known)) => Err(format!("no row of impression {name} is billed: {known:?}")),
            None => Ok(()),
        }
    }

    /// Every click that was answered is in a row of the log, or was kept aside and put away, as those are in `settled`.
    ///
    /// # Errors
    /// The first of which there is no record.
    pub fn check_records(&self, rows: &[Row], settled: &BTreeSet<String>) -> Result<(), String> {
        let recorded: HashSet<&str> =
            rows.iter().map(|row| &*row.click).chain(settled.iter().map(|id| &**id)).collect();
        match self.named.iter().find(|click| !recorded.contains(&*click.to_string())) {
            Some(click) => Err(format!("click {click} was answered, and there is no record of it")),
            None => Ok(()),
        }
    }
}

fn cell(minute: Minute, dimensions: &[String; 5]) -> Cell {
    let [ad, campaign, publisher, country, device] = dimensions.clone();
    (minute, ad, campaign, publisher, country, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_776_686_400_000;

    fn at(ms: i64) -> Millis {
        Millis::new(START + ms)
    }

    fn dimensions() -> [String; 5] {
        ["ad", "cmp", "pub", "DE", "mobile"].map(String::from)
    }

    fn cell_at(ms: i64) -> Cell {
        cell(at(ms).minute(), &dimensions())
    }

    /// Whether the judge takes so many clicks in the first and in the second minute.
    fn takes(judge: &Judge, first: i64, second: i64) -> bool {
        judge.check(&Cells::from([(cell_at(0), first), (cell_at(60_000), second)])).is_ok()
    }

    #[test]
    fn it_can_say_no() {
        let mut judge = Judge::default();
        judge.answered("a", ClickId::new(at(1)), &dimensions());
        judge.answered("a", ClickId::new(at(60_001)), &dimensions());
        judge.answered("b", ClickId::new(at(2)), &dimensions());
        judge.sent("c", &[at(0).minute()], &dimensions());
        judge.sent("b", &[at(60_000).minute()], &dimensions());
        judge.came("b", &[at(60_000).minute()], &dimensions());
        assert!(takes(&judge, 2, 0), "both in the first minute");
        assert!(takes(&judge, 1, 1), "a in the second");
        assert!(takes(&judge, 2, 1), "and c");
        assert!(takes(&judge, 3, 0), "or all in the first");
        assert!(!takes(&judge, 1, 0), "one is missing");
        assert!(!takes(&judge, 0, 2), "b was not in the second");
        assert!(!takes(&judge, 3, 1), "one too many");
    }

    #[test]
    fn a_change_of_rules_has_two_sides() {
        let click = |judge: &mut Judge, impression: &str, ms: i64, latest: i64| {
            judge.answered_at(impression, ClickId::new(at(ms)), Times::of(at(ms), 0, at(latest)), &dimensions(), true);
        };
        // Before the position, from it on, and on a side that is not known; of the first minute each.
        for (ms, latest, taken) in
            [(9, 9, [false, true, false]), (10, 10, [true, false, false]), (9, 10, [true, true, false])]
        {
            let mut judge = Judge::default();
            click(&mut judge, "a", ms, latest);
            assert!(takes(&judge, 1, 0) && !takes(&judge, 0, 0), "nothing has changed yet");
            judge.change(at(10));
            assert_eq!([0, 1, 2].map(|clicks| takes(&judge, clicks, 0)), taken, "appended from {ms} to {latest}");
        }
        // A claim must not stay with a click that the new rules do not bill: the next of its impression has it.
        let mut judge = Judge::default();
        click(&mut judge, "a", 20, 20);
        judge.answered("a", ClickId::new(at(60_000)), &dimensions());
        judge.change(at(10));
        assert!(takes(&judge, 0, 1) && !takes(&judge, 1, 0) && !takes(&judge, 0, 0));
        // What waits in a spool meets either.
        let mut judge = Judge::default();
        judge.spooled("slow", ClickId::new(at(2)), 0, &dimensions(), true);
        judge.change(at(10));
        judge.arrived();
        assert!(takes(&judge, 0, 0) && takes(&judge, 1, 0) && !takes(&judge, 2, 0));
    }

    #[test]
    fn a_click_in_a_spool_may_count_and_one_that_arrived_must() {
        let mut judge = Judge::default();
        judge.spooled("a", ClickId::new(at(0)), 0, &dimensions(), false);
        assert_eq!([0, 1, 2].map(|clicks| takes(&judge, clicks, 0)), [true, true, false]);
        judge.arrived();
        assert_eq!([0, 1, 2].map(|clicks| takes(&judge, clicks, 0)), [false, true, false]);
    }

    #[test]
    fn clocks_that_differ_leave_as_many_minutes_as_they_must() {
        let check = |id: i64, skew_ms: i64, latest: i64, first: i64, last: i64| {
            assert_eq!(
                Times::of(at(id), skew_ms, at(latest)).clicked,
                (at(first), at(last)),
                "{id} {skew_ms} {latest}"
            );
        };
        check(5_000, 0, 5_000, 5_000, 5_000);
        check(5_000, 0, 65_000, 5_000, 5_000);
        // Behind: the click's own time is the earlier one, whatever the log's.
        check(5_000, -60_000, 65_000, 5_000, 5_000);
        // Ahead: the log's, which is later than its clock when that has gone back.
        check(7_000, 7_000, 0, 0, 0);
        check(3_600_000, 3_600_000, 60_000, 0, 60_000);
        check(7_000, 7_000, 60_000, 0, 7_000);
    }

    #[test]
    fn rows_are_judged_by_name() {
        let [first, again, other] = [1, 2, 3].map(|ms| ClickId::new(at(ms)));
        let mut judge = Judge::default();
        judge.answered("a", first, &dimensions());
        judge.answered("a", again, &dimensions());
        judge.answered("b", other, &dimensions());
        judge.sent("c", &[at(0).minute()], &dimensions());
        let row = |impression: &str, click: ClickId, verdict: &str, ms: i64| Row {
            position: (String::new(), 0, 0),
            impression: impression.into(),
            click: click.to_string(),
            verdict: verdict.into(),
            cell: cell_at(ms),
        };
        let good = [row("a", first, "billable", 0), row("a", again, "duplicate", 0), row("b", other, "late", 0)];
        let with = |change: &dyn Fn(&mut Vec<Row>)| {
            let mut rows = good.to_vec();
            change(&mut rows);
            judge.check_rows(&rows)
        };
        assert_eq!(with(&|_| ()), Ok(()));
        assert_eq!(with(&|rows| rows.push(row("c", ClickId::new(at(9)), "billable", 0))), Ok(()), "c was sent");
        for (what, change) in [
            (
                "a twice and b never, which sums do not tell",
                (|rows| {
                    (rows[1].verdict, rows[2].verdict) = ("billable".into(), "duplicate".into());
                }) as fn(&mut Vec<Row>),
            ),
            ("b is missing", |rows| rows[2].verdict = "bot".into()),
            ("another minute", |rows| rows[0].cell = cell_at(60_000)),
            ("a click of another impression", |rows| rows[0].click = rows[2].click.clone()),
            ("an impression that nobody clicked", |rows| {
                let unknown = Row { impression: "d".into(), ..rows[0].clone() };
                rows.push(unknown);
            }),
        ] {
            assert!(with(&change).is_err(), "{what}");
        }
    }

    #[test]
    fn a_click_that_was_answered_has_a_record() {
        let [logged, put_away] = [1, 2].map(|ms| ClickId::new(at(ms)));
        let mut judge = Judge::default();
        judge.has_record(logged);
        judge.has_record(put_away);
        let row = Row {
            position: (String::new(), 0, 0),
            impression: "a".into(),
            click: logged.to_string(),
            verdict: "bot".into(),
            cell: cell_at(0),
        };
        let check = |settled: &[ClickId]| {
            let settled = settled.iter().map(ClickId::to_string).collect();
            judge.check_records(std::slice::from_ref(&row), &settled)
        };
        assert_eq!(check(&[put_away]), Ok(()));
        assert!(check(&[]).is_err() && check(&[logged]).is_err());
    }
}
