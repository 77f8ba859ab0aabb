//! The counts that are not final yet, and the tables that they continue. Both change under one lock, so that a reader
//! has all of them of one moment: no click is seen twice, none is missing.

use crate::backend::{Pending, Provisional, View, lets_through};
use crate::report::{Report, ReportError, ReportQuery, Reports, TimeUnit};
use crate::rows::Count;
use async_trait::async_trait;
use click::{Dimensions, Millis, Minute};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Clicks by minute and dimensions.
pub(crate) type Counts = BTreeMap<Minute, HashMap<u32, i64>>;

/// Adds to a count. A count that comes to nothing is forgotten: absent is 0.
pub(crate) fn add(counts: &mut Counts, minute: Minute, dimensions: u32, clicks: i64) {
    let of_minute = counts.entry(minute).or_default();
    let count = of_minute.entry(dimensions).or_default();
    *count += clicks;
    if *count == 0 {
        of_minute.remove(&dimensions);
        if of_minute.is_empty() {
            counts.remove(&minute);
        }
    }
}

/// Gives each set of dimensions a small number.
#[derive(Default)]
pub(crate) struct Interner {
    by_value: HashMap<Dimensions, u32>,
    by_index: Vec<Dimensions>,
}

impl Interner {
    pub fn index(&mut self, dimensions: Dimensions) -> u32 {
        let by_index = &mut self.by_index;
        *self.by_value.entry(dimensions).or_insert_with_key(|dimensions| {
            by_index.push(dimensions.clone());
            // Open rows are fewer than 2^32, and so are their dimensions; see `Loader::forget`.
            (by_index.len() - 1) as u32
        })
    }

    pub fn get(&self, index: u32) -> &Dimensions {
        &self.by_index[index as usize]
    }

    pub fn len(&self) -> usize {
        self.by_index.len()
    }
}

/// What readers in other processes have not been told yet.
pub(crate) enum Untold {
    /// There are no such readers.
    NoReaders,
    Everything,
    /// They were told everything in so many counts, and so many changes since, but not these.
    Changes {
        counts: Counts,
        whole: usize,
        told: usize,
    },
}

/// Telling everything anew is cheaper for readers than to go through more changes than this, or than a few times as
/// many as there are counts.
const CHANGES_MIN: usize = 500_000;

/// What is published.
pub(crate) struct State {
    /// The last entry of the sequence that `view` knows.
    pub last: u64,
    /// Minutes before this are final and in `view`.
    pub through: Minute,
    pub view: Arc<dyn View>,
    /// All records that were appended before this are counted.
    pub refreshed_at: Millis,
    pub dimensions: Interner,
    /// Billable rows of minutes that are not final, of the deployed version.
    pub current: Counts,
    /// The same of older versions, from before the deployment.
    pub older: Counts,
    /// Late rows whose correction is not in the tables yet.
    pub late: Counts,
    pub untold: Untold,
}

/// A handle on what is published. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live(Arc<RwLock<State>>);

impl Live {
    /// `publishes`: there may be readers in other processes.
    pub fn new(last: u64, through: Minute, view: Arc<dyn View>, refreshed_at: Millis, publishes: bool) -> Self {
        let (current, older, late) = (Counts::new(), Counts::new(), Counts::new());
        let dimensions = Interner::default();
        let untold = if publishes { Untold::Everything } else { Untold::NoReaders };
        let state = State { last, through, view, refreshed_at, dimensions, current, older, late, untold };
        Live(Arc::new(RwLock::new(state)))
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().expect("no one panics with this lock held")
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().expect("no one panics with this lock held")
    }
}

impl TimeUnit {
    /// Its length in minutes.
    pub(crate) fn minutes(self) -> i64 {
        match self {
            TimeUnit::Minute => 1,
            TimeUnit::Hour => 60,
            TimeUnit::Day => 24 * 60,
        }
    }

