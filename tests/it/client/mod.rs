//! The official `@electric-sql/client`, unmodified, against the real service.

mod changes;
mod chunks;
mod concurrent;
mod ecosystem;
mod events;
mod features;
mod mutations;
mod proxy;
mod restart;
mod subsets;

use crate::support::{Row, Rows, ShapeRequest, Table, TestDatabase, rows_in_postgres};

const ITEMS: Table = Table { name: "items", primary_key: &["id"] };
const MEMBERS: Table = Table { name: "members", primary_key: &["team", "person"] };

const SCHEMA: &str = "
CREATE TABLE items (id bigint PRIMARY KEY, owner int, title text, done boolean NOT NULL DEFAULT false);
CREATE TABLE members (team text, person int, role text, PRIMARY KEY (team, person));
INSERT INTO items VALUES (1, 1, 'first', false), (2, 2, 'it''s', true), (3, NULL, NULL, false);
INSERT INTO members VALUES ('a/b', 1, 'lead'), ('a/b', 2, NULL), ('c', 1, 'guest');
";

/// The rows that the client must have, from SQL.
async fn expected(database: &TestDatabase, table: &Table, request: &ShapeRequest) -> Vec<Row> {
    let rows: Rows =
        rows_in_postgres(&database.client().await, table, request).await.expect("the test's SQL is right");
    rows.into_values().collect()
}

async fn all(database: &TestDatabase, table: &Table) -> Vec<Row> {
    expected(database, table, &ShapeRequest::table(table.name)).await
}
