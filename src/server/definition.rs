//! From the parameters that name a shape to its definition: contract 1.7 and 1.8.

use std::sync::Arc;

use crate::domain::{
    Handle, IdentifierError, Relation, RelationName, ShapeDefinition, parse_column_list, parse_relation_name,
};
use crate::filter::subquery::{self, Clause, ClauseError, Relations, TableTexts};
use crate::filter::{Delegated, Predicate, TextOrder, Texts, check_params};
use crate::runtime::evaluation::CheckError;
use crate::runtime::handle::{InspectError, LiveShape, Service};

use super::error::Failure;
use super::params::AskedShape;

/// Resolves what was asked against the catalog. While Postgres is away, a table is as the shape with
/// this handle knows it. So it is for live requests in any case: after each commit all of them come back
/// at once, and a table that changes ends the shapes over it.
///
/// # Errors
/// The first rule that the parameters break; [`Failure::Unreachable`] where the table cannot be
/// looked at.
pub(super) async fn resolve(
    service: &Service,
    asked: &AskedShape,
    handle: Option<Handle>,
    live: bool,
) -> Result<ShapeDefinition, Failure> {
    let name = table_name(asked)?;
    let known: Option<Arc<LiveShape>> =
        handle.and_then(|handle| service.shape(handle)).filter(|s| s.definition.relation.name == name);
    if let Some(shape) = known.as_ref().filter(|_| live) {
        let inner = inner_relations(&shape.definition);
        return checked(service, asked, &shape.definition.relation, &inner).await;
    }
    let relation = match (Box::pin(service.inspect(name.clone())).await, &known) {
        (Ok(relation), _) => existing(relation, &name)?,
        (Err(InspectError::Unreachable), Some(shape)) => {
            let inner = inner_relations(&shape.definition);
            return checked(service, asked, &shape.definition.relation, &inner).await;
        }
        (Err(InspectError::Unreachable), None) => return Err(Failure::Unreachable),
    };
    let inner = match asked.where_clause.as_deref().filter(|text| subquery::has_subquery(text)) {
        Some(text) => Box::pin(inspect_inner(service, text)).await?,
        None => Relations::new(),
    };
    checked(service, asked, &relation, &inner).await
}

/// The tables of the inner queries of a clause. One that does not exist is left out.
async fn inspect_inner(service: &Service, text: &str) -> Result<Relations, Failure> {
    let mut inner = Relations::new();
    for name in subquery::inner_tables(text).map_err(refused)? {
        if inner.contains_key(&name) {
            continue;
        }
        match service.inspect(name.clone()).await {
            Ok(Some(relation)) if !relation.columns.is_empty() => {
                check_partitioned(&relation)?;
                inner.insert(name, (*relation).clone());
            }
            Ok(_) => {}
            Err(InspectError::Unreachable) => return Err(Failure::Unreachable),
        }
    }
    Ok(inner)
}

/// The tables of the inner queries of a shape, as it knows them.
fn inner_relations(definition: &ShapeDefinition) -> Relations {
    let mut inner = Relations::new();
    for dependency in &definition.dependencies {
        inner.insert(dependency.relation.name.clone(), (*dependency.relation).clone());
        inner.extend(inner_relations(dependency));
    }
    inner
}

fn refused(error: ClauseError) -> Failure {
    Failure::field(error.field, error.message)
}

/// The definition, once Postgres takes those parts of its where clause that it is to evaluate. Of a shape
/// that exists they were checked when it was made.
async fn checked(
    service: &Service,
    asked: &AskedShape,
    relation: &Arc<Relation>,
    inner: &Relations,
) -> Result<ShapeDefinition, Failure> {
    let Defined { mut definition, mut parts, compared } = define(asked, relation, inner, &TableTexts::new())?;
    if !compared.is_empty() && service.find(&definition).is_none() {
        let tables = inner.values().chain([&**relation]).filter(|table| compared.contains(&table.name));
        let texts = texts(service, asked, (relation, inner), &tables.collect::<Vec<_>>()).await?;
        if texts.values().any(|texts| *texts != Texts::default()) {
            let other = define(asked, relation, inner, &texts)?;
            (definition, parts) = (other.definition, other.parts);
        }
    }
    let evaluation = service.evaluation();
    if parts.is_empty() || service.find(&definition).is_some() {
        return Ok(definition);
    }
    match Box::pin(evaluation.check(relation, &parts)).await {
        Ok(()) => Ok(definition),
        Err(CheckError::Refused(error)) => Err(Failure::field("where", error.to_string())),
        Err(CheckError::Unreachable) => Err(Failure::Unreachable),
    }
}

