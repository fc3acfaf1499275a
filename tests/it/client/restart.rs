//! The service is killed; the client goes on where it was.

use serde_json::json;

use super::{ITEMS, SCHEMA, all, expected};
use crate::support::{NodeClient, NodeFollower, Service, ShapeRequest, database, journal};

#[tokio::test]
async fn after_kill_and_restart_clients_go_on_without_a_refetch() {
    let database = database("restart").await;
    database.execute(SCHEMA).await;
    let mut service = Service::start(&database, |_| {}).await;
    let clients = [
        NodeClient::stream("stream", json!({ "table": "items" })),
        NodeClient::shape("shape", json!({ "table": "items" })),
        NodeClient::shape("filtered", json!({ "table": "items", "where": "done = true" })),
    ];
    let mut node = NodeFollower::start(&service, &clients);
    let request = ShapeRequest::table("items").filtered("done = true", &[]);
    node.wait_for_rows("stream", &all(&database, &ITEMS).await).await;
    node.wait_for_rows("shape", &all(&database, &ITEMS).await).await;
    let before = node.wait_for_rows("filtered", &expected(&database, &ITEMS, &request).await).await;
    let handles: Vec<String> = clients.iter().map(|client| node.seen(&client.name).handle).collect();

    for round in 1..=2 {
        database
            .execute(&format!("INSERT INTO items VALUES ({round}0, 1, 'just before the kill', true)"))
            .await;
        service.kill9();
        database.execute(&format!("INSERT INTO items VALUES ({round}1, 1, 'while it is down', true)")).await;
        database.execute("UPDATE items SET title = 'changed while it is down' WHERE id = 1").await;
        service.restart().await.unwrap_or_else(|error| panic!("{error}"));
        database.execute(&format!("DELETE FROM items WHERE id = {round}0")).await;
        node.wait_for_rows("stream", &all(&database, &ITEMS).await).await;
        node.wait_for_rows("shape", &all(&database, &ITEMS).await).await;
        node.wait_for_rows("filtered", &expected(&database, &ITEMS, &request).await).await;
    }

    for (client, handle) in clients.iter().zip(handles) {
        let seen = node.seen(&client.name);
        assert_eq!(seen.handle, handle, "{}", client.name);
        assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{}: {seen:?}", client.name);
    }
    assert_ne!(before.offset, node.seen("filtered").offset, "the log went on");
    assert!(service.terminate().await, "the service stops by itself:\n{}", service.output());
    journal::verify(env!("CARGO_BIN_EXE_shapefold").as_ref(), service.data_dir())
        .unwrap_or_else(|error| panic!("{error}"));
}
