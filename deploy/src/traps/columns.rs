//! Names, types and NULLs of the columns of tables and views, as far as the SQL says them.

use super::Udf;
use pipeline_files::parse::{Table, folded};
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Value,
};
use sqlparser::tokenizer::Location;
use std::fmt;

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int,
    BigInt,
    Double,
    Boolean,
    Timestamp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Text => "TEXT",
            Kind::Int => "INT",
            Kind::BigInt => "BIGINT",
            Kind::Double => "DOUBLE",
            Kind::Boolean => "BOOLEAN",
            Kind::Timestamp => "TIMESTAMP",
        })
    }
}

impl Kind {
    /// `None` for a type that no function of ours takes.
    pub fn of(data_type: &DataType) -> Option<Kind> {
        Some(match data_type {
            DataType::Text | DataType::Varchar(_) | DataType::String(_) => Kind::Text,
            DataType::Int(_) | DataType::Integer(_) => Kind::Int,
            DataType::BigInt(_) => Kind::BigInt,
            DataType::Double(_) | DataType::DoublePrecision => Kind::Double,
            DataType::Boolean | DataType::Bool => Kind::Boolean,
            DataType::Timestamp(..) => Kind::Timestamp,
            _ => return None,
        })
    }
}

/// A column, or the value of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Empty for an expression without a name.
    pub name: String,
    /// `None` where the SQL does not say it.
    pub kind: Option<Kind>,
    pub nullable: bool,
}

/// A table, a view or a subquery.
#[derive(Debug, Clone, Default)]
pub struct Relation {
    /// In order; `None` where they cannot be told, as those of a join.
    pub columns: Option<Vec<Column>>,
    /// Where a UNION stands whose rows come out of this.
    pub union: Option<Location>,
}

impl Relation {
    /// The columns of `CREATE TABLE`.
    pub fn table(table: &Table) -> Self {
        let columns = table.columns.iter().map(|column| Column {
            name: column.name.clone(),
            kind: Kind::of(&column.data_type),
            nullable: column.nullable,
        });
        Relation { columns: Some(columns.collect()), union: None }
    }

    /// The column of this name.
    pub fn column(&self, name: &Ident) -> Option<&Column> {
        let name = folded(name);
        self.columns.as_ref()?.iter().find(|column| column.name == name)
    }

    /// What an expression over these columns is. What is not known can be NULL.
    pub fn value(&self, expression: &Expr, functions: &[Udf]) -> Column {
        let of = |kind: Option<Kind>, nullable: bool| Column { name: String::new(), kind, nullable };
        let unknown = of(None, true);
        match expression {
            Expr::Identifier(name) => {
                let unknown = Column { name: folded(name), ..unknown };
                self.column(name).cloned().unwrap_or(unknown)
            }
            Expr::CompoundIdentifier(parts) => match parts.last() {
                Some(name) => self.value(&Expr::Identifier(name.clone()), functions),
                None => unknown,
            },
            Expr::Nested(inner) => Column { name: String::new(), ..self.value(inner, functions) },
            Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(_) => of(Some(Kind::Text), false),
                Value::Number(digits, _) if digits.chars().all(|c| c.is_ascii_digit()) => of(Some(Kind::BigInt), false),
                Value::Number(..) => of(Some(Kind::Double), false),
                Value::Boolean(_) => of(Some(Kind::Boolean), false),
                _ => unknown,
            },
            Expr::Cast { kind, expr, data_type, .. } => {
                let nullable =
                    self.value(expr, functions).nullable || matches!(kind, CastKind::TryCast | CastKind::SafeCast);
                of(Kind::of(data_type), nullable)
            }
            Expr::Interval(_) => of(None, false),
            Expr::BinaryOp { left, op: BinaryOperator::Plus | BinaryOperator::Minus, right } => {
                let (left, right) = (self.value(left, functions), self.value(right, functions));
                // A time and an interval is a time; of numbers the wider one is taken.
                let kind = match (left.kind, right.kind) {
                    (Some(Kind::Int), Some(Kind::BigInt)) => Some(Kind::BigInt),
                    (kind, _) => kind,
                };
                of(kind, left.nullable || right.nullable)
            }
            Expr::Case { conditions, else_result, .. } => {
                let results = conditions.iter().map(|when| &when.result).chain(else_result.as_deref());
                let results: Vec<Column> = results.map(|result| self.value(result, functions)).collect();
                let kind = results.iter().find_map(|result| result.kind);
                of(kind, else_result.is_none() || results.iter().any(|result| result.nullable))
            }
            Expr::Function(call) => {
                let name = call.name.to_string().to_lowercase();
                if let Some(udf) = functions.iter().find(|udf| udf.name == name) {
                    return of(udf.returns.kind(), true);
                }
                let arguments = arguments(&call.args);
                let nullable = arguments.iter().any(|argument| self.value(argument, functions).nullable);
                match name.as_str() {
                    "count" => of(Some(Kind::BigInt), false),
                    // Of Arroyo's scalar functions this one alone is known to be as sure as its argument.
                    "arrow_cast" => of(None, nullable),
                    _ => unknown,
                }
            }
            _ => unknown,
        }
    }
}

/// The arguments of a call that are expressions.
pub fn arguments(arguments: &FunctionArguments) -> Vec<&Expr> {
    let FunctionArguments::List(list) = arguments else { return Vec::new() };
    let expressions = list.args.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    });
    expressions.collect()
}