/// What the texts of these tables are like. Where nobody has looked lately, a shape that is there says it:
/// it is to be found also while Postgres is away.
async fn texts(
    service: &Service,
    asked: &AskedShape,
    (relation, inner): (&Arc<Relation>, &Relations),
    tables: &[&Relation],
) -> Result<TableTexts, Failure> {
    let evaluation = service.evaluation();
    // Switched off, texts are ordered by bytes, and the snapshot says so.
    let allowed = |texts: Texts| {
        let order = if evaluation.is_enabled() { texts.order } else { TextOrder::Bytes };
        Texts { order, ..texts }
    };
    let known = |table: &&Relation| Some((table.name.clone(), allowed(evaluation.known_texts(table)?)));
    if let Some(known) = tables.iter().map(known).collect() {
        return Ok(known);
    }
    for texts in Texts::OTHERS.map(allowed) {
        let texts = tables.iter().map(|table| (table.name.clone(), texts)).collect();
        let found = define(asked, relation, inner, &texts).ok();
        if found.is_some_and(|defined| service.find(&defined.definition).is_some()) {
            return Ok(texts);
        }
    }
    let mut found = TableTexts::new();
    for table in tables {
        let texts = evaluation.texts(table).await.map_err(|_| Failure::Unreachable)?;
        found.insert(table.name.clone(), allowed(texts));
    }
    Ok(found)
}

fn table_name(asked: &AskedShape) -> Result<RelationName, Failure> {
    let table = asked.table.as_deref().ok_or_else(|| Failure::field("table", "can't be blank"))?;
    parse_relation_name(table).map_err(|error| Failure::field("table", error.to_string()))
}

fn existing(relation: Option<Arc<Relation>>, name: &RelationName) -> Result<Arc<Relation>, Failure> {
    relation.filter(|relation| !relation.columns.is_empty()).ok_or_else(|| {
        let table = name.to_sql();
        Failure::field(
            "table",
            format!(
                "Table {table} does not exist. If the table name contains capitals or special characters \
                 you must quote it."
            ),
        )
    })
}

/// The parts of a where clause that Postgres evaluates.
type Parts = Vec<Arc<Delegated>>;

/// A definition that was understood.
pub(super) struct Defined {
    pub definition: ShapeDefinition,
    parts: Parts,
    /// The tables whose texts it compares.
    compared: Vec<RelationName>,
}

/// The definition over a table that was found, columns first, then the where clause.
///
/// # Errors
/// The first rule that the parameters break.
pub(super) fn define(
    asked: &AskedShape,
    relation: &Arc<Relation>,
    inner: &Relations,
    texts: &TableTexts,
) -> Result<Defined, Failure> {
    let queryable = match asked.queryable_columns.as_deref() {
        None => None,
        Some(list) => Some(queryable_columns(list, relation)?),
    };
    let named = match asked.columns.as_deref() {
        None => queryable,
        Some(list) => Some(selected_columns(list, queryable.as_deref(), relation)?),
    };
    let columns_named = named.is_some();
    let mut columns = match named {
        Some(columns) => columns,
        None => all_columns(relation)?,
    };
    columns.sort_unstable();
    columns.dedup();
    let condition = condition(asked, relation, inner, texts)?;
    let definition = ShapeDefinition {
        where_sql: condition.sql,
        relation: Arc::clone(relation),
        columns,
        columns_named,
        replica: asked.replica,
        log: asked.log,
        dependencies: condition.dependencies,
        selects: Vec::new(),
    };
    let Condition { parts, compared, .. } = condition;
    Ok(Defined { definition, parts, compared })
}

fn check_partitioned(relation: &Relation) -> Result<(), Failure> {
    if relation.partitioned {
        return Err(Failure::field(
            "table",
            "Subqueries on partitioned tables, or in shapes of them, are not supported by this server yet",
        ));
    }
    Ok(())
}

/// A where clause that was understood.
#[derive(Default)]
struct Condition {
    /// In canonical form; none where there is no clause.
    sql: Option<String>,
    dependencies: Vec<ShapeDefinition>,
    parts: Parts,
    /// The tables whose texts it compares.
    compared: Vec<RelationName>,
}

fn condition(
    asked: &AskedShape,
    relation: &Relation,
    inner: &Relations,
    texts: &TableTexts,
) -> Result<Condition, Failure> {
    // Parameters are looked at only where something can use them.
    let Some(text) = asked.where_clause.as_deref() else { return Ok(Condition::default()) };
    let params = check_params(&asked.params).map_err(|error| Failure::field("params", error.to_string()))?;
    if subquery::has_subquery(text) {
        check_partitioned(relation)?;
        let clause = Clause::parse_with(text, &params, relation, inner, texts).map_err(refused)?;
        if asked.compaction {
            let message = "can't be enabled for shapes with subqueries";
            return Err(Failure::field("experimental_compaction", message));
        }
        let (sql, dependencies) = (Some(clause.sql().to_owned()), clause.dependencies().to_vec());
        let compared = clause.compares_texts_of().to_vec();
        return Ok(Condition { sql, dependencies, compared, ..Condition::default() });
    }
    let texts = texts.get(&relation.name).copied().unwrap_or_default();
    let predicate = Predicate::parse_delegating(text, &params, relation, texts)
        .map_err(|error| Failure::field("where", error.to_string()))?;
    Ok(Condition {
        sql: Some(predicate.sql().to_owned()),
        dependencies: Vec::new(),
        parts: predicate.delegated().to_vec(),
        compared: if predicate.by_collation() { vec![relation.name.clone()] } else { Vec::new() },
    })
}

