//! The official client over server-sent events.

use serde_json::json;

use super::{ITEMS, SCHEMA, all};
use crate::support::{NodeClient, NodeFollower, Service, database};

#[tokio::test]
async fn a_stream_of_events_survives_truncate_and_restart() {
    let database = database("sse_client").await;
    database.execute(SCHEMA).await;
    let mut service = Service::start(&database, |_| {}).await;
    let clients = [
        NodeClient::stream("stream", json!({ "table": "items" })).with(json!({ "liveSse": true })),
        NodeClient::shape("old option", json!({ "table": "items" }))
            .with(json!({ "experimentalLiveSse": true })),
    ];
    let mut node = NodeFollower::start(&service, &clients);
    for sql in [
        "SELECT 1",
        "INSERT INTO items SELECT i, 1, 'row' FROM generate_series(10, 60) i",
        "UPDATE items SET id = 100 WHERE id = 10",
        "TRUNCATE items",
        "INSERT INTO items VALUES (1, 1, 'after truncate')",
    ] {
        database.execute(sql).await;
        for client in &clients {
            node.wait_for_rows(&client.name, &all(&database, &ITEMS).await).await;
        }
    }
    service.kill9();
    database.execute("INSERT INTO items VALUES (2, 2, 'while it is down')").await;
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("INSERT INTO items VALUES (3, 3, 'later')").await;
    for client in &clients {
        let seen = node.wait_for_rows(&client.name, &all(&database, &ITEMS).await).await;
        assert_eq!((seen.refetches, seen.errors.len()), (1, 0), "{}: {seen:?}", client.name);
    }
}
