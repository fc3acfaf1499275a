//! What Postgres can no longer tell: shapes that may have missed something are not continued in silence.

use shapefold_xtask::journal::explains_end;

use super::{ITEMS, catch_up, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeClient, ShapeRequest, TestDatabase, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

/// Follows until the client has been sent away once and has the rows of now.
async fn sent_away_once(client: &mut ShapeClient, database: &TestDatabase, before: &str) {
    let postgres = database.client().await;
    until("the client is sent away", async || {
        // Unavailable while the service starts over.
        let _unavailable = client.sync().await;
        (!client.refetches().is_empty()).then_some(())
    })
    .await;
    catch_up(client, &ITEMS, &postgres).await;
    assert_eq!(client.refetches().len(), 1, "{:?}", client.refetches());
    assert_eq!(client.refetches()[0].old_handle, before);
    assert_ne!(client.handle(), Some(before));
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(client, &ITEMS, &postgres).await;
    assert_eq!(client.refetches().len(), 1, "{:?}", client.refetches());
}

async fn explained(service: &mut Service, before: &str) {
    assert!(service.terminate().await, "{}", service.output());
    let history = journal_tail(service.data_dir(), &[]);
    assert!(explains_end(&history, before), "{history}");
    journal_is_sound(service.data_dir());
}

async fn stopped_service(hint: &str) -> (TestDatabase, Service, ShapeClient, String) {
    let database = database(hint).await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let before = handle(&client);
    assert!(service.terminate().await, "{}", service.output());
    (database, service, client, before)
}

#[tokio::test]
async fn a_slot_that_was_dropped_meanwhile() {
    let (database, mut service, mut client, before) = stopped_service("slotgone").await;
    database.execute(&format!("SELECT pg_drop_replication_slot('electric_slot_{}')", database.name)).await;
    database.execute("UPDATE items SET v = 'seen by no slot' WHERE id = 1").await;
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    sent_away_once(&mut client, &database, &before).await;
    explained(&mut service, &before).await;
}

#[tokio::test]
async fn a_publication_that_was_dropped_meanwhile() {
    let (database, mut service, mut client, before) = stopped_service("pubgone").await;
    database.execute(&format!("DROP PUBLICATION electric_publication_{}", database.name)).await;
    database.execute("UPDATE items SET v = 'published to nobody' WHERE id = 1").await;
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    sent_away_once(&mut client, &database, &before).await;
    explained(&mut service, &before).await;
}

#[tokio::test]
async fn a_table_that_is_not_the_same_any_more() {
    let (database, mut service, mut client, before) = stopped_service("recreated").await;
    database
        .execute("DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (7, 'another')")
        .await;
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    sent_away_once(&mut client, &database, &before).await;
    explained(&mut service, &before).await;
}

#[tokio::test]
async fn a_table_that_changes_while_it_is_followed() {
    let database = database("altered").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut all = service.follow(ShapeRequest::table("items"));
    let mut some = service.follow(ShapeRequest::table("items").columns(&["id", "v"]));
    for client in [&mut all, &mut some] {
        client.sync().await.expect("the shape is made");
    }
    let (before, kept) = (handle(&all), handle(&some));
    database
        .execute("ALTER TABLE items ADD COLUMN w text DEFAULT 'new'; UPDATE items SET v = 'changed'")
        .await;
    sent_away_once(&mut all, &database, &before).await;
    assert!(all.rows().values().all(|row| row.contains_key("w")), "{:?}", all.rows());
    catch_up(&mut some, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&some), some.refetches().len()), (kept.clone(), 0), "it named its columns");
    database.execute("ALTER TABLE items DROP COLUMN w; ALTER TABLE items ALTER COLUMN v TYPE varchar(20); UPDATE items SET v = 'again'").await;
    sent_away_once(&mut some, &database, &kept).await;
    explained(&mut service, &kept).await;
}