const GENERATED: &str = "The following columns are generated and cannot be included in the shape: ";

fn all_columns(relation: &Relation) -> Result<Vec<String>, Failure> {
    let generated: Vec<&str> = relation
        .columns
        .iter()
        .filter(|column| column.generated)
        .map(|column| column.name.as_str())
        .collect();
    if generated.is_empty() {
        return Ok(relation.columns.iter().map(|column| column.name.clone()).collect());
    }
    let list = generated.join(", ");
    Err(Failure::field(
        "columns",
        format!(
            "{GENERATED}{list}. You can exclude them from the shape by explicitly listing which columns to \
             fetch in the 'columns' query param"
        ),
    ))
}

fn selected_columns(
    list: &str,
    queryable: Option<&[String]>,
    relation: &Relation,
) -> Result<Vec<String>, Failure> {
    let refuse = |message: String| Failure::field("columns", message);
    let columns = parse_column_list(list).map_err(|error: IdentifierError| refuse(error.to_string()))?;
    if let Some(missing) = missing_key_columns(&columns, relation) {
        let message = "The list of columns must include all primary key columns, missing: ";
        return Err(refuse(format!("{message}{missing}")));
    }
    let available = |name: &String| {
        relation.column(name).is_some() && queryable.is_none_or(|queryable| queryable.contains(name))
    };
    if let Some(unknown) = joined(columns.iter().filter(|name| !available(name))) {
        return Err(refuse(format!("The following columns are not found on the table: {unknown}")));
    }
    let generated = |name: &&String| relation.column(name).is_some_and(|column| column.generated);
    if let Some(generated) = joined(columns.iter().filter(generated)) {
        return Err(refuse(format!("{GENERATED}{generated}")));
    }
    if columns.is_empty() {
        return Err(refuse("The list of columns must not be empty".to_owned()));
    }
    Ok(columns)
}

fn queryable_columns(list: &str, relation: &Relation) -> Result<Vec<String>, Failure> {
    let refuse = |message: String| Failure::field("queryable_columns", message);
    let columns = parse_column_list(list).map_err(|error| refuse(error.to_string()))?;
    if let Some(missing) = missing_key_columns(&columns, relation) {
        let message = "The list of queryable columns must include all primary key columns, missing: ";
        return Err(refuse(format!("{message}{missing}")));
    }
    if let Some(unknown) = joined(columns.iter().filter(|name| relation.column(name).is_none())) {
        return Err(refuse(format!("The following queryable columns are not found on the table: {unknown}")));
    }
    if columns.is_empty() {
        return Err(refuse("The list of queryable columns must not be empty".to_owned()));
    }
    Ok(columns)
}

/// The key columns that a list lacks, in key order. Without a primary key all columns are the key.
fn missing_key_columns(columns: &[String], relation: &Relation) -> Option<String> {
    let key = relation.key_columns();
    joined(key.iter().map(|column| &column.name).filter(|name| !columns.contains(name)))
}

