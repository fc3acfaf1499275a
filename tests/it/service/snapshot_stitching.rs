//! The seam between a snapshot and the log: rows that are written while a shape is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{ITEMS, catch_up, journal_is_sound, until};
use crate::support::{Service, ShapeClient, ShapeRequest, Table, TestDatabase, database, rows_in_postgres};

const WRITERS: u32 = 4;
const SHAPES: u32 = 60;
/// Shapes that are made at the same time.
const AT_ONCE: usize = 6;

/// Transactions of several statements, some rolled back, some open for a while, some with savepoints,
/// over rows that all writers share.
async fn write(url: String, number: u32, stop: Arc<AtomicBool>, committed: Arc<AtomicU32>) {
    let client = shapefold_xtask::postgres::connect(&url).await.expect("Postgres accepts connections");
    let mut round = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let id = number * 1_000_000 + round;
        let (key, end) = (round % 97, if round % 7 == 3 { "ROLLBACK" } else { "COMMIT" });
        let pause = if round % 11 == 5 { "SELECT pg_sleep(0.02);" } else { "" };
        let sql = format!(
            "BEGIN; INSERT INTO items VALUES (1000 + {id}, {id} % 10, 'new {id}');
             SAVEPOINT s; DELETE FROM items WHERE id = {key}; ROLLBACK TO s; {pause}
             UPDATE items SET k = (k + 1) % 10, v = 'writer {number} round {round}' WHERE id = {key};
             DELETE FROM items WHERE id = 1000 + {id} - 3; {end}"
        );
        // Two writers may block each other for good; Postgres then ends one of them.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.expect("a transaction can be given up");
        } else {
            committed.fetch_add(1, Ordering::Relaxed);
        }
        round += 1;
    }
}

fn request(number: u32) -> ShapeRequest {
    let all = ShapeRequest::table("items");
    match number % 4 {
        0 => all.filtered(&format!("k = {} AND id > -{number}", number % 10), &[]),
        1 => all.filtered(&format!("id % 1 = 0 OR id > {number}").replace("id % 1 = 0", "id < 50"), &[]),
        2 => all.filtered("v <> $1", &[&format!("shape {number}")]),
        _ => all.filtered(&format!("id > -{number}"), &[]).columns(&["id", "k"]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_written_while_shapes_are_made_are_neither_lost_nor_doubled() {
    let database = database("stitching").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
             INSERT INTO items SELECT i, i % 10, 'start' FROM generate_series(0, 300) i",
        )
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let stop = Arc::new(AtomicBool::new(false));
    let committed = Arc::new(AtomicU32::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            tokio::spawn(write(database.url.clone(), number, Arc::clone(&stop), Arc::clone(&committed)))
        })
        .collect();
    let mut clients: Vec<ShapeClient> = Vec::new();
    for group in (0..SHAPES).collect::<Vec<_>>().chunks(AT_ONCE) {
        let before = committed.load(Ordering::Relaxed);
        let made: Vec<_> = group
            .iter()
            .map(|number| {
                let mut client = service.follow(request(*number));
                tokio::spawn(async move {
                    client.sync().await.map(|()| client).unwrap_or_else(|error| panic!("{error}"))
                })
            })
            .collect();
        for task in made {
            clients.push(task.await.expect("the client ended"));
        }
        // Each group is made within other transactions than the one before.
        until("the writers go on", async || {
            (committed.load(Ordering::Relaxed) > before + WRITERS).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in writers {
        task.await.expect("the writer ended");
    }
    assert!(committed.load(Ordering::Relaxed) > SHAPES, "there was load");
    let postgres = database.client().await;
    let mut handles = Vec::new();
    for client in &mut clients {
        // Fails where a row is missing, too much, or different, and where any operation came twice or
        // met a row that should not, or should, have been there.
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}: {:?}", client.request(), client.refetches());
        handles.push(super::handle(client));
    }
    handles.sort();
    handles.dedup();
    assert_eq!(handles.len(), SHAPES as usize, "each is a shape of its own");
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

async fn rows(database: &TestDatabase, client: &ShapeClient, table: &Table) -> crate::support::Rows {
    rows_in_postgres(&database.client().await, table, client.request()).await.expect("rows of the table")
}

/// A transaction that wrote before the table was published and commits after the snapshot would be in
/// neither: the snapshot waits for it, and no writer waits for the snapshot.
#[tokio::test]
async fn a_transaction_that_wrote_before_publication_is_waited_for() {
    let database = database("fence").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'start'), (2, 'start');
             ALTER TABLE items REPLICA IDENTITY FULL",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let open = database.client().await;
    open.batch_execute(
        "BEGIN; INSERT INTO items VALUES (3, 'before publication'); UPDATE items SET v = 'too' WHERE id = 1",
    )
    .await
    .expect("the test's SQL is right");
    let mut client = service.follow(ShapeRequest::table("items"));
    let waits = tokio::spawn(async move {
        client.sync().await.unwrap_or_else(|error| panic!("{error}"));
        client
    });
    let publication = format!("electric_publication_{}", database.name);
    until("the table is published", async || {
        let sql = format!(
            "SELECT 1 FROM pg_publication_tables WHERE pubname = '{publication}' AND tablename = 'items'"
        );
        database.value(&sql).await.map(|_| ())
    })
    .await;
    // Others write meanwhile, and are not held up: this returns while the transaction is open.
    database.execute("INSERT INTO items VALUES (4, 'after publication')").await;
    database.execute("UPDATE items SET v = 'after publication' WHERE id = 2").await;
    assert!(!waits.is_finished(), "no rows before that transaction has ended");
    open.batch_execute("COMMIT").await.expect("it can commit");
    let mut client = waits.await.expect("the client ended");
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(client.rows(), &rows(&database, &client, &ITEMS).await);
    assert_eq!(client.rows().len(), 4);
    assert!(client.refetches().is_empty(), "{:?}", client.refetches());
}

/// The same for transactions that are still open when the snapshot is taken, but wrote after the table
/// was published: what they write comes with the log, once.
#[tokio::test]
async fn a_transaction_that_is_open_during_the_snapshot_comes_with_the_log() {
    let database = database("open").await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'start')")
        .await;
    let service = Service::start(&database, |_| {}).await;
    // Published by another shape.
    let mut first = service.follow(ShapeRequest::table("items"));
    first.sync().await.expect("the shape is made");
    let open = database.client().await;
    open.batch_execute(
        "BEGIN; INSERT INTO items VALUES (2, 'open'); UPDATE items SET v = 'open' WHERE id = 1",
    )
    .await
    .expect("the test's SQL is right");
    let mut second = service.follow(ShapeRequest::table("items").filtered("id > 0", &[]));
    let waits = tokio::spawn(async move {
        second.sync().await.unwrap_or_else(|error| panic!("{error}"));
        second
    });
    // Whether the shape waits for that transaction is its own affair; in either case nothing is lost.
    database.execute("INSERT INTO items VALUES (3, 'beside')").await;
    let postgres = database.client().await;
    until("the first shape has what was committed", async || {
        first.sync().await.ok()?;
        (first.rows().len() == 2).then_some(())
    })
    .await;
    open.batch_execute("COMMIT").await.expect("it can commit");
    let mut second = waits.await.expect("the client ended");
    for client in [&mut first, &mut second] {
        catch_up(client, &ITEMS, &postgres).await;
        assert_eq!(client.rows().len(), 3);
        assert!(client.refetches().is_empty(), "{:?}", client.refetches());
    }
}
