//! From the statements of a file to the steps that a batch goes through.

use crate::error::SqlError;
use crate::node::{Node, compile};
use crate::parse::{Column, File, Kind, Origin, Table, parse};
use crate::source::{Metadata, Source};
use crate::window::{Aggregate, Window};
use crate::{functions, refuse};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column as ColumnName, DFSchema, DataFusionError, Result as DfResult, ScalarValue, plan_err};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{
    Aggregate as LogicalAggregate, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Projection, ScalarUDF,
    SubqueryAlias, Union,
};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{ExprWithAlias, Query, Statement};
use datafusion::sql::sqlparser::tokenizer::Location;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Hidden columns that every view carries along: the event time of a row, and the watermark of its partition before
/// it. Arroyo carries its `_timestamp` in the same way.
const EVENT_TIME: &str = "__event_time";
const WATERMARK: &str = "__watermark";
const HIDDEN: [&str; 2] = [EVENT_TIME, WATERMARK];

/// What a file says to do with each batch of records.
pub struct Program {
    pub file: String,
    pub source: Source,
    /// In the order of evaluation. Step 0 is the source itself.
    pub steps: Vec<Step>,
}

/// One step; its output has its number.
pub struct Step {
    pub name: String,
    pub kind: StepKind,
}

pub enum StepKind {
    Source,
    View(Node),
    /// Rows that come out of the window go through `rest`, whose only input they are.
    Window {
        window: Box<Window>,
        rest: Node,
    },
    Sink {
        topic: String,
        rows: Node,
    },
}

impl Step {
    /// An output without rows.
    pub fn nothing(&self, source: &Source) -> RecordBatch {
        RecordBatch::new_empty(match &self.kind {
            StepKind::Source => source.schema(),
            StepKind::View(node) | StepKind::Sink { rows: node, .. } | StepKind::Window { rest: node, .. } => {
                node.schema()
            }
        })
    }
}

/// Plans a file, or says where and why it cannot be run.
///
/// A boxed future is compiled here, once; that of an `async fn` would be compiled again, with DataFusion's planner in
/// it, in every binary that waits for it.
pub fn plan(file: &File, scalar_functions: Vec<ScalarUDF>) -> BoxFuture<'_, Result<Program, SqlError>> {
    Box::pin(async move {
        let mut planner = Planner::new(file, scalar_functions);
        for statement in parse(file)? {
            match statement.kind {
                Kind::Table(table) => planner.table(table, statement.at)?,
                Kind::View { name, query } => planner.view(name, query, statement.at).await?,
                Kind::Insert { into, query } => planner.insert(into, query, statement.at).await?,
            }
        }
        planner.finish()
    })
}

struct Planner<'a> {
    file: &'a File,
    context: SessionContext,
    source: Option<Source>,
    steps: Vec<Step>,
    /// Tables that can be read, by name.
    readable: HashMap<String, usize>,
    sinks: HashMap<String, (String, SchemaRef, Location)>,
    /// What nothing has read or written yet.
    unused: BTreeMap<String, (Location, &'static str)>,
}

impl<'a> Planner<'a> {
    fn new(file: &'a File, scalar_functions: Vec<ScalarUDF>) -> Self {
        let config = SessionConfig::new()
            .with_target_partitions(1)
            .set_bool("datafusion.sql_parser.collect_spans", true)
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
        let state = SessionStateBuilder::new_with_default_features().with_config(config).build();
        let context = SessionContext::new_with_state(state);
        for function in scalar_functions {
            context.register_udf(function);
        }
        Planner {
            file,
            context,
            source: None,
            steps: Vec::new(),
            readable: HashMap::new(),
            sinks: HashMap::new(),
            unused: BTreeMap::new(),
        }
    }

    fn state(&self) -> SessionState {
        self.context.state()
    }

    /// An error of DataFusion, at the place it knows or else at the statement's.
    fn error(&self, at: Location, error: DataFusionError) -> SqlError {
        let span = error.diagnostic().and_then(|d| d.span);
        let at = span.map_or(at, |span| Location { line: span.start.line, column: span.start.column });
        let reason = error.strip_backtrace();
        let mut reason = reason.as_str();
        for prefix in [
            "Error during planning: ",
            "Schema error: ",
            "type_coercion\n",
            "caused by\n",
            "This feature is not implemented: ",
        ] {
            reason = reason.strip_prefix(prefix).unwrap_or(reason);
        }
        self.file.error(at, reason)
    }

