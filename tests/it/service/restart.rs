//! The end of a process under load, in order or not, and the next one on the same data.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shapefold_xtask::journal::explains_end;
use tokio::task::JoinHandle;

use super::{
    ITEMS, OWN_FILES, PACKED, acknowledged, catch_up, current_lsn, fresh, handle, health_message,
    journal_is_sound, journal_tail, until,
};
use crate::support::{ClientError, Service, ShapeClient, ShapeRequest, TestDatabase, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 200) i";

fn requests() -> Vec<ShapeRequest> {
    vec![
        ShapeRequest::table("items"),
        ShapeRequest::table("items").filtered("k = 1", &[]),
        ShapeRequest::table("items").filtered("k = $1 OR id < $2", &["2", "50"]),
        ShapeRequest::table("items").filtered("v LIKE 'round%'", &[]),
        ShapeRequest::table("items").columns(&["id", "k"]),
    ]
}

/// Writes until told to stop; how many transactions it has committed.
fn writer(database: &TestDatabase, number: u32) -> (Arc<AtomicBool>, JoinHandle<u32>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let url = database.url.clone();
    let task = tokio::spawn(async move {
        let client = shapefold_xtask::postgres::connect(&url).await.expect("Postgres accepts connections");
        let mut committed = 0;
        while !stopped.load(Ordering::Relaxed) {
            let id = 1_000 + number * 100_000 + committed;
            let sql = format!(
                "BEGIN; INSERT INTO items VALUES ({id}, {id} % 4, 'round {committed}');
                 UPDATE items SET k = (k + 1) % 4, v = 'round {committed}' WHERE id = {} + {number};
                 DELETE FROM items WHERE id = {id} - 5; COMMIT",
                committed % 190
            );
            client.batch_execute(&sql).await.expect("the test's SQL is right");
            committed += 1;
        }
        committed
    });
    (stop, task)
}

/// Follows like a client that is there all the time; a service that is away is asked again.
fn follower(mut client: ShapeClient) -> (Arc<AtomicBool>, JoinHandle<ShapeClient>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let task = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            match client.sync().await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(ClientError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{:?}: {error}", client.request()),
            }
        }
        client
    });
    (stop, task)
}

async fn all_equal(
    service: &Service,
    clients: &mut [ShapeClient],
    database: &TestDatabase,
    handles: &[String],
) {
    let postgres = database.client().await;
    for (client, known) in clients.iter_mut().zip(handles) {
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}: {:?}", client.request(), client.refetches());
        assert_eq!(client.handle(), Some(&**known), "{:?}", client.request());
        let again = fresh(service, client).await;
        assert_eq!(again.rows(), client.rows(), "from the beginning: {:?}", client.request());
        assert_eq!(again.handle(), Some(&**known));
        assert_eq!(again.anomaly_count(), 0, "{:?}", again.anomalies());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_nothing_and_refetches_nothing() {
    let database = database("kill").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings.set(PACKED.0, PACKED.1);
    })
    .await;
    let mut clients: Vec<ShapeClient> =
        requests().into_iter().map(|request| service.follow(request)).collect();
    for client in &mut clients {
        client.sync().await.expect("the shape is made");
    }
    let handles: Vec<String> = clients.iter().map(handle).collect();
    let writers: Vec<_> = (0..3).map(|number| writer(&database, number)).collect();
    let postgres = database.client().await;
    for round in 0..4 {
        let followers: Vec<_> = clients.drain(..).map(follower).collect();
        // Killed while it is at it: something was acknowledged in this round, and more is coming.
        let from = current_lsn(&postgres).await;
        until("the service acknowledges under load", async || {
            (acknowledged(&database, &postgres).await > from).then_some(())
        })
        .await;
        service.kill9();
        service.restart().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        for (stop, task) in followers {
            stop.store(true, Ordering::Relaxed);
            let client = task.await.expect("the follower ended");
            assert!(client.refetches().is_empty(), "round {round}: {:?}", client.refetches());
            clients.push(client);
        }
    }
    for (stop, task) in writers {
        stop.store(true, Ordering::Relaxed);
        assert!(task.await.expect("the writer ended") > 10, "there was load");
    }
    all_equal(&service, &mut clients, &database, &handles).await;
    let committed = current_lsn(&postgres).await;
    until("everything is acknowledged", async || {
        (acknowledged(&database, &postgres).await >= committed).then_some(())
    })
    .await;
    service.kill9();
    journal_is_sound(service.data_dir());
    assert_eq!(journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_restart_under_load_goes_on_where_it_was() {
    let database = database("graceful").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings.set(PACKED.0, PACKED.1);
    })
    .await;
    let mut clients: Vec<ShapeClient> =
        requests().into_iter().map(|request| service.follow(request)).collect();
    for client in &mut clients {
        client.sync().await.expect("the shape is made");
    }
    let handles: Vec<String> = clients.iter().map(handle).collect();
    for round in 0..3 {
        let (stop, task) = writer(&database, round);
        let followers: Vec<_> = clients.drain(..).map(follower).collect();
        let postgres = database.client().await;
        let from = current_lsn(&postgres).await;
        until("the service acknowledges under load", async || {
            (acknowledged(&database, &postgres).await > from).then_some(())
        })
        .await;
        assert!(service.terminate().await, "exit 0 in round {round}: {}", service.output());
        service.restart().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        stop.store(true, Ordering::Relaxed);
        task.await.expect("the writer ended");
        for (stop, task) in followers {
            stop.store(true, Ordering::Relaxed);
            clients.push(task.await.expect("the follower ended"));
        }
        all_equal(&service, &mut clients, &database, &handles).await;
    }
    // Many transactions at the time of the end, none of them twice: the client has counted.
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

