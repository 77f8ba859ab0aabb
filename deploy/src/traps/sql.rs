//! A pipeline file, statement by statement.

use super::Udf;
use super::columns::{Column, Relation, arguments};
use pipeline_files::parse::{Kind as StatementKind, Origin, Table, Watermark, folded, parse};
use pipeline_files::{File, SqlError, Variables};
use sqlparser::ast::{
    Expr, Function, GroupByExpr, Ident, Query, Select, SelectItem, SetExpr, Spanned, TableFactor, visit_expressions,
};
use sqlparser::tokenizer::Location;
use std::collections::HashMap;
use std::ops::ControlFlow;

/// Aggregates that a pipeline can hold.
const AGGREGATES: [&str; 5] = ["count", "sum", "min", "max", "avg"];

/// Refuses a file that Arroyo would take and then get wrong. It was filled in with these variables.
///
/// What is no SQL at all, or has a name that is not there, is left for the engine to say.
pub fn check(file: &File, variables: &Variables, functions: &[Udf]) -> Result<(), SqlError> {
    let mut checker = Checker { file, functions, relations: HashMap::new() };
    for statement in parse(file)? {
        match statement.kind {
            StatementKind::Table(table) => checker.table(&table, variables, statement.at)?,
            StatementKind::View { name, query } => {
                let relation = checker.query(&query, &HashMap::new())?;
                checker.relations.insert(name, relation);
            }
            StatementKind::Insert { query, .. } => {
                checker.query(&query, &HashMap::new())?;
            }
        }
    }
    Ok(())
}

/// Relations by name.
type Relations = HashMap<String, Relation>;

struct Checker<'a> {
    file: &'a File,
    functions: &'a [Udf],
    relations: Relations,
}