    fn check_name(&self, name: &str, at: Location) -> Result<(), SqlError> {
        if name.starts_with(INNER) {
            return Err(self.file.error(at, format!("`{name}`: names that begin with {INNER} are the engine's own")));
        }
        if self.readable.contains_key(name) || self.sinks.contains_key(name) {
            return Err(self.file.error(at, format!("`{name}` is there already")));
        }
        Ok(())
    }

    fn table(&mut self, table: Table, at: Location) -> Result<(), SqlError> {
        let error = |reason: String| Err(self.file.error(at, reason));
        self.check_name(&table.name, at)?;
        let option = |name: &str| table.options.get(name).map(|(value, _)| value.as_str());
        let is_source = match option("type") {
            Some("source") => true,
            Some("sink") => false,
            other => return error(format!("option `type` is {other:?}: it must be 'source' or 'sink'")),
        };
        // Values that an engine would act on are checked; brokers and groups are Arroyo's business.
        for (name, (value, place)) in &table.options {
            let allowed: &[&str] = match (name.as_str(), is_source) {
                ("connector", _) => &["kafka"],
                ("format", _) => &["json"],
                ("type" | "topic" | "bootstrap_servers", _) => continue,
                ("bad_data", true) => &["drop"],
                ("source.offset", true) => &["group"],
                ("source.group_id" | "client_configs", true) => continue,
                _ => return Err(self.file.error(*place, format!("option `{name}` is not supported"))),
            };
            if !allowed.contains(&value.as_str()) {
                return Err(self
                    .file
                    .error(*place, format!("option `{name}` is '{value}': it must be '{}'", allowed.join("' or '"))));
            }
        }
        for name in ["connector", "format", "topic"] {
            if option(name).is_none() {
                return error(format!("option `{name}` is missing"));
            }
        }
        let topic = option("topic").unwrap_or_default().to_string();
        self.unused.insert(table.name.clone(), (at, if is_source { "read" } else { "written" }));
        if is_source { self.source_table(table, topic, at) } else { self.sink_table(table, topic, at) }
    }

    fn sink_table(&mut self, table: Table, topic: String, at: Location) -> Result<(), SqlError> {
        let mut fields = Vec::new();
        for column in &table.columns {
            if !matches!(column.origin, Origin::Field) {
                return Err(self.file.error(column.at, "a sink's columns are plain: name and type"));
            }
            fields.push(self.field(column)?);
        }
        if table.watermark.is_some() {
            return Err(self.file.error(at, "a sink has no watermark"));
        }
        self.sinks.insert(table.name, (topic, Arc::new(Schema::new(fields)), at));
        Ok(())
    }

