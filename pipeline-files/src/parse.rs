//! From the text of a pipeline file to its statements.
//!
//! sqlparser reads all of it but `CREATE TABLE`: Arroyo's columns can be `METADATA FROM` and `GENERATED ALWAYS AS`,
//! and a table has a `WATERMARK FOR`, which only Arroyo's own fork of sqlparser knows. That one statement is put
//! together here from sqlparser's parts.

use crate::error::SqlError;
use sqlparser::ast::{self, Expr, Ident, Statement, TableObject};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, Tokenizer, TokenizerError};
use std::collections::BTreeMap;

/// One pipeline file.
#[derive(Debug, Clone)]
pub struct File {
    pub name: String,
    pub text: String,
}

impl File {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        File { name: name.into(), text: text.into() }
    }

    /// An error at a place in this file.
    pub fn error(&self, at: Location, reason: impl Into<String>) -> SqlError {
        // sqlparser says 0:0 of the end of the file.
        let end = || {
            let (last, line) = self.text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).last()?;
            Some((last as u64 + 1, line.chars().count() as u64 + 1))
        };
        let (line, column) = if at.line == 0 { end().unwrap_or((1, 1)) } else { (at.line, at.column) };
        let text = self.text.lines().nth(line as usize - 1).unwrap_or("").to_string();
        SqlError { file: self.name.clone(), line, column, text, reason: reason.into() }
    }
}

/// A statement, and where it starts.
#[derive(Debug)]
pub struct Placed {
    pub at: Location,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Table(Table),
    View { name: String, query: Box<ast::Query> },
    Insert { into: String, query: Box<ast::Query> },
}

/// `CREATE TABLE … WITH (…)`: a topic, as source or as sink.
#[derive(Debug)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    pub watermark: Option<Watermark>,
    pub options: BTreeMap<String, (String, Location)>,
}

#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub data_type: ast::DataType,
    pub at: Location,
    pub nullable: bool,
    pub origin: Origin,
}

/// Where the value of a column comes from.
#[derive(Debug)]
pub enum Origin {
    /// A field of the record.
    Field,
    /// What the log knows of the record: `timestamp`, `partition` or `offset_id`.
    Metadata(String),
    /// An expression over the other columns.
    Generated(Box<Expr>),
}

/// `WATERMARK FOR event_time AS (expression)`.
#[derive(Debug)]
pub struct Watermark {
    pub column: String,
    pub expression: Box<Expr>,
    pub at: Location,
}

/// Words of clauses that sqlparser reads and DataFusion's planner passes over: accepted, they would be ignored.
const NOT_READ: [Keyword; 12] = [
    Keyword::TABLESAMPLE,
    Keyword::PREWHERE,
    Keyword::ROLLUP,
    Keyword::CUBE,
    Keyword::TOTALS,
    Keyword::CONNECT,
    Keyword::SETTINGS,
    Keyword::UPDATE,
    Keyword::SHARE,
    Keyword::FETCH,
    Keyword::LATERAL,
    Keyword::NOWAIT,
];

/// The statements of a file, in order.
pub fn parse(file: &File) -> Result<Vec<Placed>, SqlError> {
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, &file.text).tokenize_with_location().map_err(|e| {
        let TokenizerError { message, location } = e;
        file.error(location, message)
    })?;
    for token in &tokens {
        if let Token::Word(word) = &token.token
            && word.quote_style.is_none()
            && NOT_READ.contains(&word.keyword)
        {
            let reason = format!("{} is not supported (as a name, it must be quoted)", word.value);
            return Err(file.error(token.span.start, reason));
        }
    }
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let mut statements = Vec::new();
    loop {
        while parser.consume_token(&Token::SemiColon) {}
        let start = parser.peek_token();
        if start.token == Token::EOF {
            return Ok(statements);
        }
        let at = start.span.start;
        let kind = statement(file, &mut parser, at)?;
        let end = parser.peek_token();
        if end.token != Token::SemiColon && end.token != Token::EOF {
            return Err(file.error(end.span.start, format!("expected `;` after the statement, found `{end}`")));
        }
        statements.push(Placed { at, kind });
    }
}

