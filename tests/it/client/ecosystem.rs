//! Packages on top of the official client, unmodified: React, TanStack DB, Yjs.

use serde_json::{Value, json};

use super::{ITEMS, all};
use crate::support::{NodeScript, Service, TestDatabase, database};

const SCHEMA: &str = "
CREATE TABLE items (id int8 PRIMARY KEY, title text);
INSERT INTO items VALUES (1, 'one'), (2, 'two');
";

/// Rows of an event by id, and those of SQL in the same form.
fn sorted(rows: &Value) -> Vec<Value> {
    let mut rows = rows.as_array().cloned().unwrap_or_default();
    rows.sort_by_key(|row| row["id"].as_str().and_then(|id| id.parse::<i64>().ok()));
    rows
}

async fn in_postgres(database: &TestDatabase) -> Vec<Value> {
    sorted(&serde_json::to_value(all(database, &ITEMS).await).expect("text"))
}

#[tokio::test]
async fn use_shape_in_a_real_browser() {
    let database = database("react").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let mut node = NodeScript::start("browser.mjs", &service, &database, json!({})).await;
    let node = &mut node;
    node.next("listening").await;
    for sql in [
        "SELECT 1",
        "INSERT INTO items VALUES (3, 'drei & <b>ünï</b> \"✓\"')",
        "UPDATE items SET title = 'changed' WHERE id = 1; DELETE FROM items WHERE id = 2",
        "UPDATE items SET id = 10 WHERE id = 1; INSERT INTO items VALUES (5, 'five')",
    ] {
        database.execute(sql).await;
        let rows = in_postgres(&database).await;
        for name in ["first", "second"] {
            let list =
                node.wait_for("list", |list| list["name"] == name && sorted(&list["rows"]) == rows).await;
            assert_eq!((&list["isLoading"], &list["isError"]), (&json!(false), &json!(false)), "{list}");
        }
        node.wait_for("count", |event| event["count"] == rows.len()).await;
    }
    // Another shape for the same component, and the other component is gone.
    node.command("show", json!({ "where": "id > 5", "twice": false }));
    database.execute("INSERT INTO items VALUES (4, 'out'), (11, 'in')").await;
    let wanted = vec![json!({ "id": "10", "title": "changed" }), json!({ "id": "11", "title": "in" })];
    node.wait_for("list", |list| list["where"] == "id > 5" && sorted(&list["rows"]) == wanted).await;
    node.wait_for("count", |event| event["count"] == 5).await;
    let gone = |event: &Value| event["name"] == "second" && sorted(&event["rows"]).len() == 5;
    assert!(!node.unread().iter().any(gone), "{:?}", node.unread());
    assert!(!node.unread().iter().any(|event| event["event"] == "page error"), "{:?}", node.unread());
}

/// Writes are shown at once, and stay when the stream brings the transaction that made them.
async fn a_collection_writes_back(mode: &str) {
    let database = database("tanstack").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let mut node =
        NodeScript::start("collection.mjs", &service, &database, json!({ "syncMode": mode })).await;
    let node = &mut node;
    let ready = node.next("ready").await;
    assert_eq!(sorted(&ready["rows"]), in_postgres(&database).await);
    let three_four = json!([{ "id": 3, "title": "it's three" }, { "id": 4, "title": null }]);
    let commands = [
        ("insert", json!({ "rows": three_four }), 4, "it's three"),
        // The handler adds an exclamation mark: what is shown in the end is what Postgres has.
        ("update", json!({ "ids": [1, 3], "title": "changed" }), 4, "changed"),
        ("delete", json!({ "ids": [2, 4] }), 2, "changed!"),
    ];
    for (matched, (name, arguments, count, third)) in commands.into_iter().enumerate() {
        node.command(name, arguments);
        let optimistic = sorted(&node.next("optimistic").await["rows"]);
        assert_eq!(optimistic.len(), count, "{name}: {optimistic:?}");
        assert!(optimistic.iter().any(|row| row["id"] == "3" && row["title"] == third), "{optimistic:?}");
        let persisted = node.next("persisted").await;
        assert_eq!(persisted["matched"], matched + 1);
        assert_eq!(sorted(&persisted["rows"]), in_postgres(&database).await, "{name}");
    }
    database
        .execute("UPDATE items SET title = 'by somebody else'; INSERT INTO items VALUES (9, 'nine')")
        .await;
    let rows = in_postgres(&database).await;
    node.wait_for("rows", |event| sorted(&event["rows"]) == rows).await;
}

#[tokio::test]
async fn a_collection_that_is_read_at_once_writes_back() {
    a_collection_writes_back("eager").await;
}

/// The rows come as subsets first, and the log from now on takes over.
#[tokio::test]
async fn a_collection_that_is_read_progressively_writes_back() {
    a_collection_writes_back("progressive").await;
}

#[tokio::test]
async fn two_documents_converge() {
    let database = database("yjs").await;
    database
        .execute(
            "CREATE TABLE updates (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, op bytea NOT NULL);
             CREATE TABLE awareness (client text PRIMARY KEY, op bytea NOT NULL)",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let mut node = NodeScript::start("documents.mjs", &service, &database, json!({})).await;
    let node = &mut node;
    node.next("synced").await;
    for (document, user) in [("one", "anna"), ("two", "otto")] {
        node.command("user", json!({ "document": document, "user": user }));
    }
    for name in ["one", "two"] {
        let both = json!(["anna", "otto"]);
        node.wait_for("document", |event| event["name"] == name && event["users"] == both).await;
    }
    // At the same time, at the same place.
    for round in 0..5 {
        for document in ["one", "two"] {
            node.command(
                "insert",
                json!({ "document": document, "at": 0, "text": format!("{document}{round} ") }),
            );
        }
    }
    let text = converged(node, 10).await;
    for round in 0..5 {
        assert!(text.contains(&format!("one{round}")) && text.contains(&format!("two{round}")), "{text}");
    }
    // What is written without a connection comes when there is one again.
    node.command("disconnect", json!({ "document": "two" }));
    node.command("insert", json!({ "document": "two", "at": 0, "text": "offline " }));
    node.command("insert", json!({ "document": "one", "at": 0, "text": "online " }));
    node.command("connect", json!({ "document": "two" }));
    let text = converged(node, 12).await;
    assert!(text.contains("offline ") && text.contains("online "), "{text}");
    let updates = database.value("SELECT count(*) FROM updates").await;
    assert!(updates.and_then(|count| count.parse::<u32>().ok()) >= Some(2), "they went by way of Postgres");
}

/// Waits until both show the same text of so many words.
async fn converged(node: &mut NodeScript, words: usize) -> String {
    let mut texts = Vec::new();
    for name in ["one", "two"] {
        let whole = |event: &Value| {
            event["name"] == name
                && event["text"].as_str().is_some_and(|text| text.split_whitespace().count() == words)
        };
        let event = node.wait_for("document", whole).await;
        texts.push(event["text"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(texts[0], texts[1]);
    texts.swap_remove(0)
}
