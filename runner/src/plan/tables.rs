//! `CREATE TABLE`: a topic as source or as sink.

use super::{EVENT_TIME, HIDDEN, Planner, RECORDS, StepKind, WATERMARK, scan};
use crate::node::compile;
use crate::refuse;
use crate::source::{Metadata, Source};
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::{Column as ColumnName, DFSchema};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::ExprWithAlias;
use datafusion::sql::sqlparser::tokenizer::Location;
use pipeline_files::SqlError;
use pipeline_files::parse::{Column, Origin, Table};
use std::collections::HashMap;
use std::sync::Arc;

impl Planner<'_> {
    pub(super) fn table(&mut self, table: Table, at: Location) -> Result<(), SqlError> {
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
            if !column.nullable {
                return Err(self.file.error(column.at, "a sink's column cannot be NOT NULL: nothing would check it"));
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
        if after.nullable(&qualified).map_err(|e| self.error(watermark.at, e))? {
            let reason = "the expression of WATERMARK FOR can be NULL: make it of columns that are NOT NULL";
            return Err(self.file.error(watermark.at, reason));
        }
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
}