fn statement(file: &File, parser: &mut Parser, at: Location) -> Result<Kind, SqlError> {
    if parser.parse_keywords(&[Keyword::CREATE, Keyword::TABLE]) {
        return table(file, parser).map(Kind::Table);
    }
    let statement = parser.parse_statement().map_err(|e| syntax(file, parser, e))?;
    let refuse = |what: &str| {
        let allowed =
            "a pipeline consists of CREATE TABLE … WITH (…), CREATE VIEW … AS SELECT … and INSERT INTO … SELECT …";
        Err(file.error(at, format!("{what} is not supported: {allowed}")))
    };
    match statement {
        Statement::CreateView(view) => {
            // Whatever else was said would stand in its text.
            if view.to_string() != format!("CREATE VIEW {} AS {}", view.name, view.query) {
                return refuse("CREATE VIEW with anything but a name and AS");
            }
            Ok(Kind::View { name: object_name(&view.name), query: view.query })
        }
        Statement::Insert(insert) => {
            let TableObject::TableName(name) = &insert.table else { return refuse("INSERT INTO a function") };
            let Some(query) = insert.source.clone() else { return refuse("INSERT INTO without a SELECT") };
            if insert.to_string() != format!("INSERT INTO {name} {query}") {
                return refuse("INSERT INTO with a list of columns or clauses of its own (columns go by their order)");
            }
            Ok(Kind::Insert { into: object_name(name), query })
        }
        other => {
            let text = other.to_string();
            let verb: Vec<&str> = text.split_whitespace().take(2).collect();
            refuse(&format!("`{} …`", verb.join(" ")))
        }
    }
}

fn table(file: &File, parser: &mut Parser) -> Result<Table, SqlError> {
    let name = parser.parse_object_name(false).map_err(|e| syntax(file, parser, e))?;
    let mut table = Table { name: object_name(&name), columns: Vec::new(), watermark: None, options: BTreeMap::new() };
    expect(file, parser, &Token::LParen)?;
    loop {
        let at = parser.peek_token().span.start;
        if word(parser, "WATERMARK") {
            if table.watermark.is_some() {
                return Err(file.error(at, "a second WATERMARK FOR: a table has one"));
            }
            parser.expect_keyword(Keyword::FOR).map_err(|e| syntax(file, parser, e))?;
            let column = parser.parse_identifier().map_err(|e| syntax(file, parser, e))?;
            parser.expect_keyword(Keyword::AS).map_err(|e| syntax(file, parser, e))?;
            let expression = Box::new(parenthesised(file, parser)?);
            table.watermark = Some(Watermark { column: folded(&column), expression, at });
        } else {
            table.columns.push(column(file, parser)?);
        }
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    expect(file, parser, &Token::RParen)?;
    if parser.parse_keyword(Keyword::WITH) {
        expect(file, parser, &Token::LParen)?;
        loop {
            option(file, parser, &mut table)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        expect(file, parser, &Token::RParen)?;
    }
    Ok(table)
}

/// `name = 'value'`. sqlparser reads options too, and forgets the place of a quoted name.
fn option(file: &File, parser: &mut Parser, table: &mut Table) -> Result<(), SqlError> {
    let place = parser.peek_token().span.start;
    let name = parser.parse_identifier().map_err(|e| syntax(file, parser, e))?.value;
    expect(file, parser, &Token::Eq)?;
    let value = parser.parse_expr().map_err(|e| syntax(file, parser, e))?;
    let text = match value {
        Expr::Value(value) => value.value.into_string(),
        _ => None,
    };
    let text = text.ok_or_else(|| file.error(place, format!("option `{name}` wants a quoted text")))?;
    if table.options.contains_key(&name) {
        return Err(file.error(place, format!("option `{name}` is given twice")));
    }
    table.options.insert(name, (text, place));
    Ok(())
}

fn column(file: &File, parser: &mut Parser) -> Result<Column, SqlError> {
    let at = parser.peek_token().span.start;
    let name = parser.parse_identifier().map_err(|e| syntax(file, parser, e))?;
    let data_type = parser.parse_data_type().map_err(|e| syntax(file, parser, e))?;
    let mut column = Column { name: folded(&name), data_type, at, nullable: true, origin: Origin::Field };
    loop {
        if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) {
            column.nullable = false;
        } else if word(parser, "METADATA") {
            parser.expect_keyword(Keyword::FROM).map_err(|e| syntax(file, parser, e))?;
            column.origin = Origin::Metadata(parser.parse_literal_string().map_err(|e| syntax(file, parser, e))?);
        } else if parser.parse_keywords(&[Keyword::GENERATED, Keyword::ALWAYS, Keyword::AS]) {
            column.origin = Origin::Generated(Box::new(parenthesised(file, parser)?));
            // Arroyo knows stored ones only.
            parser.expect_keyword(Keyword::STORED).map_err(|e| syntax(file, parser, e))?;
        } else {
            return Ok(column);
        }
    }
}

fn parenthesised(file: &File, parser: &mut Parser) -> Result<Expr, SqlError> {
    expect(file, parser, &Token::LParen)?;
    let expression = parser.parse_expr().map_err(|e| syntax(file, parser, e))?;
    expect(file, parser, &Token::RParen)?;
    Ok(expression)
}

fn expect(file: &File, parser: &mut Parser, token: &Token) -> Result<(), SqlError> {
    parser.expect_token(token).map(|_| ()).map_err(|e| syntax(file, parser, e))
}

/// Takes the next token if it is this word, which is no keyword of sqlparser.
fn word(parser: &mut Parser, text: &str) -> bool {
    let found = matches!(&parser.peek_token().token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text));
    if found {
        parser.next_token();
    }
    found
}

