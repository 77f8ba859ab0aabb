//! The steps of a deployment, to be shown or carried out.

use crate::cluster::Deployment;
use crate::error::DeployError;
use click::Partition;
use pipeline_files::File;
use std::fmt;
use std::path::Path;

/// What is to be done, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The version that counts at the end.
    pub version: i64,
    pub steps: Vec<Step>,
    /// The version, if it is recorded already.
    pub(crate) deployment: Option<Deployment>,
    pub(crate) pipelines: Vec<Prepared>,
    pub(crate) partitions: Partition,
    pub(crate) digest: String,
    /// Whether the new version may give up what began and stands in its way.
    pub(crate) give_up: bool,
}

/// One step. A number is that of a pipeline of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Compile the functions while the old version still counts: the first build takes minutes.
    Compile { functions: Vec<String> },
    /// Stop a pipeline, with a last checkpoint if it can still make one.
    Stop { name: String, id: String, state: String },
    /// Record a new version in the warehouse, for which a repair that began may have to be given up.
    Record { version: i64, why: Why, gives_up: Option<String> },
    /// Tell the claims of version and start.
    Announce { version: i64 },
    /// Commit the version's start as its consumer group's offsets, and create the pipeline.
    Create { pipeline: usize, name: String },
    /// Let a pipeline go on from its last checkpoint, whose epoch is this.
    Restart { pipeline: usize, name: String, id: String, epoch: u64 },
    /// Wait until all pipelines run, each makes a checkpoint, and a row comes from every partition.
    Wait { partitions: Partition },
}

/// Why there is a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    First,
    /// SQL, a function or a setting that counts depend on.
    Changed,
    /// It was asked for.
    Again,
    /// A pipeline of the recorded version cannot be carried on, or not as it is.
    Broken {
        name: String,
        how: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::First => f.write_str("the first"),
            Why::Changed => f.write_str("SQL, a function or a setting has changed"),
            Why::Again => f.write_str("unchanged, deployed again"),
            Why::Broken { name, how } => write!(f, "{name} {how}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Compile { functions } => write!(f, "compile {}", functions.join(", ")),
            Step::Stop { name, id, state } => write!(f, "stop {name} ({id}, {state}) with a last checkpoint"),
            Step::Record { version, why, gives_up: None } => write!(f, "record version {version}: {why}"),
            Step::Record { version, why, gives_up: Some(repair) } => {
                write!(f, "give up {repair}, which began and did not end, and record version {version}: {why}")
            }
            Step::Announce { version } => write!(f, "tell the claims of version {version} and its start"),
            Step::Create { name, .. } => {
                write!(f, "commit the start as offsets of consumer group {name}, and create pipeline {name}")
            }
            Step::Restart { name, id, epoch, .. } => write!(f, "start {name} ({id}) again from its checkpoint {epoch}"),
            Step::Wait { partitions } => {
                write!(
                    f,
                    "wait until it runs, makes a checkpoint, and a row comes from each of {partitions} partitions"
                )
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}", self.version)?;
        for prepared in &self.pipelines {
            write!(f, "\n  {} as {}", prepared.file.name, prepared.name)?;
        }
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "\n{:>3}. {step}", number + 1)?;
        }
        Ok(())
    }
}

/// A file, ready for Arroyo.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// Of the pipeline and of its consumer group.
    pub name: String,
    /// With every `${NAME}` filled in.
    pub file: File,
    /// Its pipeline in Arroyo, if there is one.
    pub found: Option<String>,
}

/// The name of a file's pipeline in this version.
pub(crate) fn name_of(prefix: &str, stem: &str, version: i64) -> String {
    format!("{prefix}-{stem}-{version}")
}

/// File and version of a pipeline with this name; `None` if it is not one of ours.
pub(crate) fn read_name<'a>(prefix: &str, name: &'a str) -> Option<(&'a str, i64)> {
    let (stem, version) = name.strip_prefix(prefix)?.strip_prefix('-')?.rsplit_once('-')?;
    let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    if digits && !stem.is_empty() { Some((stem, version.parse().ok()?)) } else { None }
}

/// The part of a file's name that its pipeline has.
pub(crate) fn stem_of(file: &str) -> Result<&str, DeployError> {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if stem.is_empty() || !stem.chars().all(fits) {
        return Err(DeployError::FileName(file.to_string()));
    }
    Ok(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_made() {
        assert_eq!(read_name("tally", &name_of("tally", "clicks-by-ad", 12)), Some(("clicks-by-ad", 12)));
        for other in [
            "clicks-1",
            "tally-1",
            "tally--1",
            "tally-clicks-",
            "tally-clicks-1b",
            "tally_b-clicks-1",
            "tally-c-99999999999999999999",
        ] {
            assert_eq!(read_name("tally", other), None, "{other}");
        }
        assert_eq!(stem_of("pipelines/clicks.sql").unwrap(), "clicks");
        assert!(stem_of("pipelines/clicks by ad.sql").is_err());
    }
}
