//! The signature of a function, read from its source file, and what of it Arroyo would not survive.

use super::{Kind, Source};
use pipeline_files::SqlError;
use std::time::Duration;

/// The shortest timeout of an asynchronous function. A server that it waits for needs about that to start again.
const TIMEOUT_MIN: Duration = Duration::from_secs(60);

/// A function that pipelines can call.
#[derive(Debug, Clone)]
pub struct Udf {
    pub name: String,
    pub is_async: bool,
    pub arguments: Vec<Argument>,
    pub returns: Argument,
    file: String,
    source: &'static str,
}

/// An argument, or what is returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Empty for what is returned.
    pub name: String,
    /// The Rust type as it is written, without `Option<…>`.
    pub rust: String,
    pub optional: bool,
    /// Where it stands in the file, in bytes.
    at: usize,
}

impl Argument {
    /// Its type in SQL; `None` for one that no pipeline has needed yet.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self.rust.as_str() {
            "&str" | "String" => Kind::Text,
            "i32" => Kind::Int,
            "i64" => Kind::BigInt,
            "f64" => Kind::Double,
            "bool" => Kind::Boolean,
            _ => return None,
        })
    }
}

impl Udf {
    /// Reads a function's file, and refuses what cannot work on Arroyo.
    pub fn read(source: &Source) -> Result<Udf, SqlError> {
        let file = format!("udfs/src/{}.rs", source.name);
        let error = |at: usize, reason: String| error_at(&file, source.source, at, reason);
        let code = code_only(source.source);
        let mut attributes = code.match_indices("#[udf").map(|(at, _)| at).filter(|at| {
            let after = code[at + "#[udf".len()..].chars().next();
            after.is_some_and(|c| c == ']' || c == '(' || c.is_whitespace())
        });
        let Some(attribute) = attributes.next() else {
            return Err(error(0, "no function of this file is marked #[udf]: one must be".into()));
        };
        if let Some(second) = attributes.next() {
            return Err(error(second, "a second #[udf]: Arroyo takes one function a file, so give it its own".into()));
        }
        let unread = |at: usize, what: &str| {
            error(at, format!("{what}: a function is `fn name(argument: type, …) -> type` after its #[udf]"))
        };
        let end =
            code[attribute..].find(']').ok_or_else(|| unread(attribute, "#[udf without its end"))? + attribute + 1;
        let start = word(&code, end, "fn").ok_or_else(|| unread(attribute, "no function after #[udf]"))?;
        let before = &code[end..start];
        let name_at = start + 2 + code[start + 2..].len() - code[start + 2..].trim_start().len();
        let open = code[name_at..].find('(').ok_or_else(|| unread(name_at, "a function without `(`"))? + name_at;
        let name = code[name_at..open].trim().to_string();
        if name != source.name {
            return Err(error(
                name_at,
                format!("function `{name}` in a file for `{}`: name one after the other", source.name),
            ));
        }
        let close = closing(&code, open).ok_or_else(|| unread(open, "`(` without its end"))?;
        let mut arguments = Vec::new();
        for (at, text) in split(&code, open + 1, close) {
            let (name, rust) = text.split_once(':').ok_or_else(|| unread(at, "an argument without a type"))?;
            let (rust, optional) = without_option(rust);
            arguments.push(Argument { name: name.trim().trim_start_matches("mut ").to_string(), rust, optional, at });
        }
        let body = code[close..].find('{').ok_or_else(|| unread(close, "a function without a body"))? + close;
        let arrow = code[close..body].find("->").ok_or_else(|| unread(close, "a function that returns nothing"))?;
        let at = close + arrow + 2;
        let (rust, optional) = without_option(&code[at..body]);
        let at = at + code[at..].len() - code[at..].trim_start().len();
        let returns = Argument { name: String::new(), rust, optional, at };
        if returns.kind() == Some(Kind::Boolean) {
            let reason = "a function that returns bool does not compile with Arroyo's plugin: return i32, or a text";
            return Err(error(at, reason.into()));
        }
        let is_async = before.split_whitespace().any(|word| word == "async");
        if is_async {
            let named = word(&code, attribute, "timeout").filter(|at| *at < end);
            let Some(at) = named else {
                let reason = "an asynchronous function without `timeout = \"…\"` has five seconds, and Arroyo panics when \
                              they are over: name a time longer than what it waits for can be away";
                return Err(error(attribute, reason.into()));
            };
            if timeout(&source.source[at..]).is_none_or(|timeout| timeout < TIMEOUT_MIN) {
                let reason = "Arroyo panics when this time is over: name one of at least a minute, as \"600s\" or \"1h\", and \
                              longer than what the function waits for can be away";
                return Err(error(at, reason.into()));
            }
        }
        Ok(Udf { name, is_async, arguments, returns, file, source: source.source })
    }

