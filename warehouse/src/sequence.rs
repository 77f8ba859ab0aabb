//! The sequence of entries that says what is final. Each has a number, put if absent: 0, 1, 2, …

use click::{LogId, Millis, Minute, Offset, Offsets, Partition};
use serde::{Deserialize, Serialize};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A version of the pipeline counts from `positions` on.
    Deployment,
    /// A closing has begun: what it comprises is fixed from here on, whatever dies before its end. It has the number
    /// that the closing will have, and counts for nothing by itself.
    Begun,
    /// Minutes before `through` are final.
    Closing,
    /// A repair has begun, as a closing does. Only a repair can carry it out: its rows are in no topic.
    RepairBegun,
    /// Minutes before `through` are final by a recount from the log: the engine's rows of them do not count.
    Repair,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Deployment => "deployment",
            Kind::Begun => "begun",
            Kind::Closing => "closing",
            Kind::RepairBegun => "repair_begun",
            Kind::Repair => "repair",
        }
    }

    /// Whether it only says what the entry of its number is going to be.
    pub fn is_begun(self) -> bool {
        matches!(self, Kind::Begun | Kind::RepairBegun)
    }

    /// What this one becomes when it is carried out.
    pub(crate) fn carried_out(self) -> Kind {
        match self {
            Kind::Begun => Kind::Closing,
            Kind::RepairBegun => Kind::Repair,
            done => done,
        }
    }
}

/// Where to read on in the two result topics: every row that is still needed is at or after these offsets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResultPositions {
    pub raw_clicks: Offsets,
    pub clicks_by_minute: Offsets,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub number: u64,
    pub kind: Kind,
    /// Minutes before this one are final.
    pub through: Minute,
    /// Name of the life of topic `clicks` that all positions are about.
    pub log_id: LogId,
    /// Records of `clicks` before these are in the warehouse.
    pub positions: Offsets,
    pub result_positions: ResultPositions,
    /// The deployed version of the pipeline, from 1.
    pub version: i64,
    /// Digest of its SQL and functions.
    pub digest: String,
    /// Digest of the counts that the closing's minutes came to when it began, which its raw rows have to come to when it
    /// is carried out; empty for a deployment.
    pub totals: String,
    /// Records that this closing takes as undecodable. Fixed when it begins, so that a second try does the same.
    pub quarantined: Vec<(Partition, Offset)>,
    /// When it became final, by the clock; never before an earlier entry. That of a begun closing says when it began.
    pub finalized_at: Millis,
}

/// A deployed version of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    pub version: i64,
    /// Where it starts to count, with empty windows.
    pub positions: Offsets,
    /// It was made by this call; `false` when the pipeline has not changed.
    pub new: bool,
    /// The closing or repair that had begun and was given up for it.
    pub given_up: Option<Entry>,
}

/// What the entries come to.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// The last entry that counts.
    pub last: Entry,
    /// The last deployment.
    pub deployment: Entry,
    /// A closing or repair that began and did not end.
    pub begun: Option<Entry>,
}

impl Sequence {
    /// Makes sense of entries in any order; `None` without a deployment. The last deployment, the last closing and
    /// what began after it have to be among them.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Option<Sequence> {
        let (mut last, mut deployment, mut begun) = (None::<Entry>, None::<Entry>, None::<Entry>);
        let raise = |of: &mut Option<Entry>, entry: &Entry| {
            if of.as_ref().is_none_or(|known| known.number < entry.number) {
                *of = Some(entry.clone());
            }
        };
        for entry in entries {
            match entry.kind {
                Kind::Begun | Kind::RepairBegun => raise(&mut begun, &entry),
                Kind::Closing | Kind::Repair => raise(&mut last, &entry),
                Kind::Deployment => {
                    raise(&mut last, &entry);
                    raise(&mut deployment, &entry);
                }
            }
        }
        let last = last?;
        let begun = begun.filter(|begun| begun.number > last.number);
        Some(Sequence { last, deployment: deployment?, begun })
    }
}
