//! The slot, the publication and the history of Postgres, while a service runs on them.

use std::time::Duration;

use shapefold_xtask::journal::explains_end;

use crate::service::{
    ITEMS, PrivatePostgres, catch_up, handle, health_message, journal_is_sound, journal_tail, until,
};
use crate::support::{Service, ShapeClient, ShapeRequest, TestDatabase, WAIT_DURATION_MAX, database};

pub(super) const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

/// A service with one shape, and its handle.
pub(super) async fn running(database: &TestDatabase) -> (Service, ShapeClient, String) {
    database.execute(TABLE).await;
    let service = Service::start(database, |settings| {
        settings
            .set("ELECTRIC_LONG_POLL_TIMEOUT", "500")
            .set("ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD", "1s");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let before = handle(&client);
    (service, client, before)
}

/// The client is told to start over, once, and has the rows of now; the journal says why.
pub(super) async fn starts_over(
    database: &TestDatabase,
    service: &mut Service,
    client: &mut ShapeClient,
    before: &str,
    cause: &str,
) {
    until("the client is sent away", async || {
        let _unavailable = client.sync().await;
        (!client.refetches().is_empty()).then_some(())
    })
    .await;
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(client, &ITEMS, &database.client().await).await;
    assert_eq!(client.refetches().len(), 1, "{:?}", client.refetches());
    assert!(service.terminate().await, "{}", service.output());
    let history = journal_tail(service.data_dir(), &[]);
    assert!(explains_end(&history, before), "{history}");
    assert!(history.contains(cause), "{cause} is not in\n{history}");
    journal_is_sound(service.data_dir());
}

/// Ends the stream and drops the slot before the service is back.
#[tokio::test]
async fn a_slot_that_is_dropped_under_a_running_service() {
    let database = database("dropslot").await;
    let (mut service, mut client, before) = running(&database).await;
    let slot = format!("electric_slot_{}", database.name);
    until("the slot is dropped", async || {
        database
            .value(&format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"))
            .await;
        let dropped = database.client().await.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
        dropped.is_ok().then_some(())
    })
    .await;
    starts_over(&database, &mut service, &mut client, &before, "NewSlot").await;
}

#[tokio::test]
async fn a_publication_that_is_dropped_under_a_running_service() {
    let database = database("droppub").await;
    let (mut service, mut client, before) = running(&database).await;
    database.execute(&format!("DROP PUBLICATION electric_publication_{}", database.name)).await;
    // The next change cannot be decoded: that is when Postgres says so. From 18 on it passes over it in
    // silence, and the look at the catalog finds out.
    database.execute("UPDATE items SET v = 'published to nobody' WHERE id = 1").await;
    starts_over(&database, &mut service, &mut client, &before, "NewPublication").await;
}

/// Postgres throws the log away that the slot would need.
#[tokio::test]
async fn a_slot_that_postgres_invalidates() {
    let server = PrivatePostgres::start().await;
    let database = server.database("toolong").await;
    let (mut service, mut client, before) = running(&database).await;
    assert!(service.terminate().await, "{}", service.output());
    database.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'").await;
    database.execute("ALTER SYSTEM SET max_wal_size = '64MB'").await;
    database.execute("SELECT pg_reload_conf()").await;
    let status = format!(
        "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'electric_slot_{}'",
        database.name
    );
    until("the slot is lost", async || {
        database.execute("UPDATE items SET v = v || '.' WHERE id = 1; SELECT pg_switch_wal()").await;
        database.execute("CHECKPOINT").await;
        (database.value(&status).await.as_deref() == Some("lost")).then_some(())
    })
    .await;
    service.relaunch().expect("the process starts");
    starts_over(&database, &mut service, &mut client, &before, "SlotLost").await;
}

/// A server that was recovered continues on another timeline: what it lost nobody knows.
#[tokio::test]
async fn another_timeline_is_another_history() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("timeline").await;
    let (mut service, mut client, before) = running(&database).await;
    assert!(service.terminate().await, "{}", service.output());
    database.execute("ALTER SYSTEM SET restore_command = 'false'").await;
    server.stop();
    let signal = server.folder.path().join("postgres/cluster/recovery.signal");
    std::fs::write(&signal, "").expect("the cluster is ours");
    server.start_again().await;
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    until("the server is promoted", async || {
        let recovering = database.value("SELECT pg_is_in_recovery()").await;
        (recovering.as_deref() == Some("f")).then_some(())
    })
    .await;
    assert_eq!(database.value(timeline).await.as_deref(), Some("00000002"));
    service.relaunch().expect("the process starts");
    starts_over(&database, &mut service, &mut client, &before, "Timeline").await;
    assert!(!signal.exists(), "the server has seen it");
}

#[tokio::test]
async fn another_server_is_another_history() {
    let server = PrivatePostgres::start().await;
    let elsewhere = server.database("elsewhere").await;
    let database = database("systemid").await;
    let (mut service, mut client, before) = running(&database).await;
    assert!(service.terminate().await, "{}", service.output());
    elsewhere.execute(TABLE).await;
    elsewhere.execute("UPDATE items SET v = 'of another server'").await;
    service.settings_mut().database_url = elsewhere.url.clone();
    service.relaunch().expect("the process starts");
    starts_over(&elsewhere, &mut service, &mut client, &before, "SystemId").await;
}

/// A database in which nothing happens, beside one in which much does: the slot moves all the same.
#[tokio::test]
async fn an_idle_database_in_a_busy_server_keeps_no_log() {
    let idle = database("idledb").await;
    let busy = database("busydb").await;
    busy.execute("CREATE TABLE noise (id int, v text)").await;
    let (_service, _client, _before) = running(&idle).await;
    // Positions of a young server fit into a signed number.
    let confirmed = format!(
        "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = 'electric_slot_{}'",
        idle.name
    );
    let end = "SELECT (pg_current_wal_lsn() - '0/0')::int8";
    let number =
        async |sql: &str| -> i64 { idle.value(sql).await.expect("a position").parse().expect("a number") };
    for round in 0..3 {
        busy.execute("INSERT INTO noise SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i").await;
        let written = number(end).await;
        until(&format!("round {round}: the slot has moved"), async || {
            (number(&confirmed).await >= written).then_some(())
        })
        .await;
    }
}

/// The slot cannot be made while a transaction runs: told, and done when it has ended.
#[tokio::test]
async fn a_start_waits_for_transactions_and_says_so() {
    let database = database("pending").await;
    database.execute(TABLE).await;
    let mut blocking = database.client().await;
    let transaction = blocking.transaction().await.expect("a transaction");
    transaction.batch_execute("UPDATE items SET v = 'pending' WHERE id = 1").await.expect("it is written");
    let mut service = Service::spawn(&database, |settings| {
        settings.set("SHAPEFOLD_TEST_NOTICE_MS", "100");
    });
    let text = "Timeout waiting for replication client to be ready. Check that you don't have pending \
                transactions in the database.";
    health_message(&mut service, "waiting", text).await;
    let answer = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    assert!(answer.text().contains(text), "{}", answer.text());
    transaction.commit().await.expect("it commits");
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
}

/// A session that holds the lock and does not stream is ended; one that streams is waited for.
#[tokio::test]
async fn an_abandoned_lock_is_broken() {
    let database = database("stucklock").await;
    let (mut service, mut client, before) = running(&database).await;
    assert!(service.terminate().await, "{}", service.output());
    let stuck = database.client().await;
    let lock = format!("SELECT pg_advisory_lock(hashtext('electric_slot_{}'))", database.name);
    stuck.batch_execute(&lock).await.expect("nobody else holds it");
    service.settings_mut().set("SHAPEFOLD_TEST_NOTICE_MS", "200");
    service.relaunch().expect("the process starts");
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(service.output().contains("ended a backend that held the lock"), "{}", service.output());
    until("the session is gone", async || stuck.is_closed().then_some(())).await;
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (before, 0));
    // One that streams is left alone, however long it holds the lock.
    let mut waiting = service.spawn_beside(&database, |settings| {
        settings.data_dir = settings.data_dir.with_file_name("beside");
        settings.set("SHAPEFOLD_TEST_NOTICE_MS", "50");
    });
    health_message(&mut waiting, "waiting", "Timeout waiting for Postgres lock acquisition").await;
    tokio::time::timeout(Duration::from_millis(600), async {
        while service.health().await == Some(200) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect_err("it goes on streaming");
    drop(waiting);
}

/// The slot is one that standbys keep, where Postgres has such slots.
#[tokio::test]
async fn slots_are_kept_over_a_failover_where_postgres_can() {
    let database = database("failover").await;
    let _service = Service::start(&database, |_| {}).await;
    let failover = format!(
        "SELECT to_jsonb(s) ->> 'failover' FROM pg_replication_slots s WHERE slot_name = 'electric_slot_{}'",
        database.name
    );
    let version = database.value("SHOW server_version_num").await.expect("a version");
    let expected = (version.parse::<u32>().expect("a number") >= 170_000).then(|| "true".to_owned());
    assert_eq!(database.value(&failover).await, expected);
}