    /// Where an argument stands, as `file:line`.
    pub fn place(&self, argument: &Argument) -> String {
        let SqlError { file, line, .. } = error_at(&self.file, self.source, argument.at, String::new());
        format!("{file}:{line}")
    }
}

/// The time in `timeout = "600s"`, written as Arroyo reads it; `None` for another one.
fn timeout(code: &str) -> Option<Duration> {
    let value = code.strip_prefix("timeout")?.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
    let value = value.split('"').next()?;
    let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    Some(match unit.trim_start() {
        "ns" | "nanos" => Duration::from_nanos(number),
        "µs" | "micros" => Duration::from_micros(number),
        "ms" | "millis" => Duration::from_millis(number),
        "s" | "secs" | "seconds" => Duration::from_secs(number),
        "m" | "mins" | "minutes" => Duration::from_secs(number.checked_mul(60)?),
        "h" | "hrs" | "hours" => Duration::from_secs(number.checked_mul(3_600)?),
        _ => return None,
    })
}

fn error_at(file: &str, source: &str, at: usize, reason: String) -> SqlError {
    let before = source.get(..at).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.matches('\n').count() as u64 + 1;
    let column = before[start..].chars().count() as u64 + 1;
    let text = source[start..].lines().next().unwrap_or_default().to_string();
    SqlError { file: file.to_string(), line, column, text, reason }
}

/// `Option<T>` as `T`, and whether it was one. Blanks are left out of the type.
fn without_option(rust: &str) -> (String, bool) {
    let rust: String = rust.chars().filter(|c| !c.is_whitespace()).collect();
    match rust.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')) {
        Some(inner) => (inner.to_string(), true),
        None => (rust, false),
    }
}

