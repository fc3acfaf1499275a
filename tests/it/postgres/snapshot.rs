//! Initial rows.

use std::time::Duration;

use shapefold::domain::{Value, Xid};
use shapefold::snapshot::{self, RowBatch, SnapshotError};

use crate::postgres::{Harness, connect_as};

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_the_moment_and_of_the_condition() {
    let harness = Harness::new("snapshot").await;
    harness
        .run(
            "CREATE TABLE items (id int PRIMARY KEY, v text);
              INSERT INTO items SELECT i, 'v' || i FROM generate_series(1, 20000) i",
        )
        .await;
    let definition = harness.definition("items", Some("id <= 10000 OR id = 20000 -- all")).await;
    let running = harness.connection().await;
    running.batch_execute("BEGIN; UPDATE items SET v = 'new' WHERE id = 1").await.expect("a write");
    let xid = "SELECT pg_current_xact_id()::text::int8";
    let xid: i64 = running.query_one(xid, &[]).await.expect("the id").get(0);
    let open = snapshot::open(harness.connection().await, &definition).await.expect("a snapshot");
    running.batch_execute("COMMIT").await.expect("a commit");
    harness.run("DELETE FROM items WHERE id = 2").await;
    assert!(!open.visible.sees(Xid(xid as u32)), "the running transaction is not seen");
    assert!(open.lsn.0 > 0);
    let mut rows = open.rows().await.expect("rows");
    let (mut batch, mut count, mut first) = (RowBatch::new(), 0, Vec::new());
    while rows.next_batch(&mut batch).await.expect("a batch") {
        count += batch.len();
        batch.for_each(&mut |row| {
            if first.len() < 2 {
                first.push(format!("{row:?}"));
            }
        });
    }
    assert_eq!(count, 10_001);
    assert_eq!(first[0], format!("{:?}", [Value::Text(b"1"), Value::Text(b"v1")]));
    assert!(first[1].contains(&format!("{:?}", Value::Text(b"v2"))), "deleted after the snapshot was taken");
    assert!(!rows.next_batch(&mut batch).await.expect("the end stays the end"));
    let client = rows.finish().await.expect("the connection comes back");
    let row = client.query_one("SELECT v FROM items WHERE id = 1", &[]).await.expect("a row");
    assert_eq!(row.get::<_, &str>(0), "new", "the transaction has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_has_no_rows() {
    let harness = Harness::new("empty").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    assert!(harness.snapshot(&harness.definition("items", None).await).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_yields_nothing_in_time_is_cancelled() {
    let harness = Harness::new("slow").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)").await;
    let definition = harness.definition("items", Some("pg_sleep(600) IS NOT NULL")).await;
    let client = harness.connection().await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("the pid").get(0);
    let open = snapshot::open(client, &definition).await.expect("a snapshot");
    let mut batch = RowBatch::new();
    let error = match open.rows_within(Duration::from_millis(100)).await {
        Ok(mut rows) => rows.next_batch(&mut batch).await.expect_err("no row in time"),
        Err(error) => error,
    };
    assert_eq!(error, SnapshotError::FirstDataTimeout(100));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active'";
    while harness.sql.query_one(running, &[&pid]).await.expect("the activity").get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_the_request_is_told_apart() {
    let harness = Harness::new("changed").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let definition = harness.definition("items", None).await;
    let open = async || match snapshot::open(harness.connection().await, &definition).await {
        Ok(open) => open.rows().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(open().await, Ok(()));
    harness.run("ALTER TABLE items DROP v").await;
    assert_eq!(open().await, Err(SnapshotError::MustRefetch));
    harness.run("DROP TABLE items").await;
    assert_eq!(open().await, Err(SnapshotError::MustRefetch));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_read_is_told_so() {
    let harness = Harness::new("denied").await;
    let role = format!("role_{}", harness.settings.url.database());
    harness
        .run(&format!("CREATE TABLE items (id int PRIMARY KEY); CREATE ROLE {role} LOGIN PASSWORD 'pw'"))
        .await;
    let definition = harness.definition("items", None).await;
    let client = connect_as(&harness, &role, Some("pw")).await.expect("a connection");
    let result = match snapshot::open(client, &definition).await {
        Ok(open) => open.rows().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(result, Err(SnapshotError::PermissionDenied("permission denied for table items".to_owned())));
    harness.run(&format!("DROP ROLE {role}")).await;
}