/// What a client has read may be lost with the page cache or the process: it waits until the log is
/// there again, and is not sent away.
#[tokio::test]
async fn a_client_ahead_of_the_log_waits_for_it() {
    let database = database("ahead").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |_| {}).await;
    let postgres = database.client().await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let known = handle(&client);
    // A copy of the data, to which the log is set back; the slot keeps what comes from here on.
    assert!(service.terminate().await, "{}", service.output());
    let copy = tempfile::tempdir().expect("a temporary folder");
    let copied = std::process::Command::new("cp").arg("-a").arg(service.data_dir()).arg(copy.path()).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let slot = format!("electric_slot_{}", database.name);
    let copied_slot = format!("SELECT pg_copy_logical_replication_slot('{slot}', '{slot}_kept')");
    database.execute(&copied_slot).await;

    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("UPDATE items SET v = 'read by the client'").await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    let offset = client.offset().to_owned();
    service.kill9();

    // Back to before: the log, and the slot that feeds it.
    std::fs::remove_dir_all(service.data_dir()).expect("the data is ours");
    std::fs::rename(copy.path().join("data"), service.data_dir()).expect("one file system");
    until("the slot is free", async || {
        let sql = format!("SELECT pg_drop_replication_slot('{slot}')");
        postgres.batch_execute(&sql).await.ok()
    })
    .await;
    database
        .execute(&format!(
            "SELECT pg_copy_logical_replication_slot('{slot}_kept', '{slot}'); SELECT pg_drop_replication_slot('{slot}_kept')"
        ))
        .await;
    // Locked, so that the service comes up without the stream: the client is ahead of the log.
    postgres
        .batch_execute(&format!("SELECT pg_advisory_lock(hashtext('{slot}'))"))
        .await
        .expect("the lock is free");
    service.relaunch().expect("the process starts");
    health_message(&mut service, "waiting", "lock").await;
    let live = format!("/v1/shape?table=items&handle={known}&offset={offset}&live=true");
    let mut http = service.http();
    let waits = tokio::spawn(async move { http.get(&live).await.expect("an answer") });
    postgres
        .batch_execute(&format!("SELECT pg_advisory_unlock(hashtext('{slot}'))"))
        .await
        .expect("the lock is ours");
    database.execute("UPDATE items SET v = 'after' WHERE id = 1").await;
    let answer = waits.await.expect("the request ended");
    assert_eq!(answer.status, 200, "{}", answer.text());
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert_eq!(fresh(&service, &client).await.rows(), client.rows());
}

