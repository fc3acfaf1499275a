//! The clauses of a subset snapshot (contract 1.14), read by Postgres' grammar and printed anew. Only
//! Postgres evaluates them, so they follow its collations and may name labels of enums.

use std::collections::BTreeMap;
use std::fmt::Write;

use rupg_sql::nodes::{Node, SelectStmt, SetOperation, SortBy, SortByDir, SortByNulls};
use rupg_sql::{Tokens, parse, token};

use super::check::{Checker, node_name, strings};
use super::error::WhereError;
use super::print::print;
use super::resolve::identifier;
use super::syntax::{DEPTH_MAX, STATEMENT_BYTES_MAX, check_statement, parse_expression, syntax_error};
use crate::domain::{Relation, quote_identifier};

/// Stands before every list when it is parsed; locations count from its start.
const ORDER_PREFIX: &str = "SELECT 1 ORDER BY ";

/// The condition of a subset over these columns, as SQL.
///
/// # Errors
/// Whatever a where clause of a shape may not have either, and subqueries.
pub fn subset_condition(
    text: &str,
    params: &BTreeMap<u32, String>,
    relation: &Relation,
) -> Result<String, WhereError> {
    let clause = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
    if has_subquery(text) {
        return Err(WhereError::SubqueryInSubset);
    }
    let expr = Checker::new(relation, params, false).with_enum_labels().check(&clause)?.expr;
    let mut sql = String::new();
    print(&expr, &mut sql);
    Ok(without_collations(&sql))
}

/// Reserved words outside of quotes: they begin every query, and nothing else in an expression.
pub(super) fn has_subquery(text: &str) -> bool {
    let mut tokens = Tokens::new(text);
    let mut before = 0;
    loop {
        let Ok(next) = tokens.next_token() else { return false };
        match next.kind {
            0 => return false,
            token::SELECT | token::TABLE => return true,
            // A column may have that name, but is not followed by a list.
            _ if before == token::VALUES && &text[next.start..next.end] == "(" => return true,
            kind => before = kind,
        }
    }
}

/// Canonical SQL orders text by bytes, as the filter of changes does. Here the order is that of
/// ORDER BY, or a client could not ask for the page after a row.
fn without_collations(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut tokens = Tokens::new(sql);
    let (mut copied, mut collate) = (0, None);
    while let Ok(next) = tokens.next_token() {
        if next.kind == 0 {
            break;
        }
        if let Some(start) = collate.take() {
            out.push_str(&sql[copied..start]);
            copied = next.end;
        }
        if next.kind == token::COLLATE {
            collate = Some(next.start);
        }
    }
    out.push_str(&sql[copied..]);
    out
}

