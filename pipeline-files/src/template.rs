//! `${NAME}` in pipeline files is filled from configuration before an engine sees the text: Arroyo itself cannot
//! template brokers, topics or versions.

use crate::error::SqlError;
use std::collections::BTreeMap;

/// Names and the values they stand for.
pub type Variables = BTreeMap<String, String>;

/// The text with every `${NAME}` replaced. No value spans lines, so line numbers stay those of the file.
pub fn fill(file: &str, text: &str, variables: &Variables) -> Result<String, SqlError> {
    let mut filled = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(start) = rest.find("${") {
            let error = |reason: String| SqlError {
                file: file.into(),
                line: number as u64 + 1,
                column: (line.len() - rest.len() + start) as u64 + 1,
                text: line.into(),
                reason,
            };
            let known = || variables.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let end = rest[start..].find('}').ok_or_else(|| error("`${` without a closing `}`".into()))? + start;
            let name = &rest[start + 2..end];
            let value = variables
                .get(name)
                .ok_or_else(|| error(format!("`${{{name}}}` is not known; what can be filled in: {}", known())))?;
            filled.push_str(&rest[..start]);
            filled.push_str(value);
            rest = &rest[end + 1..];
        }
        filled.push_str(rest);
        filled.push('\n');
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_unknown_ones_are_refused() {
        let variables: Variables = [("A".into(), "1".into()), ("B".into(), "two".into())].into();
        assert_eq!(fill("f", "x ${A}${B} y\n-- ${A}", &variables).unwrap(), "x 1two y\n-- 1\n");
        let error = fill("f.sql", "ok\n  ${C}", &variables).unwrap_err();
        assert_eq!((error.line, error.column), (2, 3));
        assert_eq!(error.reason, "`${C}` is not known; what can be filled in: A, B");
        assert!(fill("f", "${A", &variables).is_err());
    }
}