    fn source_table(&mut self, table: Table, topic: String, at: Location) -> Result<(), SqlError> {
        if self.source.is_some() {
            return Err(self.file.error(at, "a second source: a pipeline file reads one topic here"));
        }
        let Some(watermark) = &table.watermark else {
            return Err(self.file.error(at, "a source needs WATERMARK FOR event_time AS (expression)"));
        };
        let (mut fields, mut metadata, mut metadata_fields) = (Vec::new(), Vec::new(), Vec::new());
        for column in &table.columns {
            let field = self.field(column)?;
            if HIDDEN.contains(&column.name.as_str()) {
                return Err(self.file.error(column.at, format!("`{}` is a name of the engine's own", column.name)));
            }
            match &column.origin {
                Origin::Field => fields.push(field),
                Origin::Metadata(name) => {
                    let known = Metadata::of(name, field.data_type());
                    let wrong = || {
                        self.file.error(
                            column.at,
                            format!("no metadata '{name}' of this type: there is {}", Metadata::NAMES),
                        )
                    };
                    metadata.push(known.ok_or_else(wrong)?);
                    metadata_fields.push(field);
                }
                Origin::Generated(_) => {}
            }
        }
        let json = Arc::new(Schema::new(fields.clone()));
        fields.extend(metadata_fields);
        let records = Arc::new(Schema::new(fields));

        // The table's columns are a projection of the records; so are event time and watermark.
        let qualified = DFSchema::try_from_qualified_schema(RECORDS, &records).map_err(|e| self.error(at, e))?;
        let state = self.state();
        let mut expressions = Vec::new();
        let mut event_time = None;
        for column in &table.columns {
            let expression = match &column.origin {
                Origin::Generated(sql) => {
                    let sql = ExprWithAlias { expr: (**sql).clone(), alias: None };
                    let data_type = self.field(column)?.data_type().clone();
                    let expression = state.create_logical_expr_from_sql_expr(sql, &qualified);
                    let cast = expression.and_then(|e| e.cast_to(&data_type, &qualified));
                    cast.map_err(|e| self.error(column.at, e))?
                }
                _ => Expr::Column(ColumnName::new(Some(RECORDS), column.name.as_str())),
            };
            if column.name == watermark.column {
                if column.nullable {
                    return Err(self.file.error(
                        watermark.at,
                        format!("`{}` must be NOT NULL: every record has an event time", column.name),
                    ));
                }
                event_time = Some(expression.clone());
            }
            expressions.push(expression.alias(column.name.as_str()));
        }
        let Some(event_time) = event_time else {
            return Err(self.file.error(watermark.at, format!("the table has no column `{}`", watermark.column)));
        };
        let sql = ExprWithAlias { expr: (*watermark.expression).clone(), alias: None };
        let after =
            state.create_logical_expr_from_sql_expr(sql, &qualified).map_err(|e| self.error(watermark.at, e))?;
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        for (expression, name) in [(event_time, EVENT_TIME), (after, WATERMARK)] {
            let cast = expression.cast_to(&time, &qualified).map_err(|e| self.error(watermark.at, e))?;
            expressions.push(cast.alias(name));
        }
        let compiled = scan(RECORDS, &records)
            .and_then(|scan| LogicalPlanBuilder::from(scan).project(expressions)?.build())
            .and_then(|plan| {
                refuse::check(&plan)?;
                compile(&plan, &state, &HashMap::from([(RECORDS.to_string(), 0)]))
            });
        let columns = compiled.map_err(|e| self.error(watermark.at, e))?;

        let mut shown: Vec<Field> = columns.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        for (field, column) in shown.iter_mut().zip(&table.columns) {
            // NOT NULL of the declaration holds; what the expression says may be less sure.
            *field = field.clone().with_nullable(column.nullable);
        }
        // Before the first record of a partition there is no watermark.
        let last = shown.len() - 1;
        shown[last] = shown[last].clone().with_nullable(true);
        let schema = Arc::new(Schema::new(shown));
        self.source = Some(Source::new(topic, json, metadata, records, columns, schema.clone()));
        self.readable_step(&table.name, StepKind::Source, schema, at)
    }

    fn field(&self, column: &Column) -> Result<Field, SqlError> {
        let sql = format!("CAST(NULL AS {})", column.data_type);
        let empty = DFSchema::empty();
        let data_type = self.state().create_logical_expr(&sql, &empty).and_then(|e| e.get_type(&empty));
        let data_type = data_type.map_err(|e| self.error(column.at, e))?;
        Ok(Field::new(&column.name, data_type, column.nullable))
    }

    fn readable_step(&mut self, name: &str, kind: StepKind, schema: SchemaRef, at: Location) -> Result<(), SqlError> {
        let mut names = HashSet::new();
        if let Some(twice) = schema.fields().iter().find(|f| !names.insert(f.name().as_str())) {
            return Err(self
                .file
                .error(at, format!("`{name}` has two columns `{}`: name one of them with AS", twice.name())));
        }
        let registered = self.context.register_table(quoted(name), Arc::new(EmptyTable::new(schema)));
        registered.map_err(|e| self.error(at, e))?;
        self.readable.insert(name.to_string(), self.steps.len());
        self.steps.push(Step { name: name.to_string(), kind });
        Ok(())
    }