/// The order of a subset over these columns, as SQL; empty where only constants were named.
///
/// # Errors
/// Anything but columns and constants, each with its direction.
pub fn subset_order(text: &str, relation: &Relation) -> Result<String, WhereError> {
    let statement = format!("{ORDER_PREFIX}{text}");
    check_statement(&statement, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
    let (statements, _notices) = parse(&statement).map_err(|error| syntax_error(&statement, &error))?;
    let mut statements = statements.into_iter().flatten();
    let (first, second) = (statements.next(), statements.next());
    let (Some(Node::RawStmt(raw)), None) = (first, second) else {
        return Err(WhereError::SemicolonInOrder);
    };
    // A semicolon at the end makes no second statement.
    if raw.stmt_len != 0 {
        return Err(WhereError::SemicolonInOrder);
    }
    let Some(Node::SelectStmt(select)) = raw.stmt else { return Err(WhereError::SemicolonInOrder) };
    if !is_only_sorted(&select) {
        return Err(WhereError::TrailingClauses);
    }
    let mut sql = String::new();
    for node in select.sortClause.iter().flatten() {
        let Node::SortBy(sort) = node else { return Err(refused(node, 0)) };
        print_sort(sort, relation, &mut sql)?;
    }
    Ok(sql)
}

fn is_only_sorted(select: &SelectStmt) -> bool {
    select.op == SetOperation::SETOP_NONE
        && select.limitOffset.is_none()
        && select.limitCount.is_none()
        && select.lockingClause.is_empty()
        && select.withClause.is_none()
}

fn print_sort(sort: &SortBy, relation: &Relation, sql: &mut String) -> Result<(), WhereError> {
    let column = match &sort.node {
        Some(Node::ColumnRef(column)) => {
            let parts = strings(&column.fields);
            let known = |name: &&str| relation.column(name).is_some();
            match parts[..] {
                [name] if parts.len() == column.fields.len() && known(&name) => name,
                _ => return Err(at(column.location, format!("unknown reference {}", identifier(&parts)))),
            }
        }
        // All rows are alike in it. As a number it would name a column by its place.
        Some(Node::A_Const(_)) => return Ok(()),
        Some(node) => return Err(refused(node, sort.location)),
        None => return Err(at(sort.location, "expression is incomplete".to_owned())),
    };
    if sort.sortby_dir == SortByDir::SORTBY_USING {
        let message = "operators are not allowed in ORDER BY clauses".to_owned();
        return Err(at(sort.location, message));
    }
    if !sql.is_empty() {
        sql.push_str(", ");
    }
    sql.push_str(&quote_identifier(column));
    sql.push_str(if sort.sortby_dir == SortByDir::SORTBY_DESC { " DESC" } else { "" });
    sql.push_str(match sort.sortby_nulls {
        SortByNulls::SORTBY_NULLS_FIRST => " NULLS FIRST",
        SortByNulls::SORTBY_NULLS_LAST => " NULLS LAST",
        _ => "",
    });
    Ok(())
}

/// The innermost node that may not be there.
fn refused(node: &Node, outer: i32) -> WhereError {
    let offends = |node: &Node| !matches!(node, Node::ColumnRef(_) | Node::A_Const(_) | Node::String(_));
    let inner = |nodes: &[Option<&Node>], here: i32| {
        let found = nodes.iter().flatten().find(|node| offends(node));
        found.map(|node| refused(node, here))
    };
    let (location, within) = match node {
        Node::ParamRef(param) => {
            let number = param.number;
            let message = format!("parameter ${number} is not supported in ORDER BY clauses");
            return at(param.location, message);
        }
        Node::TypeCast(cast) => {
            let name = cast.typeName.as_ref().map_or(cast.location, |name| name.location);
            return inner(&[cast.arg.as_ref()], cast.location)
                .unwrap_or_else(|| at(name, not_allowed("TypeName")));
        }
        Node::FuncCall(call) => {
            let args: Vec<_> = call.args.iter().map(Option::as_ref).collect();
            (call.location, inner(&args, call.location))
        }
        Node::A_Expr(expr) => {
            (expr.location, inner(&[expr.lexpr.as_ref(), expr.rexpr.as_ref()], expr.location))
        }
        Node::SubLink(link) => (link.location, None),
        Node::BoolExpr(expr) => (expr.location, None),
        Node::NullTest(test) => (test.location, None),
        Node::BooleanTest(test) => (test.location, None),
        Node::CaseExpr(case) => (case.location, None),
        Node::CoalesceExpr(expr) => (expr.location, None),
        Node::CollateClause(clause) => (clause.location, None),
        _ => (outer, None),
    };
    within.unwrap_or_else(|| at(location, not_allowed(&node_name(node))))
}

fn not_allowed(name: &str) -> String {
    let mut message = String::new();
    // Writing to a string does not fail.
    let _ = write!(message, "{name} expressions are not allowed in ORDER BY clauses");
    message
}

/// Locations count from the start of the statement, prefix included.
fn at(offset: i32, message: String) -> WhereError {
    WhereError::Located { location: usize::try_from(offset).unwrap_or(ORDER_PREFIX.len()), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Column, Oid, RelationName};

    fn relation() -> Relation {
        let column = |name: &str, oid: u32, kind: char| Column {
            name: name.to_owned(),
            type_oid: Oid(oid),
            type_name: if kind == 'e' { "mood" } else { "x" }.to_owned(),
            element_oid: Oid(0),
            type_modifier: -1,
            dimensions: 0,
            not_null: false,
            pk_position: None,
            generated: false,
            type_kind: kind,
            base: None,
        };
        Relation {
            oid: Oid(1),
            name: RelationName { schema: "public".to_owned(), table: "t".to_owned() },
            columns: vec![
                column("id", 23, 'b'),
                column("Name", 25, 'b'),
                column("mood", 90_000, 'e'),
                column("values", 23, 'b'),
            ],
            partitioned: false,
            storage: None,
        }
    }

    fn order(text: &str) -> String {
        subset_order(text, &relation()).unwrap_or_else(|error| format!("! {error}"))
    }

    fn condition(text: &str) -> String {
        let params = BTreeMap::from([(1, "it's".to_owned())]);
        subset_condition(text, &params, &relation()).unwrap_or_else(|error| format!("! {error}"))
    }

    #[test]
    fn columns_with_directions() {
        for (text, sql) in [
            ("id", "\"id\""),
            ("ID asc, \"Name\" DESC NULLS LAST", "\"id\", \"Name\" DESC NULLS LAST"),
            ("id nulls first -- all", "\"id\" NULLS FIRST"),
            ("1, 'a', id, NULL", "\"id\""),
            ("1", ""),
        ] {
            assert_eq!(order(text), sql, "{text}");
        }
    }

    #[test]
    fn nothing_but_columns() {
        for (text, error) in [
            ("lower(\"Name\")", "At location 18: FuncCall expressions are not allowed in ORDER BY clauses"),
            ("(select 1)", "At location 18: SubLink expressions are not allowed in ORDER BY clauses"),
            ("id::text", "At location 22: TypeName expressions are not allowed in ORDER BY clauses"),
            ("id + 1", "At location 21: A_Expr expressions are not allowed in ORDER BY clauses"),
            (
                "id, lower(id)::text",
                "At location 22: FuncCall expressions are not allowed in ORDER BY clauses",
            ),
            ("$1", "At location 18: parameter $1 is not supported in ORDER BY clauses"),
            ("id; select 1", "Unexpected `;` in order by"),
            ("id;", "Unexpected `;` in order by"),
            ("nope", "At location 18: unknown reference nope"),
            ("t.id", "At location 18: unknown reference t.id"),
            ("id limit 1", "malformed query ending with SQL clauses"),
            ("id offset 1", "malformed query ending with SQL clauses"),
            ("id for update", "malformed query ending with SQL clauses"),
            ("id using <", "At location 27: operators are not allowed in ORDER BY clauses"),
            ("id,", "At location 21: syntax error at end of input"),
        ] {
            assert_eq!(order(text), format!("! {error}"), "{text}");
        }
    }

    #[test]
    fn conditions() {
        for (text, sql) in [
            ("\"Name\" > 'a' AND id = 1", "(((\"Name\" ) > 'a') AND (\"id\" = 1))"),
            ("\"Name\" = ' COLLATE \"C\" '", "(\"Name\" = ' COLLATE \"C\" ')"),
            ("mood = 'happy'", "(\"mood\" = 'happy')"),
            ("mood = $1", "(\"mood\" = 'it''s')"),
            ("mood IN ('a', 'b')", "(\"mood\" IN ('a', 'b'))"),
            ("values = 1", "(\"values\" = 1)"),
            ("\"Name\" = 'select'", "(\"Name\" = 'select')"),
            ("id IN (SELECT 1)", "! Subqueries are not allowed in subsets"),
            ("EXISTS (TABLE t)", "! Subqueries are not allowed in subsets"),
            ("id IN (VALUES (1))", "! Subqueries are not allowed in subsets"),
            ("id", "! WHERE clause must return a boolean"),
            ("true limit 1", "! malformed query ending with SQL clauses"),
            ("nope = 1", "! At location 0: unknown reference nope"),
            ("id =", "! At location 19: syntax error at end of input"),
        ] {
            assert_eq!(condition(text), sql, "{text}");
        }
    }
}
