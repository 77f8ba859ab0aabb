//! From the statements of a file to the steps that a batch goes through.

mod claims;
mod tables;
mod windows;

pub use claims::CLAIMS;

use crate::node::{Node, compile};
use crate::source::Source;
use crate::window::Window;
use crate::{functions, refuse};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{Column as ColumnName, DataFusionError, Result as DfResult, plan_err};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{
    Aggregate as LogicalAggregate, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Projection, ScalarUDF,
    SubqueryAlias, Union,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement};
use datafusion::sql::sqlparser::tokenizer::Location;
use futures::future::BoxFuture;
use pipeline_files::SqlError;
use pipeline_files::parse::{File, Kind, parse};
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
    /// Whether it asks for claims.
    pub claims: bool,
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
    /// Whether `claim_click` was called already.
    claims: bool,
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
            claims: false,
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
        // The engine's own columns are nobody's business.
        let shown = |name: &str| !HIDDEN.iter().any(|hidden| name.contains(hidden));
        let reason = reason.split(", ").filter(|part| shown(part)).collect::<Vec<_>>().join(", ");
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
        self.cut_at_claims(plan).map_err(|e| self.error(at, e))
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
        Ok(Program { file: self.file.name.clone(), source, steps: self.steps, claims: self.claims })
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
