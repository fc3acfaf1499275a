//! What the rows of a shape must be, asked of Postgres, and how two sets of rows differ.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::Outcome;
use crate::shape_client::{Row, Rows, ShapeRequest};

/// Differences that are spelled out; the rest is only counted.
const DIFFERENCES_NAMED_MAX: usize = 5;

/// The session settings under which the contract renders every value.
const SESSION: &str = "SET bytea_output = 'hex'; SET DateStyle = 'ISO, DMY'; SET TimeZone = 'UTC'; \
     SET extra_float_digits = 1; SET IntervalStyle = 'iso_8601'";

/// A table as the harness knows it: its own, in schema public.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub name: &'static str,
    /// In the order of the primary key's index.
    pub primary_key: &'static [&'static str],
}

/// The rows that Postgres has for that shape now, keyed as the contract keys messages.
pub async fn rows_in_postgres(client: &Client, table: &Table, request: &ShapeRequest) -> Outcome<Rows> {
    client.batch_execute(SESSION).await?;
    let columns = match &request.columns {
        Some(columns) => columns.join(", "),
        None => "*".to_owned(),
    };
    let mut sql = format!("SELECT {columns} FROM {}", table.name);
    if let Some(clause) = &request.where_clause {
        sql.push_str(&format!(" WHERE {}", substitute(clause, &request.params)));
    }
    let mut rows = Rows::new();
    for message in client.simple_query(&sql).await? {
        let SimpleQueryMessage::Row(found) = message else { continue };
        let row: Row = found
            .columns()
            .iter()
            .enumerate()
            .map(|(index, column)| (column.name().to_owned(), found.get(index).map(str::to_owned)))
            .collect();
        rows.insert(key(table, &row), row);
    }
    Ok(rows)
}

/// Replaces `$n` by the quoted n-th parameter, the highest number first, so that `$1` leaves `$10` alone.
fn substitute(clause: &str, params: &[String]) -> String {
    params.iter().enumerate().rev().fold(clause.to_owned(), |clause, (index, param)| {
        clause.replace(&format!("${}", index + 1), &format!("'{}'", param.replace('\'', "''")))
    })
}

fn key(table: &Table, row: &Row) -> String {
    let mut key = format!("\"public\".\"{}\"", table.name);
    for column in table.primary_key {
        match row.get(*column) {
            Some(Some(value)) => key.push_str(&format!("/\"{}\"", value.replace('/', "//"))),
            _ => key.push_str("/_"),
        }
    }
    key
}

/// Booleans come as `t` from the log and may come as `true` from a snapshot; both are one value.
fn same_value(left: Option<&str>, right: Option<&str>) -> bool {
    let canonical = |value: Option<&str>| match value {
        Some("true") => Some("t".to_owned()),
        Some("false") => Some("f".to_owned()),
        other => other.map(str::to_owned),
    };
    left == right || canonical(left) == canonical(right)
}

fn same_row(left: &Row, right: &Row) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|((left_name, left), (right_name, right))| {
            left_name == right_name && same_value(left.as_deref(), right.as_deref())
        })
}

/// How a client's rows differ from those of Postgres; `None` when they are equal. Names keys and
/// columns, at most [`DIFFERENCES_NAMED_MAX`].
#[must_use]
pub fn difference(client: &Rows, postgres: &Rows) -> Option<String> {
    let mut count = 0;
    let mut named = Vec::new();
    let mut differs = |text: String| {
        count += 1;
        if named.len() < DIFFERENCES_NAMED_MAX {
            named.push(text);
        }
    };
    for (key, row) in postgres {
        match client.get(key) {
            None => differs(format!("missing {key}")),
            Some(have) if !same_row(have, row) => differs(format!("{key}: has {have:?}, should be {row:?}")),
            Some(_) => {}
        }
    }
    for key in client.keys().filter(|key| !postgres.contains_key(*key)) {
        differs(format!("should not have {key}"));
    }
    (count > 0).then(|| {
        format!(
            "{count} differences ({} rows, Postgres {}): {}",
            client.len(),
            postgres.len(),
            named.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(items: &[(&str, &str)]) -> Rows {
        items
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Row::from([("v".to_owned(), Some((*value).to_owned()))])))
            .collect()
    }

    #[test]
    fn equal_rows_have_no_difference_and_others_are_named() {
        assert_eq!(difference(&rows(&[("a", "true")]), &rows(&[("a", "t")])), None);
        let text = difference(&rows(&[("a", "1"), ("b", "1")]), &rows(&[("a", "2"), ("c", "1")])).unwrap();
        assert!(text.starts_with("3 differences"), "{text}");
        assert!(text.contains("missing c") && text.contains("should not have b"), "{text}");
    }

    #[test]
    fn parameters_are_quoted_and_numbers_do_not_overlap() {
        let params: Vec<String> = (1..=10).map(|number| format!("p'{number}")).collect();
        assert_eq!(substitute("a = $1 AND b = $10", &params), "a = 'p''1' AND b = 'p''10'");
    }

    #[test]
    fn keys_double_slashes_and_mark_nulls() {
        let table = Table { name: "t", primary_key: &["a", "b"] };
        let row = Row::from([("a".to_owned(), Some("x/y".to_owned())), ("b".to_owned(), None)]);
        assert_eq!(key(&table, &row), "\"public\".\"t\"/\"x//y\"/_");
    }
}
