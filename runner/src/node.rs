//! A view is a function from a batch of records to a batch of rows: DataFusion's physical expressions, applied to
//! whole columns.

use datafusion::arrow::array::{AsArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{DFSchema, Result, not_impl_err, plan_err};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A tree of operators over the outputs of earlier steps.
#[derive(Debug)]
pub enum Node {
    /// Columns of an earlier step's output.
    Input {
        step: usize,
        columns: Vec<usize>,
        schema: SchemaRef,
    },
    Filter {
        input: Box<Node>,
        predicate: Arc<dyn PhysicalExpr>,
    },
    Project {
        input: Box<Node>,
        expressions: Vec<Arc<dyn PhysicalExpr>>,
        schema: SchemaRef,
    },
    Union {
        inputs: Vec<Node>,
        schema: SchemaRef,
    },
    Empty {
        schema: SchemaRef,
    },
}

impl Node {
    pub fn schema(&self) -> SchemaRef {
        match self {
            Node::Input { schema, .. }
            | Node::Project { schema, .. }
            | Node::Union { schema, .. }
            | Node::Empty { schema } => schema.clone(),
            Node::Filter { input, .. } => input.schema(),
        }
    }

    /// Adds the steps that it reads.
    pub fn reads(&self, steps: &mut BTreeSet<usize>) {
        match self {
            Node::Input { step, .. } => drop(steps.insert(*step)),
            Node::Filter { input, .. } | Node::Project { input, .. } => input.reads(steps),
            Node::Union { inputs, .. } => inputs.iter().for_each(|input| input.reads(steps)),
            Node::Empty { .. } => {}
        }
    }

    /// The rows of this node for the current outputs of the earlier steps, in their order.
    pub fn evaluate(&self, outputs: &[RecordBatch]) -> Result<RecordBatch> {
        match self {
            Node::Input { step, columns, .. } => Ok(outputs[*step].project(columns)?),
            Node::Filter { input, predicate } => {
                let batch = input.evaluate(outputs)?;
                let kept = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                Ok(filter_record_batch(&batch, kept.as_boolean())?)
            }
            Node::Project { input, expressions, schema } => {
                let batch = input.evaluate(outputs)?;
                let rows = batch.num_rows();
                let columns: Result<Vec<_>> =
                    expressions.iter().map(|e| e.evaluate(&batch)?.into_array(rows)).collect();
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                Ok(RecordBatch::try_new_with_options(schema.clone(), columns?, &options)?)
            }
            Node::Union { inputs, schema } => {
                let batches: Result<Vec<_>> = inputs
                    .iter()
                    .map(|input| {
                        // The branches may name their columns differently; the first one's names hold.
                        let batch = input.evaluate(outputs)?;
                        Ok(RecordBatch::try_new(schema.clone(), batch.columns().to_vec())?)
                    })
                    .collect();
                Ok(concat_batches(schema, &batches?)?)
            }
            Node::Empty { schema } => Ok(RecordBatch::new_empty(schema.clone())),
        }
    }
}

/// Optimizes a plan of filters, projections and unions over the tables in `steps`, and turns it into a [`Node`].
pub fn compile(plan: &LogicalPlan, state: &SessionState, steps: &HashMap<String, usize>) -> Result<Node> {
    let optimized = state.optimize(plan)?;
    lower(&optimized, state, steps)
}

fn lower(plan: &LogicalPlan, state: &SessionState, steps: &HashMap<String, usize>) -> Result<Node> {
    let schema: SchemaRef = Arc::new(plan.schema().as_arrow().clone());
    match plan {
        LogicalPlan::TableScan(scan) => {
            let Some(step) = steps.get(scan.table_name.table()) else {
                return plan_err!("{} cannot be read here", scan.table_name);
            };
            if !scan.filters.is_empty() || scan.fetch.is_some() {
                return not_impl_err!("a filter inside a table scan");
            }
            let columns = scan.projection.clone().unwrap_or_else(|| (0..scan.source.schema().fields().len()).collect());
            Ok(Node::Input { step: *step, columns, schema })
        }
        LogicalPlan::SubqueryAlias(alias) => lower(&alias.input, state, steps),
        LogicalPlan::Filter(filter) => {
            let predicate = physical(&filter.predicate, filter.input.schema(), state)?;
            Ok(Node::Filter { input: Box::new(lower(&filter.input, state, steps)?), predicate })
        }
        LogicalPlan::Projection(projection) => {
            let of = projection.input.schema();
            let expressions: Result<Vec<_>> = projection.expr.iter().map(|e| physical(e, of, state)).collect();
            let input = Box::new(lower(&projection.input, state, steps)?);
            Ok(Node::Project { input, expressions: expressions?, schema })
        }
        LogicalPlan::Union(union) => {
            let inputs: Result<Vec<_>> = union.inputs.iter().map(|input| lower(input, state, steps)).collect();
            Ok(Node::Union { inputs: inputs?, schema })
        }
        LogicalPlan::EmptyRelation(empty) if !empty.produce_one_row => Ok(Node::Empty { schema }),
        LogicalPlan::EmptyRelation(_) => plan_err!("a SELECT without FROM: a stream has no single row"),
        other => plan_err!("{}", crate::refuse::reason(other).unwrap_or("this construct is not supported in a stream")),
    }
}

/// The physical form of an expression over a schema.
pub fn physical(expr: &Expr, schema: &DFSchema, state: &SessionState) -> Result<Arc<dyn PhysicalExpr>> {
    create_physical_expr(expr, schema, state.execution_props(), &PhysicalPlanningContext::default())
}
