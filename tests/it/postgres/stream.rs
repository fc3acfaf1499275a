//! What the stream tells of each kind of change.

use crate::postgres::{Harness, show};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_comes() {
    let harness = Harness::new("changes").await;
    harness
        .run("CREATE TABLE items (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness.publish("other").await;

    harness.run("INSERT INTO items VALUES (1, 'a'), (2, NULL)").await;
    assert_eq!(stream.shown().await, ["0 items + 1,a", "2 items + 2,NULL"]);
    harness.run("UPDATE items SET v = 'b' WHERE id = 1").await;
    assert_eq!(stream.shown().await, ["0 items 1,a > 1,b"]);
    harness.run("UPDATE items SET id = 9 WHERE id = 1").await;
    assert_eq!(stream.shown().await, ["0 items 1,b > 9,b"]);
    harness.run("DELETE FROM items WHERE id = 2").await;
    assert_eq!(stream.shown().await, ["0 items - 2,NULL"]);
    harness.run("TRUNCATE items, other").await;
    let transaction = stream.transaction().await;
    assert_eq!(show(&transaction), ["0 truncate 2"]);
    assert_eq!(transaction.truncated.len(), 2);
    assert_eq!(transaction.relations, transaction.truncated);
    harness.run("BEGIN; INSERT INTO other VALUES (1); INSERT INTO items VALUES (3, 'c'); DELETE FROM other; COMMIT").await;
    let transaction = stream.transaction().await;
    assert_eq!(show(&transaction), ["0 other + 1", "2 items + 3,c", "4 other - 1"]);
    assert!(transaction.lsn < transaction.end_lsn);
    let xid: i64 = harness
        .sql
        .query_one("SELECT xmin::text::int8 FROM items WHERE id = 3", &[])
        .await
        .expect("the row")
        .get(0);
    assert_eq!(i64::from(transaction.xid.0), xid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_toasted_value_is_marked_and_the_old_row_has_it() {
    let harness = Harness::new("toast").await;
    harness
        .run("CREATE TABLE items (id int PRIMARY KEY, n int, v text); ALTER TABLE items ALTER v SET STORAGE EXTERNAL")
        .await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness.run("INSERT INTO items VALUES (1, 1, repeat('x', 10000))").await;
    let long = "x".repeat(10_000);
    assert_eq!(stream.shown().await, [format!("0 items + 1,1,{long}")]);
    harness.run("UPDATE items SET n = 2").await;
    assert_eq!(stream.shown().await, [format!("0 items 1,1,{long} > 1,2,(unchanged)")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_without_full_identity_has_no_old_row() {
    let harness = Harness::new("identity").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness.run("INSERT INTO items VALUES (1, 'a'); ALTER TABLE items REPLICA IDENTITY DEFAULT").await;
    stream.transaction().await;
    harness.run("UPDATE items SET v = 'b'").await;
    assert_eq!(stream.shown().await, ["0 items ? > 1,b"]);
    harness.run("UPDATE items SET id = 2").await;
    assert_eq!(stream.shown().await, ["0 items ? > 2,b"], "the key alone is no old row");
    harness.run("DELETE FROM items").await;
    assert_eq!(stream.shown().await, ["0 items - 2,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_inside_a_transaction_keeps_rows_and_columns_together() {
    let harness = Harness::new("alter").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness
        .run("BEGIN; INSERT INTO items VALUES (1); ALTER TABLE items ADD v text DEFAULT 'd';
              INSERT INTO items VALUES (2, 'b'); ALTER TABLE items DROP v; INSERT INTO items VALUES (3); COMMIT")
        .await;
    assert_eq!(stream.shown().await, ["0 items + 1", "2 items + 2,b", "4 items + 3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_kept_in_a_file() {
    const ROWS: u64 = 100_000;
    let harness = Harness::new("spill").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let mut stream = harness.stream_with_spill(256 << 10).await;
    harness.publish("items").await;
    harness
        .run(&format!("INSERT INTO items SELECT i, repeat('x', 80) FROM generate_series(1, {ROWS}) i"))
        .await;
    let transaction = stream.transaction().await;
    assert!(transaction.is_spilled());
    assert_eq!(transaction.changes, ROWS);
    assert!(transaction.bytes > ROWS * 80);
    let (mut rows, mut largest) = (0, 0);
    transaction
        .for_each_chunk(&mut |changes| {
            for (index, change) in changes.iter().enumerate() {
                assert_eq!(change.op(), 2 * (rows + index as u64));
            }
            rows += changes.len() as u64;
            largest = largest.max(changes.len());
        })
        .expect("readable changes");
    assert_eq!(rows, ROWS);
    assert!(largest < 12_000, "{largest} rows in one piece of a mebibyte");
}

/// The server would end the connection after its own timeout, one second here.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_hears_of_us_while_nobody_reads() {
    const TIMEOUTS: u32 = 3;
    let harness = Harness::new("paused").await;
    let database = harness.settings.url.database();
    harness
        .run(&format!(
            "CREATE TABLE items (id int PRIMARY KEY, v text);
             ALTER DATABASE {database} SET wal_sender_timeout = '1s'"
        ))
        .await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    // More than the socket's buffers hold.
    harness.run("INSERT INTO items SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i").await;
    let replied = "SELECT coalesce(reply_time - backend_start > make_interval(secs => $1), false)
                   FROM pg_stat_replication r
                   JOIN pg_replication_slots s ON s.active_pid = r.pid AND s.slot_name = $2";
    let replies = async {
        loop {
            let row = harness.sql.query_opt(replied, &[&f64::from(TIMEOUTS), &harness.settings.slot]).await;
            if row.expect("the activity").expect("the stream is still there").get::<_, bool>(0) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::postgres::WAIT_MAX, replies).await.expect("status updates come");
    assert_eq!(stream.transaction().await.changes, 20_000);
}