    /// The plan of a query, checked, with types coerced, not optimized.
    async fn query(&mut self, query: Box<Query>, at: Location) -> Result<LogicalPlan, SqlError> {
        let state = self.state();
        let statement = DfStatement::Statement(Box::new(Statement::Query(query)));
        let plan = state.statement_to_plan(statement).await;
        let plan = plan.and_then(|plan| {
            refuse::check(&plan)?;
            state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})
        });
        let plan = plan.map_err(|e| self.error(at, e))?;
        let mut read = Vec::new();
        let _ = plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                read.push(scan.table_name.table().to_string());
            }
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        });
        for name in read {
            self.unused.remove(&name);
        }
        Ok(plan)
    }

    async fn view(&mut self, name: String, query: Box<Query>, at: Location) -> Result<(), SqlError> {
        self.check_name(&name, at)?;
        let plan = self.query(query, at).await?;
        let kind = self.view_kind(&plan).map_err(|e| self.error(at, e))?;
        let schema = match &kind {
            StepKind::View(node) | StepKind::Window { rest: node, .. } => node.schema(),
            StepKind::Source | StepKind::Sink { .. } => Arc::new(Schema::empty()),
        };
        self.unused.insert(name.clone(), (at, "read"));
        self.readable_step(&name, kind, schema, at)
    }

    fn view_kind(&self, plan: &LogicalPlan) -> DfResult<StepKind> {
        let state = self.state();
        match find_aggregate(plan) {
            Some(aggregate) => self.window(plan, aggregate, &state),
            None => {
                refuse::check_no_tumble(plan)?;
                let carried = carry(plan)?;
                Ok(StepKind::View(compile(&carried, &state, &self.readable)?))
            }
        }
    }

    fn window(&self, plan: &LogicalPlan, aggregate: &LogicalAggregate, state: &SessionState) -> DfResult<StepKind> {
        let of = aggregate.input.schema();
        let mut window = None;
        let mut before: Vec<Expr> = Vec::new();
        for (number, expression) in aggregate.group_expr.iter().enumerate() {
            match tumble_width(expression)? {
                Some(_) if window.is_some() => return plan_err!("GROUP BY has two tumble(…): a window has one"),
                Some(width_ns) => window = Some((number, width_ns)),
                None if matches!(expression, Expr::GroupingSet(_)) => {
                    return plan_err!(
                        "ROLLUP, CUBE and GROUPING SETS are not supported: count in one grouping, and sum in the report"
                    );
                }
                None => before.push(expression.clone().alias(format!("__key{}", before.len()))),
            }
        }
        let Some((window_column, width_ns)) = window else {
            return plan_err!(
                "an aggregate without a window never ends: GROUP BY tumble(INTERVAL '1 minute') AS window"
            );
        };
        let keys = before.len();
        let mut functions = Vec::new();
        for (number, expression) in aggregate.aggr_expr.iter().enumerate() {
            let Expr::AggregateFunction(call) = expression.clone().unalias() else {
                return plan_err!("{expression} is not an aggregate");
            };
            let name = call.func.name().to_string();
            let params = call.params;
            if !refuse::AGGREGATES.contains(&name.as_str()) {
                return plan_err!("{name}() is not supported in a window: there are {}", refuse::AGGREGATES.join(", "));
            }
            if params.distinct && name != "count" {
                return plan_err!("{name}(DISTINCT …) is not supported: only count(DISTINCT …) is");
            }
            if !params.order_by.is_empty() || params.null_treatment.is_some() {
                return plan_err!("{name}() takes no ORDER BY and no NULLS clause here");
            }
            let first = before.len();
            for (i, argument) in params.args.iter().enumerate() {
                before.push(argument.clone().alias(format!("__argument{number}_{i}")));
            }
            let arguments: Vec<usize> = (first..before.len()).collect();
            let filter = params.filter.map(|filter| {
                before.push(filter.alias(format!("__filter{number}")));
                before.len() - 1
            });
            functions.push((call.func, params.distinct, arguments, filter));
        }
        for hidden in HIDDEN {
            match of.qualified_field_with_unqualified_name(hidden) {
                Ok((qualifier, _)) => before.push(Expr::Column(ColumnName::new(qualifier.cloned(), hidden))),
                Err(_) => {
                    return plan_err!(
                        "a window over what came out of a window is not supported: sum its rows in the report"
                    );
                }
            }
        }
        let input = LogicalPlan::Projection(Projection::try_new(before, Arc::new(carry(&aggregate.input)?))?);
        refuse::check_no_tumble(&input)?;
        let input = compile(&input, state, &self.readable)?;
        let input_schema = input.schema();
        let mut aggregates = Vec::new();
        for (number, (function, distinct, arguments, filter)) in functions.into_iter().enumerate() {
            let expressions: DfResult<Vec<_>> = arguments
                .iter()
                .map(|i| {
                    Ok(Arc::new(datafusion::physical_expr::expressions::Column::new(input_schema.field(*i).name(), *i))
                        as _)
                })
                .collect();
            let built = AggregateExprBuilder::new(function, expressions?)
                .schema(input_schema.clone())
                .alias(format!("__aggregate{number}"))
                .with_distinct(distinct)
                .build()?;
            aggregates.push(Aggregate { function: Arc::new(built), arguments, filter });
        }
        // What comes out of the window is a table to the rest of the plan.
        let fields: Vec<Field> = aggregate
            .schema
            .fields()
            .iter()
            .enumerate()
            .map(|(i, field)| Field::new(format!("c{i}"), field.data_type().clone(), true))
            .collect();
        let output = Arc::new(Schema::new(fields));
        let rest = plan.clone().transform_down(|node| match node {
            LogicalPlan::Aggregate(aggregate) => Ok(Transformed::yes(rows_of(&aggregate, &output)?)),
            other => Ok(Transformed::no(other)),
        })?;
        let rest = rest.data.recompute_schema()?;
        refuse::check_no_tumble(&rest)?;
        let rest = compile(&rest, state, &HashMap::from([(ROWS.to_string(), 0)]))?;
        let window = Window::new(input, keys, window_column, aggregates, output, width_ns);
        Ok(StepKind::Window { window: Box::new(window), rest })
    }

    async fn insert(&mut self, into: String, query: Box<Query>, at: Location) -> Result<(), SqlError> {
        let Some((topic, schema, _)) = self.sinks.get(&into).cloned() else {
            let names: Vec<&str> = self.sinks.keys().map(String::as_str).collect();
            return Err(self.file.error(at, format!("no sink `{into}`: there is {}", names.join(", "))));
        };
        let plan = self.query(query, at).await?;
        self.unused.remove(&into);
        if find_aggregate(&plan).is_some() {
            return Err(self
                .file
                .error(at, "an aggregate inside INSERT INTO: put it into a view, and insert from that"));
        }
        let rows = self.sink_rows(&plan, &schema, &into).map_err(|e| self.error(at, e))?;
        self.steps.push(Step { name: into, kind: StepKind::Sink { topic, rows } });
        Ok(())
    }

    /// The query's columns, in their order, as the sink's.
    fn sink_rows(&self, plan: &LogicalPlan, schema: &SchemaRef, into: &str) -> DfResult<Node> {
        refuse::check_no_tumble(plan)?;
        let visible: Vec<_> =
            plan.schema().iter().filter(|(_, field)| !HIDDEN.contains(&field.name().as_str())).collect();
        if visible.len() != schema.fields().len() {
            return plan_err!("the SELECT has {} columns and `{into}` has {}", visible.len(), schema.fields().len());
        }
        let columns: DfResult<Vec<Expr>> = visible
            .into_iter()
            .zip(schema.fields())
            .map(|((qualifier, field), wanted)| {
                let column = Expr::Column(ColumnName::new(qualifier.cloned(), field.name()));
                Ok(column.cast_to(wanted.data_type(), plan.schema())?.alias(wanted.name()))
            })
            .collect();
        let plan = LogicalPlan::Projection(Projection::try_new(columns?, Arc::new(plan.clone()))?);
        compile(&plan, &self.state(), &self.readable)
    }

    fn finish(self) -> Result<Program, SqlError> {
        let start = Location { line: 1, column: 1 };
        if let Some((name, (at, verb))) = self.unused.iter().next() {
            return Err(self.file.error(*at, format!("`{name}` is never {verb}")));
        }
        let Some(source) = self.source else {
            return Err(self.file.error(start, "no source: CREATE TABLE … WITH (type = 'source', …)"));
        };
        Ok(Program { file: self.file.name.clone(), source, steps: self.steps })
    }
}