/// Where this word begins, at or after a place.
fn word(code: &str, from: usize, word: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code[from..].match_indices(word).map(|(at, _)| from + at).find(|at| {
        !code[..*at].chars().next_back().is_some_and(is_part)
            && !code[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

/// Where the parenthesis that opens at `open` closes.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(open + at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The parts between commas that stand in no brackets, without blanks around them, and where each begins.
fn split(code: &str, from: usize, to: usize) -> Vec<(usize, &str)> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, from);
    for (at, c) in code[from..to].char_indices().map(|(at, c)| (from + at, c)).chain([(to, ',')]) {
        match c {
            '(' | '<' | '[' => depth += 1,
            ')' | '>' | ']' => depth -= 1,
            ',' if depth == 0 => {
                let part = &code[start..at];
                if !part.trim().is_empty() {
                    parts.push((start + part.len() - part.trim_start().len(), part.trim()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The text with comments and literals blanked out, so that a word found in it is code. Every byte keeps its place.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped(bytes, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Only whole comments and literals were blanked, so what is left is as valid as it was.
    String::from_utf8(code).unwrap_or_default()
}

/// Where the comment or literal ends that begins here; here, if none does.
fn skipped(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let until = |from: usize, end: &[u8]| {
        let found = rest[from.min(rest.len())..].windows(end.len()).position(|part| part == end);
        found.map_or(bytes.len(), |found| at + from + found + end.len())
    };
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return until(2, b"\n");
    }
    if rest.starts_with(b"/*") {
        return block_end(bytes, at);
    }
    let raw = if rest.starts_with(b"br") { 2 } else { 1 };
    if !in_word && (rest.starts_with(b"r") || raw == 2) {
        let hashes = rest[raw..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(raw + hashes) == Some(&b'"') {
            let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            return until(raw + hashes + 1, &end);
        }
    }
    match rest[0] {
        b'"' => quoted_end(bytes, at, b'"'),
        // A lifetime has no second quote, or none right after its one character.
        b'\'' if rest.get(1) == Some(&b'\\') => quoted_end(bytes, at, b'\''),
        b'\'' => {
            let text = std::str::from_utf8(&rest[1..rest.len().min(6)]);
            let valid = text.map_or_else(|error| error.valid_up_to(), str::len);
            let first = std::str::from_utf8(&rest[1..1 + valid]).ok().and_then(|text| text.chars().next());
            match first {
                Some(c) if rest.get(1 + c.len_utf8()) == Some(&b'\'') => at + 2 + c.len_utf8(),
                _ => at,
            }
        }
        _ => at,
    }
}

/// Comments in `/* */` stand in each other.
fn block_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut here) = (0, at);
    while here < bytes.len() {
        if bytes[here..].starts_with(b"/*") {
            (depth, here) = (depth + 1, here + 2);
        } else if bytes[here..].starts_with(b"*/") {
            (depth, here) = (depth - 1, here + 2);
            if depth == 0 {
                return here;
            }
        } else {
            here += 1;
        }
    }
    bytes.len()
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut here = at + 1;
    while here < bytes.len() {
        match bytes[here] {
            b'\\' => here += 2,
            byte if byte == quote => return here + 1,
            _ => here += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &'static str) -> Udf {
        Udf::read(&Source { name: "f", source }).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_signature_is_read() {
        let udf = read(
            "/*\n[dependencies]\n#[udf]\n*/\nconst S: &str = r#\"#[udf] fn \"x\" \"#; // #[udf]\n\
             fn helper<'a>(c: char) -> bool { c == '\"' || c == '\\'' }\n\
             #[udf(ordered, timeout = \"60s\")]\npub async fn f(key: Option<&str>, n: i32,\n  mut m : i64,) -> Option<i64> { 1 }",
        );
        let arguments: Vec<_> = udf.arguments.iter().map(|a| (a.name.as_str(), a.rust.as_str(), a.optional)).collect();
        assert_eq!(arguments, [("key", "&str", true), ("n", "i32", false), ("m", "i64", false)]);
        assert_eq!((udf.is_async, udf.returns.rust.as_str(), udf.returns.optional), (true, "i64", true));
        assert_eq!(udf.place(&udf.arguments[2]), "udfs/src/f.rs:9");
        assert!(!read("#[udf]\nfn f() -> String { String::new() }").is_async);
    }

    #[test]
    fn every_file_of_ours_is_read() {
        for source in crate::sources() {
            assert_eq!(Udf::read(&source).unwrap_or_else(|error| panic!("{error}")).name, source.name);
        }
    }

    #[test]
    fn a_file_cut_off_anywhere_is_an_error_and_no_panic() {
        let whole = "/* é */ #[udf]\nfn f(a: Option<&str>, b: (i32, i64)) -> Option<i64> { 'é'; \"é\\\"\"; r#\"x\"# /* /* */ */ }";
        let body = whole.find('{').unwrap_or_default();
        for (end, _) in whole.char_indices() {
            let source: &'static str = Box::leak(whole[..end].to_string().into_boxed_str());
            assert_eq!(Udf::read(&Source { name: "f", source }).is_ok(), end > body, "{source}");
        }
    }
}
