//! Storage in memory, the limit of shapes, sleeping while nothing happens, names of slots.

use super::{metric, text};
use crate::service::{ITEMS, catch_up, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeRequest, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

#[tokio::test]
async fn what_is_in_memory_goes_with_the_process() {
    let database = database("memory").await;
    database.execute(TABLE).await;
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder = temporary.path().to_str().expect("a plain name").to_owned();
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_STORAGE", "memory").set("TMPDIR", folder);
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let before = handle(&client);
    let files = || std::fs::read_dir(temporary.path()).expect("it is there").count();
    assert_eq!(files(), 1, "one directory, for this process");
    assert!(!service.data_dir().exists(), "the configured directory is left alone");
    assert!(service.terminate().await, "{}", service.output());
    assert_eq!(files(), 0, "removed at the end");

    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("UPDATE items SET v = 'later'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_ne!(handle(&client), before, "nothing survives");
    assert_eq!(client.refetches().len(), 1, "and the client was told so");
}

/// The least recently used ones go, their clients are sent to new ones, and the journal says why.
#[tokio::test]
async fn shapes_above_the_limit_expire() {
    let database = database("expiry").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_MAX_SHAPES", "2")
            .set("SHAPEFOLD_SHAPE_EXPIRY_INTERVAL", "200ms")
            .set("ELECTRIC_LONG_POLL_TIMEOUT", "500")
            .set("ELECTRIC_PROMETHEUS_PORT", "0");
    })
    .await;
    let mut kept = service.follow(ShapeRequest::table("items"));
    kept.sync().await.expect("the first shape");
    let first = handle(&kept);
    let mut clients: Vec<_> = (1..=3)
        .map(|id| service.follow(ShapeRequest::table("items").filtered("id > $1", &[&id.to_string()])))
        .collect();
    for client in &mut clients {
        client.sync().await.expect("a shape");
        // Used in between: never the least recently used one.
        kept.sync().await.expect("the first shape is served");
    }
    let expired = "shapefold_invalidations_total{cause=\"expired\"}";
    until("two have expired", async || metric(&service, expired).await.filter(|count| *count >= 2.0)).await;
    kept.sync().await.expect("it is served");
    assert_eq!((handle(&kept), kept.refetches().len()), (first, 0), "it was in use");
    database.execute("UPDATE items SET v = 'after' WHERE id > 5").await;
    let postgres = database.client().await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
    }
    let refetches: usize = clients.iter().map(|client| client.refetches().len()).sum();
    assert!(refetches >= 2, "those whose shapes were ended began anew: {refetches}");
    assert!(service.terminate().await, "{}", service.output());
    let told = journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]);
    assert!(told.lines().count() >= 2 && told.lines().all(|line| line.contains("Expired")), "{told}");
    journal_is_sound(service.data_dir());
}

/// Without work there is no connection; health stays active, and the next request has everything that was
/// committed meanwhile.
#[tokio::test]
async fn connections_are_closed_while_nothing_happens() {
    let database = database("idle").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_REPLICATION_IDLE_TIMEOUT", "400ms").set("ELECTRIC_LONG_POLL_TIMEOUT", "300");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let known = handle(&client);
    let connections = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name LIKE 'shapefold%'",
        database.name
    );
    for round in 0..2 {
        until("all connections are closed", async || {
            (database.value(&connections).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        assert_eq!(service.health().await, Some(200), "asleep is active");
        assert_eq!(service.get("/v1/ready").await.status, 200);
        database.execute(&format!("UPDATE items SET v = 'asleep {round}'")).await;
        catch_up(&mut client, &ITEMS, &database.client().await).await;
        assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));
    }
    assert!(service.terminate().await, "{}", service.output());
    assert!(journal_tail(service.data_dir(), &["--kind", "StreamStopped"]).contains("Idle"));
    journal_is_sound(service.data_dir());
}

#[tokio::test]
async fn a_sleeping_service_ends_in_order() {
    let database = database("idleend").await;
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_REPLICATION_IDLE_TIMEOUT", "100ms");
    })
    .await;
    until("it sleeps", async || {
        service.output().contains("all connections to the database are closed").then_some(())
    })
    .await;
    assert!(service.terminate().await, "{}", service.output());
}

#[test]
fn a_short_idle_timeout_is_refused_in_a_release() {
    // Builds for tests take shorter ones; the limit itself is in the help.
    let help = super::shapefold(&["serve", "--help"], &[]);
    assert!(text(&help).contains("At least 30s"));
}

#[tokio::test]
async fn a_temporary_slot_may_have_a_name_of_its_own() {
    let database = database("randomslot").await;
    database.execute(TABLE).await;
    let start = async || {
        Service::start(&database, |settings| {
            settings
                .set("CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN", "true")
                .set("ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME", "true");
        })
        .await
    };
    // With the same stream id, at the same time: neither waits for the other.
    let (one, other) = (start().await, start().await);
    let slots = format!(
        "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = '{}' AND temporary",
        database.name
    );
    let names = database.value(&slots).await.expect("two slots");
    let names: Vec<&str> = names.split(' ').collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        let random = name.strip_prefix("electric_slot_").expect("the name of contract 4.1");
        assert!(random.len() == 32 && random.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    }
    for service in [&one, &other] {
        let mut client = service.follow(ShapeRequest::table("items"));
        catch_up(&mut client, &ITEMS, &database.client().await).await;
    }
    drop((one, other));
    until("the slots are gone", async || database.value(&slots).await.is_none().then_some(())).await;
}