/// Names under which inner tables are planned. Tables and views of a file cannot begin like this.
const INNER: &str = "__";
const RECORDS: &str = "__records";
const ROWS: &str = "__rows";

fn quoted(name: &str) -> datafusion::common::TableReference {
    datafusion::common::TableReference::bare(name.to_string())
}

fn scan(name: &str, schema: &SchemaRef) -> DfResult<LogicalPlan> {
    let table = provider_as_source(Arc::new(EmptyTable::new(schema.clone())));
    LogicalPlanBuilder::scan(quoted(name), table, None)?.build()
}

/// The one aggregate that a view is made around, if there is one.
fn find_aggregate(plan: &LogicalPlan) -> Option<&LogicalAggregate> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => Some(aggregate),
        LogicalPlan::Projection(projection) => find_aggregate(&projection.input),
        LogicalPlan::Filter(filter) => find_aggregate(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => find_aggregate(&alias.input),
        _ => None,
    }
}

/// A table of a window's rows, with the names that the aggregate's columns had.
fn rows_of(aggregate: &LogicalAggregate, output: &SchemaRef) -> DfResult<LogicalPlan> {
    let names: Vec<Expr> = aggregate
        .schema
        .iter()
        .enumerate()
        .map(|(i, (qualifier, field))| {
            let column = Expr::Column(ColumnName::new(Some(quoted(ROWS)), format!("c{i}")));
            column.alias_qualified(qualifier.cloned(), field.name())
        })
        .collect();
    Ok(LogicalPlan::Projection(Projection::try_new(names, Arc::new(scan(ROWS, output)?))?))
}

