//! `claim_click` is asked once for every record that reaches it, in log order: the projection that asks is a step of its
//! own, so that no optimizer moves a filter below it, asks it twice, or asks it for some of the rows only.

use super::{HIDDEN, Planner, Step, StepKind, carry, quoted, scan};
use crate::node::compile;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as ColumnName, Result as DfResult, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};
use std::sync::Arc;

/// The step that asks.
pub const CLAIMS: &str = "__claims";

impl Planner<'_> {
    /// The plan, reading what the step that asks made of it.
    pub(super) fn cut_at_claims(&mut self, plan: LogicalPlan) -> DfResult<LogicalPlan> {
        match calls(&plan)? {
            0 => return Ok(plan),
            1 if !self.claims => self.claims = true,
            _ => {
                return plan_err!(
                    "a second claim_click(…) in this file: whichever asks first would win, and that would depend on \
                     how records are batched; ask once, in a view that both read"
                );
            }
        }
        let rest = plan.transform_down(|node| match node {
            LogicalPlan::Projection(projection) if projection.expr.iter().any(is_call) => {
                Ok(Transformed::new(self.claims_step(projection)?, true, TreeNodeRecursion::Stop))
            }
            other => Ok(Transformed::no(other)),
        })?;
        rest.data.recompute_schema()
    }

    fn claims_step(&mut self, projection: Projection) -> DfResult<LogicalPlan> {
        let shown = projection.schema.clone();
        let asking = carry(&LogicalPlan::Projection(projection))?;
        // Columns of two tables may have one name; the hidden ones keep theirs.
        let inner = |number: usize, name: &str| match HIDDEN.contains(&name) {
            true => name.to_string(),
            false => format!("c{number}"),
        };
        let columns = asking.schema().iter().enumerate().map(|(number, (qualifier, field))| {
            let column = Expr::Column(ColumnName::new(qualifier.cloned(), field.name()));
            column.alias(inner(number, field.name()))
        });
        let columns = columns.collect();
        let renamed = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(asking))?);
        let node = compile(&renamed, &self.state(), &self.readable)?;
        let name = CLAIMS.to_string();
        let rows = scan(&name, &node.schema())?;
        self.readable.insert(name.clone(), self.steps.len());
        self.steps.push(Step { name: name.clone(), kind: StepKind::View(node) });
        let columns = shown.iter().enumerate().map(|(number, (qualifier, field))| {
            let column = Expr::Column(ColumnName::new(Some(quoted(&name)), inner(number, field.name())));
            column.alias_qualified(qualifier.cloned(), field.name())
        });
        let columns = columns.collect();
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(rows))?))
    }
}

fn is_call(expression: &Expr) -> bool {
    matches!(expression.clone().unalias(), Expr::ScalarFunction(call) if call.func.name() == "claim_click")
}

/// How many calls there are; one that is not a column of a SELECT is refused.
fn calls(plan: &LogicalPlan) -> DfResult<usize> {
    let mut calls = 0;
    plan.apply_with_subqueries(|node| {
        let is_projection = matches!(node, LogicalPlan::Projection(_));
        node.apply_expressions(|expression| {
            let mut inside = 0;
            expression.apply(|e| {
                inside += usize::from(matches!(e, Expr::ScalarFunction(call) if call.func.name() == "claim_click"));
                Ok(TreeNodeRecursion::Continue)
            })?;
            if inside > 0 && !(is_projection && inside == 1 && is_call(expression)) {
                return plan_err!(
                    "claim_click(…) must be a column of a SELECT, alone: inside another expression it would be asked \
                     for some records only; name it with AS, and use the name"
                );
            }
            calls += inside;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(calls)
}
