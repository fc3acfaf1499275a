//! One client, one kind of change after the other.

use serde_json::json;

use super::{ITEMS, MEMBERS, SCHEMA, all, expected};
use crate::support::{NodeClient, NodeFollower, Service, ShapeRequest, database};

const NAMES: [&str; 2] = ["stream", "shape"];

fn both(params: serde_json::Value) -> [NodeClient; 2] {
    [NodeClient::stream(NAMES[0], params.clone()), NodeClient::shape(NAMES[1], params)]
}

#[tokio::test]
async fn stream_and_shape_follow_insert_update_delete_and_key_change() {
    let database = database("changes").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let mut node = NodeFollower::start(&service, &both(json!({ "table": "items" })));
    for name in NAMES {
        node.wait_for_rows(name, &all(&database, &ITEMS).await).await;
    }
    for sql in [
        "INSERT INTO items VALUES (4, 4, 'ünï ✓ \"quoted\" \\', true)",
        "UPDATE items SET title = 'changed', owner = NULL WHERE id = 1",
        "UPDATE items SET done = NOT done",
        "DELETE FROM items WHERE id = 2",
        "UPDATE items SET id = 30 WHERE id = 3",
        "BEGIN; INSERT INTO items VALUES (5, 5, 'gone'); DELETE FROM items WHERE id = 5; \
         INSERT INTO items VALUES (6, 6, 'stays'); UPDATE items SET title = 'stays, changed' WHERE id = 6; COMMIT",
    ] {
        database.execute(sql).await;
        for name in NAMES {
            node.wait_for_rows(name, &all(&database, &ITEMS).await).await;
        }
    }
    let seen = node.seen("stream");
    let key_change: Vec<_> =
        seen.changes.iter().skip_while(|(_, key)| key != r#""public"."items"/"3""#).collect();
    assert!(
        key_change.iter().any(|(operation, key)| operation == "delete" && key.ends_with(r#"/"3""#)),
        "{seen:?}"
    );
    assert!(
        key_change.iter().any(|(operation, key)| operation == "insert" && key.ends_with(r#"/"30""#)),
        "{seen:?}"
    );
    assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{seen:?}");
}

#[tokio::test]
async fn two_tables_and_a_composite_key_do_not_disturb_each_other() {
    let database = database("tables").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let clients = [
        NodeClient::shape("items", json!({ "table": "items" })),
        NodeClient::stream("members", json!({ "table": "members" })),
        NodeClient::shape("roles", json!({ "table": "members", "columns": ["team", "person", "role"] })),
    ];
    let mut node = NodeFollower::start(&service, &clients);
    for sql in [
        "SELECT 1",
        "BEGIN; INSERT INTO members VALUES ('x\"y', 7, 'new'); INSERT INTO items VALUES (7, 7, 'new'); COMMIT",
        "UPDATE members SET person = 9 WHERE team = 'c'",
        "UPDATE members SET role = 'none' WHERE team = 'a/b'",
        "BEGIN; DELETE FROM members WHERE team = 'a/b' AND person = 1; DELETE FROM items WHERE id < 3; COMMIT",
    ] {
        database.execute(sql).await;
        node.wait_for_rows("items", &all(&database, &ITEMS).await).await;
        node.wait_for_rows("members", &all(&database, &MEMBERS).await).await;
        node.wait_for_rows("roles", &all(&database, &MEMBERS).await).await;
    }
    for client in clients {
        let seen = node.seen(&client.name);
        assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{}: {seen:?}", client.name);
    }
}

#[tokio::test]
async fn a_where_clause_with_parameters_lets_rows_enter_and_leave() {
    let database = database("params").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let clause = "owner = $1 AND (title = $2 OR done = false)";
    let request = ShapeRequest::table("items").filtered(clause, &["2", "it's"]);
    let params = json!({ "table": "items", "where": clause, "params": ["2", "it's"] });
    let mut node = NodeFollower::start(&service, &both(params));
    for sql in [
        "SELECT 1",
        "UPDATE items SET owner = 2 WHERE id = 1",
        "UPDATE items SET title = 'other' WHERE id = 2",
        "UPDATE items SET title = 'it''s', done = true WHERE id = 1",
        "INSERT INTO items VALUES (8, 2, 'in'), (9, 3, 'out')",
        "UPDATE items SET id = 80 WHERE id = 8",
        "UPDATE items SET owner = NULL",
    ] {
        database.execute(sql).await;
        let rows = expected(&database, &ITEMS, &request).await;
        for name in NAMES {
            node.wait_for_rows(name, &rows).await;
        }
    }
    assert_eq!(node.seen("stream").errors, Vec::<String>::new());
}
