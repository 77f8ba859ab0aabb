//! What a pipeline cannot do, and what to use instead. Nothing is accepted and then ignored.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

/// Aggregates that a tumbling window can hold.
pub const AGGREGATES: [&str; 5] = ["count", "sum", "min", "max", "avg"];

/// Functions that are volatile for the planner's sake only: their answers do not depend on when they are asked.
const REPLAYABLE: [&str; 2] = ["claim_click", "tumble"];

/// Why this kind of plan is refused, if it is.
pub fn reason(plan: &LogicalPlan) -> Option<&'static str> {
    Some(match plan {
        LogicalPlan::Join(_) => "a join is not supported: put both into the record, or join in the report",
        LogicalPlan::Sort(_) => "ORDER BY is not supported: a stream has no end to sort at; sort in the report",
        LogicalPlan::Limit(_) => "LIMIT is not supported: a stream has no end; limit in the report",
        LogicalPlan::Window(_) => "OVER (…) is not supported: count in a tumbling window, GROUP BY tumble(…)",
        LogicalPlan::Distinct(_) => "DISTINCT is not supported: use claim_click(…), or count(DISTINCT …) in a window",
        LogicalPlan::Values(_) => "VALUES is not supported: rows come from a topic",
        LogicalPlan::Unnest(_) => "unnest is not supported: a record is one row",
        LogicalPlan::RecursiveQuery(_) => "WITH RECURSIVE is not supported",
        LogicalPlan::Subquery(_) => "a subquery in an expression is not supported: use a view",
        _ => return None,
    })
}

/// Refuses what would fail or, worse, give other numbers on a replay.
pub fn check(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let Some(reason) = reason(node) {
            return plan_err!("{reason}");
        }
        node.apply_expressions(|expression| {
            expression.apply(|e| {
                match e {
                    Expr::ScalarFunction(call) => {
                        let volatile = call.func.signature().volatility != Volatility::Immutable;
                        if volatile && !REPLAYABLE.contains(&call.func.name()) {
                            return plan_err!(
                                "{}() gives other answers on a replay, and counts must not depend on when they are \
                                 made: use the record's own times (\"timestamp\", appended_at)",
                                call.func.name()
                            );
                        }
                    }
                    Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                        return plan_err!("a subquery in an expression is not supported: use a view");
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

/// Refuses `tumble` outside GROUP BY.
pub fn check_no_tumble(plan: &LogicalPlan) -> Result<()> {
    plan.apply(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|e| match e {
                Expr::ScalarFunction(call) if call.func.name() == "tumble" => {
                    plan_err!("tumble(…) stands in GROUP BY only, once: SELECT tumble(INTERVAL '1 minute') AS window, … GROUP BY window, …")
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}