    /// The start of the unit of UTC that contains the minute.
    fn start(self, minute: Minute) -> Millis {
        let minutes = self.minutes();
        Minute::from_number(minute.number().div_euclid(minutes) * minutes).start()
    }
}

impl State {
    /// Goes on from other tables. Whatever is counted anew after that, or moved into them, is told as a whole.
    pub fn go_on(&mut self, last: u64, through: Minute, view: Arc<dyn View>) {
        (self.last, self.through, self.view) = (last, through, view);
        self.tell_everything();
    }

    pub fn tell_everything(&mut self) {
        if !matches!(self.untold, Untold::NoReaders) {
            self.untold = Untold::Everything;
        }
    }

    /// A count of open or late rows was raised.
    pub fn raised(&mut self, minute: Minute, dimensions: u32) {
        if let Untold::Changes { counts, .. } = &mut self.untold {
            add(counts, minute, dimensions, 1);
        }
    }

    /// What has to be told now. Whoever could not tell it calls [`tell_everything`](State::tell_everything).
    pub fn take_untold(&mut self) -> Option<Provisional> {
        if let Untold::Changes { counts, whole, told } = &mut self.untold {
            let changes: usize = counts.values().map(HashMap::len).sum();
            if *told + changes <= CHANGES_MIN.max(*whole * 4) {
                *told += changes;
                let counts = std::mem::take(counts);
                return Some(self.provisional(false, [&counts]));
            }
        }
        if matches!(self.untold, Untold::NoReaders) {
            return None;
        }
        let told = self.provisional(true, [&self.current, &self.older, &self.late]);
        self.untold = Untold::Changes { counts: Counts::new(), whole: told.counts.len(), told: 0 };
        Some(told)
    }

    fn provisional<'a>(&self, whole: bool, counts: impl IntoIterator<Item = &'a Counts>) -> Provisional {
        let mut sums = Counts::new();
        for (minute, counts) in counts.into_iter().flatten() {
            for (dimensions, clicks) in counts {
                add(&mut sums, *minute, *dimensions, *clicks);
            }
        }
        let count = |minute: Minute, (index, clicks): (u32, i64)| {
            let dimensions = self.dimensions.get(index).clone();
            Count { minute, dimensions, clicks }
        };
        let counts =
            sums.into_iter().flat_map(|(minute, counts)| counts.into_iter().map(move |row| count(minute, row)));
        let State { last, through, refreshed_at, .. } = *self;
        Provisional { last, through, refreshed_at, whole, counts: counts.collect() }
    }

    /// The counts that are not in the tables, by the columns of a query.
    fn pending(&self, query: &ReportQuery) -> Vec<Pending> {
        let range = query.from.minute()..query.to.minute().max(query.from.minute());
        let mut groups: HashMap<(Millis, Vec<Arc<str>>), i64> = HashMap::new();
        for (minute, counts) in [&self.current, &self.older, &self.late].iter().flat_map(|c| c.range(range.clone())) {
            let time = query.time.map_or(Millis::default(), |unit| unit.start(*minute));
            for (index, clicks) in counts {
                let dimensions = self.dimensions.get(*index);
                if lets_through(query, dimensions) {
                    let values = query.dimensions.iter().map(|d| d.of(dimensions).clone()).collect();
                    *groups.entry((time, values)).or_default() += clicks;
                }
            }
        }
        groups.into_iter().map(|((time, values), clicks)| Pending { time, values, clicks }).collect()
    }
}

#[async_trait]
impl Reports for Live {
    async fn report(&self, query: &ReportQuery) -> Result<Report, ReportError> {
        let (through, view, refreshed_at, pending) = {
            let state = self.read();
            (state.through, state.view.clone(), state.refreshed_at, state.pending(query))
        };
        let answer = view.report(query, through, pending).await.map_err(|error| ReportError(error.to_string()))?;
        Ok(Report {
            rows: answer.rows,
            truncated: answer.truncated,
            clicks: answer.clicks,
            provisional_clicks: answer.provisional_clicks,
            complete_through: through.start(),
            refreshed_at,
        })
    }
}
