//! Options of the official client that look at headers, errors and connections.

use serde_json::{Value, json};

use crate::support::{NodeScript, Service, database};

const SECRET: &str = "s3cret";

const SCHEMA: &str = "
CREATE TABLE things (id int PRIMARY KEY, created_by text, is_done bool);
INSERT INTO things VALUES (1, 'anna', true), (2, 'nobody', false);
";

/// The rows that one follower shows come to be these, by id.
async fn rows(node: &mut NodeScript, name: &str, expected: &Value) {
    node.wait_for("rows", |event| {
        let mut rows = event["rows"].as_array().cloned().unwrap_or_default();
        rows.sort_by_key(|row| row["id"].as_i64());
        event["name"] == name && Value::from(rows) == *expected
    })
    .await;
}

#[tokio::test]
async fn column_mapper_backoff_error_handler_abort_and_pause() {
    let database = database("features").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_INSECURE", "false").set("ELECTRIC_SECRET", SECRET);
    })
    .await;
    let mut node = NodeScript::start("features.mjs", &service, &database, json!({ "secret": SECRET })).await;
    let node = &mut node;
    let row = |id: i32, by: &str, done: bool| json!({ "id": id, "created_by": by, "is_done": done });
    let two = json!([row(1, "anna", true), row(2, "nobody", false)]);
    for name in ["backoff", "repaired", "aborted", "paused"] {
        rows(node, name, &two).await;
    }
    rows(node, "mapped", &json!([{ "id": 1, "createdBy": "anna", "isDone": true }])).await;
    // A network error and a 503.
    node.next("failed attempt").await;
    node.next("failed attempt").await;
    let handled = node.next("handled").await;
    // The service sends no content type with it, so that the client keeps it as text.
    let text = r#"{"message":"Unauthorized - Invalid API secret"}"#;
    assert_eq!((&handled["status"], &handled["text"]), (&json!(401), &json!(text)));
    let refused = node.next("refused").await;
    assert_eq!(refused["status"], 400);
    let message = refused["errors"]["table"][0].as_str().unwrap_or_default();
    assert!(message.contains("does not exist"), "{refused}");
    node.next("gave up").await;

    node.command("abort", json!({}));
    node.next("aborted").await;
    node.command("hide", json!({}));
    let hidden = node.next("visibility").await;
    database.execute("INSERT INTO things VALUES (3, 'otto', NULL); DELETE FROM things WHERE id = 1").await;
    let two = json!([row(2, "nobody", false), json!({ "id": 3, "created_by": "otto", "is_done": null })]);
    rows(node, "repaired", &two).await;
    rows(node, "backoff", &two).await;
    rows(node, "mapped", &json!([{ "id": 3, "createdBy": "otto", "isDone": null }])).await;
    let quiet =
        |event: &Value| event["event"] == "rows" && (event["name"] == "aborted" || event["name"] == "paused");
    assert!(!node.unread().iter().any(quiet), "nobody who is stopped is told: {:?}", node.unread());

    node.command("show", json!({}));
    let shown = node.next("visibility").await;
    assert_eq!(hidden["live"], shown["live"], "it has not asked meanwhile");
    rows(node, "paused", &two).await;
    assert!(!node.unread().iter().any(quiet), "{:?}", node.unread());
}