impl Checker<'_> {
    fn table(&mut self, table: &Table, variables: &Variables, at: Location) -> Result<(), SqlError> {
        if table.options.get("type").is_some_and(|(kind, _)| kind == "source") {
            self.source(table, variables, at)?;
        }
        let relation = Relation::table(table);
        if let Some(watermark) = &table.watermark {
            self.watermark(table, watermark, &relation)?;
        }
        self.relations.insert(table.name.clone(), relation);
        Ok(())
    }

    /// A source begins where its version does, or not at all, and goes on whatever comes.
    fn source(&self, table: &Table, variables: &Variables, at: Location) -> Result<(), SqlError> {
        let check = |name: &str, is_right: &dyn Fn(&str) -> bool, wanted: &str, why: &str| {
            let (given, at) = match table.options.get(name) {
                Some((value, _)) if is_right(value) => return Ok(()),
                Some((value, at)) => (format!("'{value}'"), *at),
                None => ("not given".to_string(), at),
            };
            Err(self.file.error(at, format!("option `{name}` is {given}: it must be '{wanted}', since {why}")))
        };
        let is_filled_in = |name: &str, value: &str| variables.get(name).is_some_and(|filled| filled == value);
        let why = "a version begins at offsets of that topic, and of any other Arroyo would read nothing, unseen";
        check("topic", &|value| value == "clicks", "clicks", why)?;
        let why = "a version's offsets are committed there, and its rows are expected from there";
        check("bootstrap_servers", &|value| is_filled_in("KAFKA", value), "${KAFKA}", why)?;
        let why = "otherwise one record that is no click stops the pipeline, and again after every restart";
        check("bad_data", &|value| value == "drop", "drop", why)?;
        let why = "a version begins at the offsets that were committed for it";
        check("source.offset", &|value| value == "group", "group", why)?;
        let why = "each version has a consumer group of its own";
        check("source.group_id", &|value| is_filled_in("GROUP", value), "${GROUP}", why)?;
        let (reset, why) =
            ("auto.offset.reset=error", "a version whose offsets are gone would begin somewhere else, unseen");
        check("client_configs", &|value| value.split(',').any(|one| one.trim() == reset), reset, why)
    }

    fn watermark(&self, table: &Table, watermark: &Watermark, relation: &Relation) -> Result<(), SqlError> {
        let found = visit_expressions(&*watermark.expression, |expression| {
            let Expr::Identifier(name) = expression else { return ControlFlow::Continue(()) };
            let column = table.columns.iter().find(|column| column.name == folded(name));
            let reason = match column {
                Some(column) if matches!(column.origin, Origin::Generated(_)) => {
                    "is generated, and Arroyo cannot name it in WATERMARK FOR: write its expression here again"
                }
                Some(column) if column.nullable => {
                    "can be NULL, and Arroyo wants a WATERMARK FOR that cannot: make it of columns that are NOT NULL"
                }
                _ => return ControlFlow::Continue(()),
            };
            ControlFlow::Break(self.file.error(name.span.start, format!("`{}` {reason}", name.value)))
        });
        if let ControlFlow::Break(error) = found {
            return Err(error);
        }
        if relation.value(&watermark.expression, self.functions).nullable {
            let at = visit_expressions(&*watermark.expression, |expression| match expression {
                Expr::Function(call) if relation.value(expression, self.functions).nullable => {
                    ControlFlow::Break(at(call))
                }
                _ => ControlFlow::Continue(()),
            });
            let at = at.break_value().unwrap_or(watermark.at);
            let reason = "for Arroyo this can be NULL, and it wants a WATERMARK FOR that cannot: of functions use \
                          arrow_cast(milliseconds, 'Timestamp(Millisecond, None)') alone, and CAST, + and -";
            return Err(self.file.error(at, reason));
        }
        Ok(())
    }

    /// What a query gives, after it was looked through.
    fn query(&self, query: &Query, outer: &Relations) -> Result<Relation, SqlError> {
        let mut named = outer.clone();
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let relation = self.query(&cte.query, &named)?;
            named.insert(folded(&cte.alias.name), relation);
        }
        self.body(&query.body, &named)
    }

    fn body(&self, body: &SetExpr, named: &Relations) -> Result<Relation, SqlError> {
        match body {
            SetExpr::Select(select) => self.select(select, named),
            SetExpr::Query(query) => self.query(query, named),
            SetExpr::SetOperation { left, right, .. } => {
                let relation = self.body(left, named)?;
                self.body(right, named)?;
                Ok(Relation { union: Some(start(right)), ..relation })
            }
            _ => Ok(Relation::default()),
        }
    }

    fn select(&self, select: &Select, named: &Relations) -> Result<Relation, SqlError> {
        let from = self.from(select, named)?;
        if let Some(union) = from.union
            && is_aggregate(select)
        {
            let line = select.select_token.0.span.start.line;
            let reason = format!(
                "the aggregate at line {line} reads this UNION, which Arroyo cannot plan: make one row of both with \
                 CASE, or aggregate each into a topic of its own"
            );
            return Err(self.file.error(union, reason));
        }
        let asked = |expression: &Expr| match expression {
            Expr::Function(call) => self.call(call, &from).map_or_else(ControlFlow::Break, ControlFlow::Continue),
            _ => ControlFlow::Continue(()),
        };
        if let ControlFlow::Break(error) = visit_expressions(&select.projection, asked) {
            return Err(error);
        }
        if let ControlFlow::Break(error) = visit_expressions(&select.selection, asked) {
            return Err(error);
        }
        let union = if is_aggregate(select) { None } else { from.union };
        Ok(Relation { columns: self.projection(&select.projection, &from), union })
    }

    /// What is read. Of a join only whether a UNION is in it.
    fn from(&self, select: &Select, named: &Relations) -> Result<Relation, SqlError> {
        let factors = select
            .from
            .iter()
            .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
        let mut relations = Vec::new();
        for factor in factors {
            relations.push(match factor {
                TableFactor::Table { name, .. } => {
                    let name = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
                    named.get(&name).or_else(|| self.relations.get(&name)).cloned().unwrap_or_default()
                }
                TableFactor::Derived { subquery, .. } => self.query(subquery, named)?,
                _ => Relation::default(),
            });
        }
        let union = relations.iter().find_map(|relation| relation.union);
        match relations.pop() {
            Some(only) if relations.is_empty() => Ok(only),
            _ => Ok(Relation { columns: None, union }),
        }
    }

    /// `None` where a column cannot be told.
    fn projection(&self, items: &[SelectItem], from: &Relation) -> Option<Vec<Column>> {
        let mut columns = Vec::new();
        for item in items {
            match item {
                SelectItem::UnnamedExpr(expression) => columns.push(from.value(expression, self.functions)),
                SelectItem::ExprWithAlias { expr, alias } => {
                    columns.push(Column { name: folded(alias), ..from.value(expr, self.functions) });
                }
                SelectItem::Wildcard(_) => columns.extend_from_slice(from.columns.as_ref()?),
                SelectItem::QualifiedWildcard(..) | SelectItem::ExprWithAliases { .. } => return None,
            }
        }
        Some(columns)
    }

    /// A call of an asynchronous function: its arguments are the first columns of what is read.
    fn call(&self, call: &Function, from: &Relation) -> Result<(), SqlError> {
        let name = call.name.to_string().to_lowercase();
        let Some(udf) = self.functions.iter().find(|udf| udf.is_async && udf.name == name) else { return Ok(()) };
        let error = |at: Location, reason: String| Err(self.file.error(at, reason));
        let order: Vec<&str> = udf.arguments.iter().map(|argument| argument.name.as_str()).collect();
        let rule = format!(
            "after a restart Arroyo asks {name} again with the first columns of the view that it reads, so these must be \
             its arguments, in its order and types: {}",
            order.join(", ")
        );
        let given = arguments(&call.args);
        if given.len() != udf.arguments.len() {
            return error(
                at(call),
                format!("{name} takes {} arguments ({}), and here are {}", order.len(), order.join(", "), given.len()),
            );
        }
        let Some(columns) = &from.columns else {
            return error(
                at(call),
                format!(
                    "the columns that {name} is asked with cannot be told: ask it in a SELECT from one view; {rule}"
                ),
            );
        };
        for (number, (argument, given)) in udf.arguments.iter().zip(given).enumerate() {
            let (Some(asked), Some(first)) = (column_name(given), columns.get(number)) else {
                return error(
                    given.span().start,
                    format!("argument {} of {name} is not a column of the view by its name; {rule}", number + 1),
                );
            };
            let (asked, here) = (folded(asked), given.span().start);
            if first.name != asked {
                return error(
                    here,
                    format!(
                        "`{asked}` is argument {} of {name}, and column {0} of the view is `{}`; {rule}",
                        number + 1,
                        first.name
                    ),
                );
            }
            match (first.kind, argument.kind()) {
                (Some(found), Some(wanted)) if found == wanted => {}
                (Some(found), Some(wanted)) => {
                    return error(
                        here,
                        format!(
                            "`{asked}` is {found}, and {name} takes {wanted} there: write CAST(… AS {wanted}) AS {asked} in the view"
                        ),
                    );
                }
                (None, Some(wanted)) => {
                    return error(
                        here,
                        format!(
                            "the type of `{asked}` cannot be told: write CAST(… AS {wanted}) AS {asked} in the view, as {name} takes it"
                        ),
                    );
                }
                (_, None) => {
                    let place = udf.place(argument);
                    return error(
                        here,
                        format!(
                            "argument `{}: {}` of {name} ({place}) is of a type that is not checked here: take &str, i32, i64 or f64",
                            argument.name, argument.rust
                        ),
                    );
                }
            }
            if first.nullable && !argument.optional {
                let place = udf.place(argument);
                return error(
                    here,
                    format!(
                        "`{asked}` can be NULL, and Arroyo would give {name} an empty value for it: make the argument `{}: Option<{}>` ({place}), or the column NOT NULL",
                        argument.name, argument.rust
                    ),
                );
            }
        }
        Ok(())
    }
}

/// Where the first SELECT of a query stands.
fn start(body: &SetExpr) -> Location {
    match body {
        SetExpr::Select(select) => select.select_token.0.span.start,
        SetExpr::Query(query) => start(&query.body),
        SetExpr::SetOperation { left, .. } => start(left),
        other => other.span().start,
    }
}

fn at(call: &Function) -> Location {
    call.name.span().start
}

fn column_name(expression: &Expr) -> Option<&Ident> {
    match expression {
        Expr::Identifier(name) => Some(name),
        Expr::CompoundIdentifier(parts) => parts.last(),
        _ => None,
    }
}

fn is_aggregate(select: &Select) -> bool {
    let grouped = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(expressions, _) => !expressions.is_empty(),
    };
    let found = visit_expressions(&select.projection, |expression| match expression {
        Expr::Function(call)
            if AGGREGATES.contains(&call.name.to_string().to_lowercase().as_str()) && call.over.is_none() =>
        {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    grouped || found.is_break()
}
