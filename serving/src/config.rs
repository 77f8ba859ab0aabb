//! What an operator sets: a TOML file, and environment variables that win over it.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// A setting that cannot be understood: what was given, where, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {error}", .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", .path.display())]
    File { path: PathBuf, error: toml::de::Error },
    #[error("environment variable {variable}: {what}")]
    Variable { variable: String, what: String },
    /// The file is TOML, and the variables are settings, but together they do not make a configuration.
    #[error("{origin}: {error}")]
    Settings { origin: String, error: toml::de::Error },
}

/// Reads a file, if there is one, then variables whose names begin with `prefix`: `TALLY_LOAD_KAFKA__BROKERS` is key
/// `brokers` of table `kafka` under the prefix `TALLY_LOAD_`. A variable's text is read as a TOML value if it is one,
/// else it is a string, and so it is where only a string is possible: a password may look like a number. What is named
/// nowhere keeps its default; a key that does not exist is an error.
///
/// # Errors
///
/// Names the file, with line and column, or the variable.
pub fn read<T: DeserializeOwned>(
    file: Option<&Path>,
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut table = Table::new();
    let mut origin = Vec::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.into(), error })?;
        let failed = |error| ConfigError::File { path: path.into(), error };
        table = text.parse().map_err(failed)?;
        // By itself first: an error then shows the line of the file.
        toml::from_str::<T>(&text).map_err(failed)?;
        origin.push(path.display().to_string());
    }
    let mut variables: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    variables.sort();
    let of_file = table.clone();
    for (variable, text) in variables {
        let path = variable[prefix.len()..].to_ascii_lowercase();
        // Beside the file alone, so that what is wrong with another variable is not this one's.
        let is_possible = |value: &Value| {
            let mut table = of_file.clone();
            set(&mut table, &path, value.clone()).is_ok() && T::deserialize(Value::Table(table)).is_ok()
        };
        let as_text = Value::String(text.clone());
        let value = match text.parse::<Value>() {
            Ok(value) if is_possible(&value) || !is_possible(&as_text) => value,
            _ => as_text,
        };
        set(&mut table, &path, value).map_err(|what| ConfigError::Variable { variable: variable.clone(), what })?;
        origin.push(variable);
    }
    T::deserialize(Value::Table(table)).map_err(|error| ConfigError::Settings { origin: origin.join(" and "), error })
}

/// Sets the key at a path of names with two underscores between them.
fn set(table: &mut Table, path: &str, value: Value) -> Result<(), String> {
    let (mut table, mut rest) = (table, path);
    while let Some((name, below)) = rest.split_once("__") {
        let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| format!("{name:?} is a value, and has no keys below it"))?;
        rest = below;
    }
    table.insert(rest.to_owned(), value);
    Ok(())
}

/// Reads a duration as people write it: `5m`, `30s`, `1h 30m`.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|error| D::Error::custom(format!("duration {text:?}: {error}, e.g. \"5m\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        listen: SocketAddr,
        #[serde(deserialize_with = "duration")]
        wait: Duration,
        key: String,
        kafka: Kafka,
    }

    #[derive(Debug, PartialEq, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Kafka {
        brokers: String,
        partitions: i32,
    }

    impl Default for Settings {
        fn default() -> Self {
            let listen = SocketAddr::from(([127, 0, 0, 1], 1));
            Settings { listen, wait: Duration::from_secs(1), key: String::new(), kafka: Kafka::default() }
        }
    }

    fn read_text(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.toml");
        std::fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        read(Some(&path), "T_", variables).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_win_over_the_file_and_the_file_over_defaults() {
        let text = "wait = '5m'\n[kafka]\npartitions = 4\n";
        let variables = [("T_LISTEN", "0.0.0.0:80"), ("T_KAFKA__BROKERS", "a:1,b:2"), ("X_LISTEN", "no")];
        let settings = read_text(text, &variables).unwrap();
        assert_eq!(settings.listen, SocketAddr::from(([0, 0, 0, 0], 80)));
        assert_eq!(settings.wait, Duration::from_secs(300));
        assert_eq!(settings.kafka, Kafka { brokers: "a:1,b:2".into(), partitions: 4 });
        assert_eq!(read_text("", &[("T_KAFKA__PARTITIONS", "8")]).unwrap().kafka.partitions, 8);
        assert_eq!(read::<Settings>(None, "T_", Vec::new()).unwrap(), Settings::default());
    }

    #[test]
    fn a_secret_that_looks_like_something_else_is_text() {
        for secret in ["0123456789", "1234567890123456", "1_000", "1e5", "true", "2026-04-20", "12 # 34", "{}", "[1]"] {
            // Also beside one that is wrong, which alone is told of.
            assert_eq!(read_text("", &[("T_KEY", secret)]).unwrap().key, secret);
            let told = read_text("", &[("T_KAFKA__PARTITIONS", "many"), ("T_KEY", secret)]).unwrap_err();
            assert!(told.contains("partitions") && !told.contains(secret), "{told}");
        }
    }

    #[test]
    fn what_cannot_be_understood_says_where_it_stands() {
        let check = |text: &str, variables: &[(&str, &str)], parts: &[&str]| {
            let error = read_text(text, variables).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        };
        check("wiat = '5m'", &[], &["it.toml", "line 1", "wiat"]);
        check("\nwait = 'soon'", &[], &["it.toml", "line 2", "duration \"soon\""]);
        check("[kafka", &[], &["it.toml", "line 1"]);
        check("", &[("T_WIAT", "5m")], &["T_WIAT", "unknown field `wiat`"]);
        check("", &[("T_KAFKA__PARTITIONS", "many")], &["T_KAFKA__PARTITIONS", "partitions"]);
        check("", &[("T_WAIT", "5m"), ("T_WAIT__X", "1")], &["T_WAIT__X", "\"wait\" is a value"]);
        let missing = read::<Settings>(Some(Path::new("/nowhere.toml")), "T_", Vec::new()).unwrap_err();
        assert!(missing.to_string().contains("/nowhere.toml"), "{missing}");
    }
}