#[tokio::test]
async fn a_snapshot_that_kill_9_cut_short_is_a_409_that_the_journal_explains() {
    let database = database("cutshort").await;
    database
        .execute("CREATE TABLE small (id int PRIMARY KEY, v text); INSERT INTO small VALUES (1, 'a')")
        .await;
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "100000");
        settings.set(OWN_FILES.0, OWN_FILES.1);
    })
    .await;
    let mut other = service.follow(ShapeRequest::table("small"));
    other.sync().await.expect("the other shape is made");
    let mut rows = 15_000;
    let known = loop {
        if let Some(known) = cut_short(&database, &mut service, rows).await {
            break known;
        }
        // The machine was too fast: all rows were there before the kill.
        rows *= 4;
        assert!(rows < 4_000_000, "the snapshot is always complete");
        service.restart().await.unwrap_or_else(|error| panic!("{error}"));
        other.redirect(service.address());
    };

    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    other.redirect(service.address());
    let answer = service.get(&format!("/v1/shape?table=items&handle={known}&offset=0_0")).await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    let next = answer.header("electric-handle").expect("its successor").to_owned();
    assert_ne!(next, known);
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the new shape is served");
    assert_eq!((client.rows().len(), handle(&client)), (rows, next));
    database.execute("INSERT INTO small VALUES (2, 'b')").await;
    let small = crate::support::Table { name: "small", primary_key: &["id"] };
    catch_up(&mut other, &small, &database.client().await).await;
    assert!(other.refetches().is_empty(), "a shape with a complete snapshot goes on");
    assert!(service.terminate().await, "{}", service.output());
    let history = journal_tail(service.data_dir(), &[]);
    assert!(explains_end(&history, &known), "{}", journal_tail(service.data_dir(), &["--shape", &known]));
    journal_is_sound(service.data_dir());
    assert_eq!(definition_file(service.data_dir(), &known), None, "its files are gone");
    assert!(definition_file(service.data_dir(), &handle(&other)).is_some());
}

/// Kills the service while it takes a snapshot of so many rows, and gives the shape's handle; `None`
/// where the snapshot was complete by then.
async fn cut_short(database: &TestDatabase, service: &mut Service, rows: usize) -> Option<String> {
    database
        .execute(&format!(
            "DROP TABLE IF EXISTS items; CREATE TABLE items (id int PRIMARY KEY, v text);
             INSERT INTO items SELECT i, repeat('x', 1000) FROM generate_series(1, {rows}) i"
        ))
        .await;
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    let known = first.header("electric-handle").expect("a handle").to_owned();
    service.kill9();
    let history = journal_tail(service.data_dir(), &["--shape", &known]);
    (!history.contains("SnapshotCompleted")).then_some(known)
}

/// A rollback to an older version: what a newer one wrote is refused by name, and left as it is.
#[tokio::test]
async fn a_shape_of_a_newer_version_is_refused_and_left_alone() {
    let database = database("newer").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings.set(OWN_FILES.0, OWN_FILES.1);
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let known = handle(&client);
    assert!(service.terminate().await, "{}", service.output());

    let definition = definition_file(service.data_dir(), &known).expect("the shape has a definition");
    let own = std::fs::read(&definition).expect("the definition is there");
    // Version 2, with a checksum that is right: docs/shape-log-format.md.
    let mut newer = own.clone();
    newer[4] = 2;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&newer[..12]), &newer[16..]);
    newer[12..16].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&definition, &newer).expect("the definition can be replaced");
    service.relaunch().expect("the process starts");
    until("the process has ended", async || service.try_wait()).await;
    let output = service.output();
    assert!(
        output.contains("shape definition of version 2, newest known 1; nothing was changed"),
        "{output}"
    );
    assert_eq!(std::fs::read(&definition).expect("the definition is still there"), newer);

    std::fs::write(&definition, &own).expect("the definition can be replaced");
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(service.address());
    database.execute("UPDATE items SET v = 'later' WHERE id < 20").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

fn definition_file(data_dir: &Path, handle: &str) -> Option<PathBuf> {
    let shards = std::fs::read_dir(data_dir.join("shapes")).expect("there are shapes");
    shards
        .map(|shard| shard.expect("a shard").path().join(handle).join("definition"))
        .find(|path| path.exists())
}
