//! Tags, active conditions, and the messages about values that move.

use serde_json::{Value, json};

use super::{Reader, SCHEMA, hash, started};

const ACTIVE: &str = "p IN (SELECT id FROM par WHERE act = true)";

/// Operation, id, tags and conditions of a row message; other messages as they are.
fn brief(messages: &[Value]) -> Vec<Value> {
    let row = |message: &Value| {
        let headers = &message["headers"];
        match headers.get("operation") {
            Some(operation) => json!([
                operation,
                message["value"]["id"],
                headers["tags"],
                headers["active_conditions"],
                headers["removed_tags"],
                headers["is_move_in"],
            ]),
            None => match headers.get("control") {
                Some(control) => control.clone(),
                None => json!([headers["event"], headers["patterns"]]),
            },
        }
    };
    messages.iter().map(row).collect()
}

/// The example of contract 1.16, as it was observed.
#[tokio::test]
async fn the_observed_example() {
    let (database, service) = started("observed", SCHEMA, &[]).await;
    let mut reader = Reader::new(&service, "child", ACTIVE).await;
    let initial = reader.initial().await;
    let (h1, h2) =
        (hash(&database, &reader.handle, "v:1").await, hash(&database, &reader.handle, "v:2").await);
    let row = |operation: &str, id: &str, hash: &str| json!([operation, id, [hash], [true], null, null]);
    assert_eq!(brief(&initial), [row("insert", "1", &h1), json!("snapshot-end")]);

    let client = database.client().await;
    let xid = |sql: &'static str| {
        let client = &client;
        async move {
            client.batch_execute("BEGIN").await.expect("begins");
            client.batch_execute(sql).await.expect("the test's SQL is right");
            let row = client.query_one("SELECT pg_current_xact_id()::text::int8", &[]).await.expect("an id");
            client.batch_execute("COMMIT").await.expect("commits");
            row.get::<_, i64>(0)
        }
    };
    let txid = xid("UPDATE par SET act = true WHERE id = 2").await;
    let moved = reader.news().await;
    assert_eq!(moved[0]["headers"]["txids"], json!([txid]));
    assert_eq!(
        brief(&moved),
        [
            json!(["move-in", [{ "pos": 0, "value": h2 }]]),
            json!(["insert", "2", [h2], [true], null, true]),
            json!("snapshot-end"),
        ]
    );
    assert!(moved[1]["headers"].get("lsn").is_none() && moved[1]["headers"].get("txids").is_none());

    xid("UPDATE child SET p = 2 WHERE id = 1").await;
    assert_eq!(brief(&reader.news().await), [json!(["update", "1", [h2], [true], [h1], null])]);

    let txid = xid("UPDATE par SET act = false WHERE id = 1").await;
    let moved = reader.news().await;
    assert_eq!(brief(&moved), [json!(["move-out", [{ "pos": 0, "value": h1 }]])]);
    assert_eq!(moved[0]["headers"]["txids"], json!([txid]));

    // The child's plain insert is not sent.
    let h3 = hash(&database, &reader.handle, "v:3").await;
    xid("INSERT INTO par VALUES (3, true, 1); INSERT INTO child VALUES (9, 3, 'n')").await;
    assert_eq!(
        brief(&reader.news().await),
        [
            json!(["move-in", [{ "pos": 0, "value": h3 }]]),
            json!(["insert", "9", [h3], [true], null, true]),
            json!("snapshot-end"),
        ]
    );
}

/// With another disjunct: two tags, and no row for a child that is in anyway.
#[tokio::test]
async fn the_variant_with_another_disjunct() {
    let (database, service) = started("disjuncts", SCHEMA, &[]).await;
    let mut reader = Reader::new(&service, "child", &format!("{ACTIVE} OR t = 'y'")).await;
    let initial = reader.initial().await;
    let (h1, h2) =
        (hash(&database, &reader.handle, "v:1").await, hash(&database, &reader.handle, "v:2").await);
    let tags = |hash: &str| json!([format!("{hash}/"), "/1"]);
    assert_eq!(
        brief(&initial),
        [
            json!(["insert", "1", tags(&h1), [true, false], null, null]),
            json!(["insert", "2", tags(&h2), [false, true], null, null]),
            json!("snapshot-end"),
        ]
    );
    database.execute("UPDATE par SET act = true WHERE id = 2").await;
    assert_eq!(brief(&reader.news().await), [json!(["move-in", [{ "pos": 0, "value": h2 }]])]);
    database.execute("UPDATE child SET t = 'x' WHERE id = 2").await;
    assert_eq!(brief(&reader.news().await), [json!(["update", "2", tags(&h2), [true, false], [], null])]);
}

