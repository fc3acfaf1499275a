//! Several clients at once, some of them coming late, while rows are written.

use serde_json::json;

use super::{ITEMS, SCHEMA, all, expected};
use crate::support::{NodeClient, NodeFollower, Service, ShapeRequest, database};

const CLIENTS: usize = 8;
const ROUNDS: i64 = 40;

#[tokio::test]
async fn clients_that_come_early_or_late_end_with_the_same_rows() {
    let database = database("concurrent").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let clients: Vec<NodeClient> = (0..CLIENTS)
        .map(|number| match number % 3 {
            0 => NodeClient::stream(&format!("client {number}"), json!({ "table": "items" })),
            1 => NodeClient::shape(&format!("client {number}"), json!({ "table": "items" })),
            _ => NodeClient::shape(
                &format!("client {number}"),
                json!({ "table": "items", "where": "owner = $1", "params": ["3"] }),
            ),
        })
        .collect();
    let (early, late) = clients.split_at(CLIENTS / 2);
    let mut first = NodeFollower::start(&service, early);
    let session = database.client().await;
    let mut second = None;
    for round in 0..ROUNDS {
        session
            .batch_execute(&format!(
                "BEGIN; INSERT INTO items SELECT {round} * 10 + n + 100, n % 5, 'row ' || n FROM generate_series(0, 9) n; \
                 UPDATE items SET owner = (owner + 1) % 5 WHERE id % 7 = {round} % 7; \
                 DELETE FROM items WHERE id = {round} * 10 + 95; COMMIT"
            ))
            .await
            .expect("the test's SQL is right");
        if round == ROUNDS / 2 {
            second = Some(NodeFollower::start(&service, late));
        }
    }
    let mut second = second.expect("started half-way");
    let whole = all(&database, &ITEMS).await;
    let filtered =
        expected(&database, &ITEMS, &ShapeRequest::table("items").filtered("owner = 3", &[])).await;
    assert!(whole.len() > 300 && !filtered.is_empty(), "the workload leaves rows: {}", whole.len());
    for (node, clients) in [(&mut first, early), (&mut second, late)] {
        for client in clients {
            let rows = if client.params.get("where").is_some() { &filtered } else { &whole };
            let seen = node.wait_for_rows(&client.name, rows).await;
            assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{}: {seen:?}", client.name);
        }
    }
    let handle = first.seen("client 0").handle;
    assert_eq!(second.seen(&late[2].name).handle, handle, "one shape for all clients of one definition");
}
