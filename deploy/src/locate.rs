//! Arroyo's errors at our file and line. It says a place for syntax only, and names for the rest.

use pipeline_files::{File, SqlError};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

/// Finds the place in the file that an error of Arroyo's planner is about; `None` where it names nothing that is there.
pub fn sql_error(file: &File, message: &str) -> Option<SqlError> {
    let at = place_said(message).or_else(|| place_of_name(file, message))?;
    let reason = message.strip_prefix("SQL error: ParserError(").and_then(|rest| rest.strip_suffix(')'));
    let reason = reason.map_or(message, |quoted| quoted.trim_matches('"'));
    // The caret and the file's name say the place better.
    let reason = reason.split(" at Line: ").next().unwrap_or(reason);
    Some(file.error(at, format!("Arroyo: {}", reason.trim_end())))
}

/// A compiler's error with our file's name for the one that Arroyo copied it to.
pub fn compiler_error(function: &str, message: &str) -> String {
    unescaped(message).replace("src/lib.rs:", &format!("udfs/src/{function}.rs:")).trim_end().to_string()
}

/// Arroyo hands on what the compiler says with its line ends written as `\n`.
pub fn unescaped(message: &str) -> String {
    message.replace("\\n", "\n").replace("\\\"", "\"")
}

/// The place in "… at Line: 35, Column: 1".
fn place_said(message: &str) -> Option<Location> {
    let (_, place) = message.rsplit_once("Line: ")?;
    let (line, rest) = place.split_once(", Column: ")?;
    let column: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Location { line: line.trim().parse().ok()?, column: column.parse().ok()? })
}

/// The first use of the name that the message is about.
fn place_of_name(file: &File, message: &str) -> Option<Location> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, &file.text).tokenize_with_location().ok()?;
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).collect();
    let after = |start: &str| Some(message.split_once(start)?.1);
    if let Some(rest) = after("No field named ") {
        // "judged.publisher_id. Did you mean 'judged.publisher_idd'?"
        let (name, hint) = rest.split_once(". ").unwrap_or((rest, ""));
        let mut path = path(name.trim_end_matches('.'));
        let name = path.pop()?;
        // What it was compared with tells which relation was read.
        let hinted = hint.split('\'').nth(1).map(self::path).unwrap_or_default();
        let relation = path.pop().or_else(|| hinted.iter().rev().nth(1).cloned());
        return column(&tokens, &name, relation.as_deref());
    }
    let name = [("Invalid function '", Use::Call), ("table '", Use::Relation)]
        .into_iter()
        .find_map(|(start, used)| Some((after(start)?.split('\'').next()?, used)));
    let (name, used) = name?;
    let name = path(name).pop()?;
    let found = (0..tokens.len()).find(|&at| is(&tokens, at, &name) && used.fits(&tokens, at));
    found.map(|at| tokens[at].span.start)
}

/// How a name is used in the place that an error is about.
#[derive(Clone, Copy)]
enum Use {
    Call,
    Relation,
}

impl Use {
    fn fits(self, tokens: &[TokenWithSpan], at: usize) -> bool {
        match self {
            Use::Call => tokens.get(at + 1).is_some_and(|next| next.token == Token::LParen),
            Use::Relation => at > 0 && is_one_of(&tokens[at - 1], &[Keyword::FROM, Keyword::JOIN, Keyword::INTO]),
        }
    }
}

/// The first use of a column, in a statement that reads the relation if one is known. A definition, behind AS, is none.
fn column(tokens: &[TokenWithSpan], name: &str, relation: Option<&str>) -> Option<Location> {
    let mut start = 0;
    for statement in tokens.split_inclusive(|token| token.token == Token::SemiColon) {
        let end = start + statement.len();
        let reads = |relation: &str| (start..end).any(|at| is(tokens, at, relation) && Use::Relation.fits(tokens, at));
        if relation.is_none_or(reads) {
            let defined =
                |at: usize| at > 0 && is_one_of(&tokens[at - 1], &[Keyword::AS, Keyword::VIEW, Keyword::TABLE]);
            if let Some(at) = (start..end).find(|&at| is(tokens, at, name) && !defined(at)) {
                return Some(tokens[at].span.start);
            }
        }
        start = end;
    }
    // The hint may have been about something else.
    relation.and_then(|_| column(tokens, name, None))
}

/// The parts of `a.b`, each with or without double quotes.
fn path(name: &str) -> Vec<String> {
    name.split('.').map(|part| part.trim_matches('"').to_string()).collect()
}

fn is(tokens: &[TokenWithSpan], at: usize, name: &str) -> bool {
    match &tokens[at].token {
        Token::Word(word) if word.quote_style.is_some() => word.value == name,
        Token::Word(word) => word.value.eq_ignore_ascii_case(name),
        _ => false,
    }
}

fn is_one_of(token: &TokenWithSpan, keywords: &[Keyword]) -> bool {
    matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && keywords.contains(&word.keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = "CREATE VIEW judged AS\nSELECT a AS publisher_idd, publisher_id AS b, x AS publisher_id FROM t;\n\
                       CREATE VIEW v AS SELECT bot_reason(x), \"Y\",\n  publisher_id FROM judged;\n\
                       INSERT INTO s SELECT bot_reason FROM claimedd";

    #[track_caller]
    fn check(message: &str, place: (u64, u64), reason: &str) {
        let error = sql_error(&File::new("f.sql", SQL), message).unwrap_or_else(|| panic!("no place: {message}"));
        assert_eq!((error.line, error.column, error.reason.as_str()), (place.0, place.1, reason));
    }

    #[test]
    fn errors_are_found_in_the_file() {
        check(
            "SQL error: ParserError(\"Expected: SELECT, found: SELEC at Line: 3, Column: 18\")",
            (3, 18),
            "Arroyo: Expected: SELECT, found: SELEC",
        );
        let message = "Schema error: No field named publisher_id. Did you mean 'judged.publisher_idd'?.";
        check(message, (4, 3), &format!("Arroyo: {message}"));
        let message = "Schema error: No field named \"Y\". Valid fields are t.a.";
        check(message, (3, 40), &format!("Arroyo: {message}"));
        let message = "Schema error: No field named elsewhere.publisher_id.";
        check(message, (2, 28), &format!("Arroyo: {message}"));
        let message = "Error during planning: Invalid function 'bot_reason'.\nDid you mean 'bit_length'?";
        check(message, (3, 25), &format!("Arroyo: {message}"));
        let message = "Failed to plan query:\n * table 'claimedd' not found";
        check(message, (5, 38), &format!("Arroyo: {message}"));
    }

    #[test]
    fn what_names_nothing_has_no_place() {
        for message in
            ["", "Line: x, Column: ", "No field named ", "table '", "Invalid function ''", "No field named z."]
        {
            assert_eq!(sql_error(&File::new("f.sql", SQL), message), None, "{message}");
        }
    }

    #[test]
    fn a_compiler_speaks_of_our_file() {
        assert_eq!(compiler_error("f", "error\\n --> src/lib.rs:3:26\\n\n"), "error\n --> udfs/src/f.rs:3:26");
    }
}
