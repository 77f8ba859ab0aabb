//! The pipeline files of a folder, and what identifies a deployment of them.

use crate::error::SqlError;
use crate::parse::File;
use crate::template::{Variables, fill};
use click::Lateness;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The `*.sql` files of a folder, by name.
#[derive(Debug, Clone)]
pub struct PipelineFiles {
    files: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("pipelines folder {}: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("pipelines folder {} has no *.sql file", .0.display())]
    Empty(PathBuf),
}

/// Variables whose values belong to a deployment or a machine, not to what is counted.
const OF_DEPLOYMENT: [(&str, &str); 4] =
    [("VERSION", "0"), ("LOG_ID", "00000000-0000-0000-0000-000000000000"), ("KAFKA", "none"), ("GROUP", "none")];

impl PipelineFiles {
    /// Reads the folder. Nothing in it is run yet.
    pub fn read(dir: &Path) -> Result<Self, ReadError> {
        let io = |path: &Path, error| ReadError::Io { path: path.to_path_buf(), error };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| io(dir, e))? {
            let path = entry.map_err(|e| io(dir, e))?.path();
            if path.extension().is_some_and(|extension| extension == "sql") && path.is_file() {
                let text = std::fs::read_to_string(&path).map_err(|e| io(&path, e))?;
                files.push((path.display().to_string(), text));
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(ReadError::Empty(dir.to_path_buf()));
        }
        Ok(PipelineFiles { files })
    }

    /// One file, from memory.
    pub fn one(name: &str, text: &str) -> Self {
        PipelineFiles { files: vec![(name.to_string(), text.to_string())] }
    }

    /// Name and text of each file, as they were read.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// What makes two deployments the same: the text of the files with the settings that counts depend on, and the
    /// functions that the engine is given, each as its name and its source.
    pub fn digest<'a>(
        &self,
        lateness: Lateness,
        horizon_ms: i64,
        functions: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<String, SqlError> {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        for (name, text) in &self.files {
            // The folder may move; the name of the file is part of the deployment.
            add(Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or(name));
            add(&fill(name, text, &of_nobody(lateness))?);
        }
        for (name, source) in functions {
            add(name);
            add(source);
        }
        add(&horizon_ms.to_string());
        let bytes = digest.finalize();
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The files with `${NAME}` filled in.
    pub fn filled(&self, variables: &Variables) -> Result<Vec<File>, SqlError> {
        self.files.iter().map(|(name, text)| Ok(File::new(name, fill(name, text, variables)?))).collect()
    }
}

/// The variables of a deployment. `KAFKA` and `GROUP` are Arroyo's business; whoever hands a file to it sets them.
pub fn variables(lateness: Lateness, version: i64, log_id: &str) -> Variables {
    let mut variables = of_nobody(lateness);
    variables.insert("VERSION".into(), version.to_string());
    variables.insert("LOG_ID".into(), log_id.to_string());
    variables
}

/// The variables of no deployment at all, to look at a file before there is one.
pub fn of_nobody(lateness: Lateness) -> Variables {
    let mut variables: Variables =
        OF_DEPLOYMENT.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    variables.insert("LATENESS".into(), interval(lateness.lateness_ms));
    variables.insert("SLACK".into(), interval(lateness.slack_ms));
    variables
}

/// Text of an interval as both engines read it.
fn interval(ms: i64) -> String {
    match ms % 1000 {
        0 => format!("{} seconds", ms / 1000),
        _ => format!("{ms} milliseconds"),
    }
}