fn joined<'a>(names: impl Iterator<Item = &'a String>) -> Option<String> {
    let names: Vec<&str> = names.map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::server::testing::{column, relation};

    fn asked(columns: Option<&str>, queryable: Option<&str>, clause: Option<&str>) -> AskedShape {
        AskedShape {
            table: Some("items".to_owned()),
            columns: columns.map(str::to_owned),
            queryable_columns: queryable.map(str::to_owned),
            where_clause: clause.map(str::to_owned),
            ..AskedShape::default()
        }
    }

    fn shown(result: Result<Defined, Failure>) -> String {
        match result {
            Ok(Defined { definition: shape, .. }) => format!(
                "{} named={} where={:?}",
                shape.columns.join(","),
                shape.columns_named,
                shape.where_sql
            ),
            Err(Failure::Invalid(errors)) => serde_json::to_string(&errors).expect("plain data"),
            Err(other) => format!("{other:?}"),
        }
    }

    fn check(columns: Option<&str>, queryable: Option<&str>, expected: &str) {
        let relation = Arc::new(relation());
        let shape =
            define(&asked(columns, queryable, None), &relation, &Relations::new(), &TableTexts::new());
        assert_eq!(shown(shape), expected, "{columns:?} {queryable:?}");
    }

    /// `items (id int4, k int4, value text, primary key (k, id))`.
    #[test]
    fn columns_are_checked_in_the_order_of_the_contract() {
        check(None, None, "id,k,value named=false where=None");
        check(Some("value,k,id,k"), None, "id,k,value named=true where=None");
        check(Some("k,id"), None, "id,k named=true where=None");
        check(
            Some("value,nope"),
            None,
            r#"{"columns":["The list of columns must include all primary key columns, missing: k, id"]}"#,
        );
        check(
            Some("id,k,nope,none"),
            None,
            r#"{"columns":["The following columns are not found on the table: nope, none"]}"#,
        );
        check(
            Some("id, k"),
            None,
            r#"{"columns":["Invalid unquoted identifier contains special characters:  k"]}"#,
        );
        check(None, Some("k,id"), "id,k named=true where=None");
        check(Some("id,k"), Some("id,k,value"), "id,k named=true where=None");
        check(
            Some("id,k,value"),
            Some("id,k"),
            r#"{"columns":["The following columns are not found on the table: value"]}"#,
        );
        check(
            None,
            Some("id"),
            r#"{"queryable_columns":["The list of queryable columns must include all primary key columns, missing: k"]}"#,
        );
        check(
            None,
            Some("id,k,nope"),
            r#"{"queryable_columns":["The following queryable columns are not found on the table: nope"]}"#,
        );
    }

    #[test]
    fn generated_columns_are_refused() {
        let mut relation = relation();
        relation.columns.push(crate::domain::Column { generated: true, ..column("g", "int4", None) });
        let relation = Arc::new(relation);
        assert_eq!(
            shown(define(&asked(None, None, None), &relation, &Relations::new(), &TableTexts::new())),
            r#"{"columns":["The following columns are generated and cannot be included in the shape: g. You can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param"]}"#
        );
        assert_eq!(
            shown(define(
                &asked(Some("id,k,g"), None, None),
                &relation,
                &Relations::new(),
                &TableTexts::new()
            )),
            r#"{"columns":["The following columns are generated and cannot be included in the shape: g"]}"#
        );
        assert_eq!(
            shown(define(&asked(Some("id,k"), None, None), &relation, &Relations::new(), &TableTexts::new())),
            "id,k named=true where=None"
        );
    }

    #[test]
    fn without_a_key_every_column_has_to_be_named() {
        let mut relation = relation();
        for column in &mut relation.columns {
            column.pk_position = None;
        }
        let relation = Arc::new(relation);
        assert_eq!(
            shown(define(&asked(Some("id"), None, None), &relation, &Relations::new(), &TableTexts::new())),
            r#"{"columns":["The list of columns must include all primary key columns, missing: k, value"]}"#
        );
    }

    #[test]
    fn parameters_are_checked_only_with_a_where_clause() {
        let with = |clause: Option<&str>, keys: &[&str]| {
            let params: BTreeMap<String, String> =
                keys.iter().map(|key| ((*key).to_owned(), "5".to_owned())).collect();
            shown(define(
                &AskedShape { params, ..asked(None, None, clause) },
                &Arc::new(relation()),
                &Relations::new(),
                &TableTexts::new(),
            ))
        };
        assert_eq!(with(None, &["x"]), "id,k,value named=false where=None");
        assert_eq!(
            with(Some("id = $1"), &["x"]),
            r#"{"params":["Parameters can only use numbers as keys"]}"#
        );
        assert_eq!(
            with(Some("id = $1"), &["2"]),
            r#"{"params":["Parameters must be numbered sequentially, starting from 1"]}"#
        );
        assert_eq!(
            with(Some("id = $1"), &[]),
            r#"{"where":["At location 5: parameter $1 was not provided"]}"#
        );
        let predicate = Predicate::parse("id = $1", &BTreeMap::from([(1, "5".to_owned())]), &relation());
        let sql = predicate.expect("a valid clause").sql().to_owned();
        assert_eq!(with(Some("id = $1"), &["1"]), format!("id,k,value named=false where={:?}", Some(sql)));
    }

    #[test]
    fn tables_are_named_and_found() {
        let name = |table: Option<&str>| {
            let asked = AskedShape { table: table.map(str::to_owned), ..AskedShape::default() };
            match table_name(&asked).and_then(|name| existing(None, &name)) {
                Err(Failure::Invalid(errors)) => serde_json::to_string(&errors).expect("plain data"),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(name(None), r#"{"table":["can't be blank"]}"#);
        assert_eq!(
            name(Some("a b")),
            r#"{"table":["Invalid unquoted identifier contains special characters: a b"]}"#
        );
        assert_eq!(
            name(Some("X")),
            r#"{"table":["Table \"public\".\"x\" does not exist. If the table name contains capitals or special characters you must quote it."]}"#
        );
    }
}
