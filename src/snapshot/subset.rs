//! A part of a shape's rows, read anew: contract 1.14.

use super::{OpenSnapshot, SnapshotError, copy_sql, open_with};
use crate::domain::ShapeDefinition;
use crate::postgres::SqlClient;

/// Which rows of a shape, and in which order. The texts are SQL that this process has printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubsetQuery {
    pub condition: Option<String>,
    /// A list of columns with their directions.
    pub order_by: Option<String>,
    pub limit: Option<i64>,
    pub offset: Option<i64>,
}

/// As [`open_with_extra`](super::open_with_extra), with fewer rows.
///
/// # Errors
/// See [`SnapshotError`].
pub async fn open_subset(
    client: SqlClient,
    definition: &ShapeDefinition,
    extra: &[String],
    query: &SubsetQuery,
) -> Result<OpenSnapshot, SnapshotError> {
    let columns = definition.columns.len() + extra.len();
    open_with(client, columns, subset_sql(definition, extra, query)).await
}

/// The shape's own condition stands in parentheses: a row of the subset is always one of the shape.
fn subset_sql(definition: &ShapeDefinition, extra: &[String], query: &SubsetQuery) -> String {
    let shape = copy_sql(definition, extra);
    let mut sql = shape.strip_suffix(") TO STDOUT").unwrap_or(&shape).to_owned();
    if let Some(condition) = &query.condition {
        sql.push_str(if definition.where_sql.is_some() { " AND " } else { " WHERE " });
        sql.push_str(&format!("({condition}\n)"));
    }
    if let Some(order_by) = query.order_by.as_ref().filter(|order_by| !order_by.is_empty()) {
        sql.push_str(&format!(" ORDER BY {order_by}"));
    }
    for (word, number) in [("LIMIT", query.limit), ("OFFSET", query.offset)] {
        if let Some(number) = number {
            sql.push_str(&format!(" {word} {number}"));
        }
    }
    sql.push_str(") TO STDOUT");
    sql
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{LogMode, Oid, Relation, RelationName, Replica};

    /// U7: without the parentheses, rows would come that are not in the subset.
    #[test]
    fn both_conditions_are_enclosed() {
        let mut definition = ShapeDefinition {
            relation: Arc::new(Relation {
                oid: Oid(1),
                name: RelationName { schema: "public".to_owned(), table: "t".to_owned() },
                columns: Vec::new(),
                partitioned: false,
                storage: None,
            }),
            where_sql: None,
            columns: vec!["id".to_owned()],
            columns_named: false,
            replica: Replica::Default,
            log: LogMode::ChangesOnly,
            dependencies: Vec::new(),
            selects: Vec::new(),
        };
        let query = SubsetQuery {
            condition: Some("c OR d".to_owned()),
            order_by: Some("\"id\" DESC".to_owned()),
            limit: Some(5),
            offset: Some(10),
        };
        let table = "COPY (SELECT \"id\" FROM \"public\".\"t\"";
        let end = "(c OR d\n) ORDER BY \"id\" DESC LIMIT 5 OFFSET 10) TO STDOUT";
        assert_eq!(subset_sql(&definition, &[], &query), format!("{table} WHERE {end}"));
        definition.where_sql = Some("a OR b".to_owned());
        assert_eq!(subset_sql(&definition, &[], &query), format!("{table} WHERE (a OR b\n) AND {end}"));
        let all = SubsetQuery::default();
        assert_eq!(subset_sql(&definition, &[], &all), format!("{table} WHERE (a OR b\n)) TO STDOUT"));
    }
}