#[tokio::test]
async fn under_not_the_directions_are_exchanged() {
    let (database, service) = started("not", SCHEMA, &[]).await;
    let mut reader = Reader::new(&service, "child", "p NOT IN (SELECT id FROM par WHERE act = true)").await;
    let initial = reader.initial().await;
    let h1 = hash(&database, &reader.handle, "v:1").await;
    let h2 = hash(&database, &reader.handle, "v:2").await;
    let row = |id: &str, hash: &str, moved: Value| json!(["insert", id, [hash], [true], null, moved]);
    assert_eq!(brief(&initial), [row("2", &h2, Value::Null), json!("snapshot-end")]);
    database.execute("UPDATE par SET act = true WHERE id = 2").await;
    assert_eq!(brief(&reader.news().await), [json!(["move-out", [{ "pos": 0, "value": h2 }]])]);
    database.execute("UPDATE par SET act = false WHERE id = 1").await;
    assert_eq!(
        brief(&reader.news().await),
        [json!(["move-in", [{ "pos": 0, "value": h1 }]]), row("1", &h1, json!(true)), json!("snapshot-end")]
    );
}

#[tokio::test]
async fn a_value_moves_with_its_first_and_last_row() {
    let (database, service) = started("refcount", SCHEMA, &[]).await;
    let mut reader = Reader::new(&service, "child", "p IN (SELECT gp FROM par WHERE act = true)").await;
    reader.initial().await;
    let h1 = hash(&database, &reader.handle, "v:1").await;
    database.execute("INSERT INTO par VALUES (5, true, 1)").await;
    database.execute("DELETE FROM par WHERE id = 1").await;
    // Neither was a move: the next messages are of the next transactions.
    database.execute("INSERT INTO child VALUES (7, 1, 'x')").await;
    assert_eq!(brief(&reader.news().await), [json!(["insert", "7", [h1], [true], null, null])]);
    database.execute("DELETE FROM par WHERE id = 5").await;
    assert_eq!(brief(&reader.news().await), [json!(["move-out", [{ "pos": 0, "value": h1 }]])]);
}

#[tokio::test]
async fn a_key_change_has_the_tags_of_both_rows() {
    let (database, service) = started("keychange", SCHEMA, &[]).await;
    let clause = "p IN (SELECT id FROM par)";
    let mut reader = Reader::new(&service, "child", clause).await;
    reader.initial().await;
    let (h1, h2) =
        (hash(&database, &reader.handle, "v:1").await, hash(&database, &reader.handle, "v:2").await);
    database.execute("UPDATE child SET id = 11, p = 2 WHERE id = 1").await;
    let news = reader.news().await;
    assert_eq!(
        brief(&news),
        [
            json!(["delete", "1", [h2, h1], [true], null, null]),
            json!(["insert", "11", [h2], [true], null, null]),
        ]
    );
    assert_eq!(news[1]["headers"]["last"], true);
    database.execute("DELETE FROM child WHERE id = 11").await;
    assert_eq!(brief(&reader.news().await), [json!(["delete", "11", [h2], [true], null, null])]);
}

#[tokio::test]
async fn what_cannot_be_is_told() {
    let (_database, service) = started("refused", SCHEMA, &[]).await;
    let errors =
        async |query: &str| service.get(&format!("/v1/shape?table=child&offset=-1&{query}")).await.json();
    let clause = |text: &str| format!("where={}", crate::support::encode(text));
    assert_eq!(
        errors(&format!("{}&experimental_compaction=true", clause(ACTIVE))).await["errors"],
        json!({ "experimental_compaction": ["can't be enabled for shapes with subqueries"] })
    );
    assert_eq!(
        errors(&clause("p IN (SELECT id FROM nope)")).await["errors"]["table"][0],
        "Table \"public\".\"nope\" does not exist. If the table name contains capitals or special characters you \
         must quote it."
    );
    assert_eq!(
        errors(&clause("p IN (SELECT id FROM par LIMIT 1)")).await["errors"]["where"],
        json!(["SELECT statement must not contain any clauses"])
    );
}

/// There is nobody to leave the order of texts to; by bytes it would be another than that of Postgres.
#[tokio::test]
async fn texts_are_ordered_as_postgres_orders_them_or_not_at_all() {
    let schema = "CREATE TABLE par (id int PRIMARY KEY, t text COLLATE \"und-x-icu\");
         CREATE TABLE child (id int PRIMARY KEY, p int, c text COLLATE \"C\")";
    let (_database, service) = started("text_order", schema, &[]).await;
    let ask = async |clause: &str| {
        service
            .get(&format!("/v1/shape?table=child&offset=-1&where={}", crate::support::encode(clause)))
            .await
    };
    let answer = ask("p IN (SELECT id FROM par WHERE t = 'm') AND c > 'm'").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = ask("p IN (SELECT id FROM par WHERE t > 'm')").await;
    assert_eq!(
        (answer.status, answer.json()["errors"]["where"][0].as_str()),
        (400, Some("At location 33: the order of this collation is not supported")),
    );
}

#[tokio::test]
async fn inner_tables_are_published_with_full_identity() {
    let (database, service) = started("published", SCHEMA, &[]).await;
    Reader::new(&service, "child", ACTIVE).await.initial().await;
    for table in ["child", "par"] {
        let published = format!("SELECT count(*) FROM pg_publication_tables WHERE tablename = '{table}'");
        assert_eq!(database.value(&published).await.as_deref(), Some("1"), "{table}");
        let identity = format!("SELECT relreplident FROM pg_class WHERE relname = '{table}'");
        assert_eq!(database.value(&identity).await.as_deref(), Some("f"), "{table}");
    }
}
