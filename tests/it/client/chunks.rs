//! Small chunks under random writes, where the reference implementation loses changes (U1, U2).

use serde_json::json;

use super::mutations::Mutations;
use super::{ITEMS, SCHEMA, all, expected};
use crate::support::{NodeClient, NodeFollower, Service, ShapeRequest, database};

const ROUNDS: usize = 6;

async fn follow_with_chunks_of(bytes: &str, seed: u64) {
    let database = database("chunks").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", bytes);
    })
    .await;
    let filtered = ShapeRequest::table("items").filtered("owner = 2 OR done = true", &[]);
    let params = json!({ "table": "items", "where": filtered.where_clause });
    let whole = json!({ "table": "items" });
    let sse = json!({ "liveSse": true });
    let full = json!({ "table": "items", "replica": "full" });
    let early = [
        NodeClient::stream("poll", whole.clone()),
        NodeClient::stream("sse", whole.clone()).with(sse.clone()),
        NodeClient::stream("filtered", params.clone()),
        NodeClient::shape("filtered sse", params).with(sse.clone()),
        NodeClient::stream("full", full).with(sse.clone()),
    ];
    let late =
        [NodeClient::shape("late poll", whole.clone()), NodeClient::stream("late sse", whole).with(sse)];
    let mut node = NodeFollower::start(&service, &early);
    let mut second = None;
    let session = database.client().await;
    let mut mutations = Mutations::new(seed, 400);
    for round in 0..ROUNDS {
        mutations.run(&session, 40).await;
        if round == ROUNDS / 2 {
            second = Some(NodeFollower::start(&service, &late));
        }
        let rows = all(&database, &ITEMS).await;
        let some = expected(&database, &ITEMS, &filtered).await;
        for client in &early {
            let rows = if client.params.get("where").is_some() { &some } else { &rows };
            node.wait_for_rows(&client.name, rows).await;
        }
    }
    let mut second = second.expect("started half-way");
    let rows = all(&database, &ITEMS).await;
    for client in &late {
        second.wait_for_rows(&client.name, &rows).await;
    }
    for (node, clients) in [(&node, &early[..]), (&second, &late[..])] {
        for client in clients {
            let seen = node.seen(&client.name);
            assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{}: {seen:?}", client.name);
        }
    }
}

#[tokio::test]
async fn random_writes_with_chunks_of_10_kb() {
    follow_with_chunks_of("10000", 1).await;
}

#[tokio::test]
async fn random_writes_with_chunks_of_300_bytes() {
    follow_with_chunks_of("300", 2).await;
}

#[tokio::test]
async fn random_writes_with_default_chunks() {
    follow_with_chunks_of("10485760", 3).await;
}