/// Width in nanoseconds of `tumble(INTERVAL …)`, if the expression is one.
fn tumble_width(expression: &Expr) -> DfResult<Option<i64>> {
    let Expr::ScalarFunction(call) = expression.clone().unalias() else { return Ok(None) };
    if call.func.name() != "tumble" {
        return Ok(None);
    }
    let width = match call.args.first() {
        Some(Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _)) if interval.months == 0 => {
            i64::from(interval.days)
                .checked_mul(86_400_000_000_000)
                .and_then(|days| days.checked_add(interval.nanoseconds))
        }
        Some(Expr::Literal(ScalarValue::IntervalDayTime(Some(interval)), _)) => {
            Some(i64::from(interval.days) * 86_400_000_000_000 + i64::from(interval.milliseconds) * 1_000_000)
        }
        _ => None,
    };
    match width {
        Some(width) if width > 0 => Ok(Some(width)),
        _ => plan_err!("tumble takes a fixed interval above zero, e.g. INTERVAL '1 minute'"),
    }
}

/// Lets the hidden columns through every projection, as far as what is below has them.
fn carry(plan: &LogicalPlan) -> DfResult<LogicalPlan> {
    Ok(match plan {
        LogicalPlan::Projection(projection) => {
            let input = carry(&projection.input)?;
            let mut expressions = projection.expr.clone();
            for hidden in HIDDEN {
                let has = projection.schema.fields().iter().any(|field| field.name() == hidden);
                if let (false, Ok((qualifier, _))) = (has, input.schema().qualified_field_with_unqualified_name(hidden))
                {
                    expressions.push(Expr::Column(ColumnName::new(qualifier.cloned(), hidden)));
                }
            }
            LogicalPlan::Projection(Projection::try_new(expressions, Arc::new(input))?)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(carry(&alias.input)?), alias.alias.clone())?)
        }
        LogicalPlan::Filter(filter) => {
            LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(carry(&filter.input)?))?)
        }
        LogicalPlan::Union(union) => {
            let inputs: DfResult<Vec<Arc<LogicalPlan>>> =
                union.inputs.iter().map(|i| Ok(Arc::new(carry(i)?))).collect();
            LogicalPlan::Union(Union::try_new_with_loose_types(inputs?)?)
        }
        other => other.clone(),
    })
}

/// All functions that a pipeline may call, without claims: for a check of a file.
pub fn functions_for_check() -> Vec<ScalarUDF> {
    functions::all(functions::SharedClaims::default())
}