/// sqlparser ends its messages with " at Line: 3, Column: 7" where it knows the place.
fn syntax(file: &File, parser: &Parser, error: ParserError) -> SqlError {
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
    };
    let placed = message.rsplit_once(" at Line: ").and_then(|(reason, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((reason.to_string(), Location { line: line.parse().ok()?, column: column.parse().ok()? }))
    });
    let (reason, at) = placed.unwrap_or_else(|| (message, parser.peek_token().span.start));
    file.error(at, lower_first(&reason))
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// SQL folds a name to lower case unless it is quoted.
pub fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

fn object_name(name: &ast::ObjectName) -> String {
    name.0.iter().map(|part| part.as_ident().map(folded).unwrap_or_default()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(text: &str, line: u64, column: u64, reason: &str) {
        let error = parse(&File::new("f.sql", text)).unwrap_err();
        assert_eq!((error.line, error.column, error.reason.as_str()), (line, column, reason), "{text}");
    }

    #[test]
    fn a_table_is_read() {
        let text = r#"
CREATE TABLE t (a TEXT, "B" BIGINT NOT NULL METADATA FROM 'timestamp', c INT GENERATED ALWAYS AS ("B" + 1) STORED,
  WATERMARK FOR c AS ("B" - 5)) WITH (connector = 'kafka', 'source.offset' = 'group');
INSERT INTO u SELECT a FROM t"#;
        let statements = parse(&File::new("f", text)).unwrap();
        assert_eq!(statements.len(), 2);
        let Kind::Table(table) = &statements[0].kind else { panic!("{statements:?}") };
        let names: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["a", "B", "c"]);
        assert!(table.columns[0].nullable && !table.columns[1].nullable);
        assert!(matches!(&table.columns[1].origin, Origin::Metadata(of) if of == "timestamp"));
        assert!(matches!(&table.columns[2].origin, Origin::Generated(_)));
        assert_eq!(table.watermark.as_ref().unwrap().column, "c");
        let (value, place) = &table.options["source.offset"];
        assert_eq!((value.as_str(), place.line, place.column), ("group", 3, 60));
    }

    #[test]
    fn errors_have_a_place() {
        check_error("SELEC 1", 1, 1, "expected: an SQL statement, found: SELEC");
        check_error("CREATE VIEW v AS\nSELECT a\n  FROM t WHERE", 3, 15, "expected: an expression, found: EOF");
        check_error("CREATE TABLE t (a TEXT", 1, 17 + 6, "expected: ), found: EOF");
        let allowed =
            "a pipeline consists of CREATE TABLE … WITH (…), CREATE VIEW … AS SELECT … and INSERT INTO … SELECT …";
        check_error("\n DROP TABLE t", 2, 2, &format!("`DROP TABLE …` is not supported: {allowed}"));
        check_error("CREATE VIEW v AS SELECT 'a", 1, 25, "Unterminated string literal");
    }
}
