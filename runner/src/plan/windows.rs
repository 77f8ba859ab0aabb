//! `GROUP BY tumble(…)`: the plan below the aggregate makes the window's input, the one above it takes its rows.

use super::{HIDDEN, Planner, ROWS, StepKind, carry, quoted, scan};
use crate::node::compile;
use crate::refuse;
use crate::window::{Aggregate, Window};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column as ColumnName, Result as DfResult, ScalarValue, plan_err};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Aggregate as LogicalAggregate, Expr, ExprSchemable, LogicalPlan, Projection};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use std::collections::HashMap;
use std::sync::Arc;

impl Planner<'_> {
    /// A view that is made around one aggregate.
    pub(super) fn window(
        &self,
        plan: &LogicalPlan,
        aggregate: &LogicalAggregate,
        state: &SessionState,
    ) -> DfResult<StepKind> {
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
                let mut argument = argument.clone();
                if name == "sum" && argument.get_type(of)?.is_integer() {
                    // DataFusion's sum of integers wraps around. This one cannot, and the window refuses a result
                    // that its column cannot hold.
                    argument = argument.cast_to(&DataType::Decimal128(20, 0), of)?;
                }
                before.push(argument.alias(format!("__argument{number}_{i}")));
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
        let window = Window::new(input, keys, window_column, aggregates, output, width_ns)?;
        Ok(StepKind::Window { window: Box::new(window), rest })
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
