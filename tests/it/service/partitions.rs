//! Partitioned tables: contract 4.7, with the name of the table that was asked for in every key.

use serde_json::json;

use super::{ITEMS, catch_up, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeClient, ShapeRequest, Table, TestDatabase, database, encode};

const LOW: Table = Table { name: "low", primary_key: &["id"] };
const HIGH: Table = Table { name: "high", primary_key: &["id"] };
const HIGHER: Table = Table { name: "higher", primary_key: &["id"] };
const OTHER: Table = Table { name: "other", primary_key: &["id"] };

/// `items` with `low` (its columns in another order), `high` and below that `higher`; and another table.
const TREE: &str = "
CREATE TABLE items (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id);
CREATE TABLE low (n int, dropped int, v text, id int PRIMARY KEY);
ALTER TABLE low DROP COLUMN dropped;
ALTER TABLE items ATTACH PARTITION low FOR VALUES FROM (0) TO (10);
CREATE TABLE high PARTITION OF items FOR VALUES FROM (10) TO (1000) PARTITION BY RANGE (id);
CREATE TABLE higher PARTITION OF high FOR VALUES FROM (50) TO (100);
CREATE TABLE other (id int PRIMARY KEY, v text, n int);
INSERT INTO items VALUES (1, 'a', 1), (2, 'b', 2), (51, 'c', 3);
INSERT INTO other VALUES (1, 'x', 1)";

async fn started(hint: &str) -> (TestDatabase, Service) {
    let database = database(hint).await;
    database.execute(TREE).await;
    let service = Service::start(&database, reconciling).await;
    (database, service)
}

/// What the stream does not tell is looked for every second.
fn reconciling(settings: &mut crate::support::ServiceSettings) {
    settings.set("ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD", "1s");
}

async fn follow(service: &Service, request: ShapeRequest) -> ShapeClient {
    let mut client = service.follow(request);
    client.sync().await.expect("the shape is served");
    client
}

async fn refetched(client: &mut ShapeClient) {
    let before = client.refetches().len();
    until("the shape ends", async || {
        client.sync().await.ok()?;
        (client.refetches().len() > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_level_is_followed_under_its_own_name() {
    let (database, mut service) = started("parts").await;
    let postgres = database.client().await;
    let of = |table: &str| ShapeRequest::table(table);
    let mut all = follow(&service, of("items")).await;
    let mut some = follow(&service, of("items").filtered("n >= $1 AND v <> 'z'", &["2"])).await;
    let mut keys = follow(&service, of("items").columns(&["id", "n"])).await;
    let mut low = follow(&service, of("low")).await;
    let mut high = follow(&service, of("high").filtered("n > 0", &[])).await;
    let mut higher = follow(&service, of("higher")).await;
    let mut other = follow(&service, of("other")).await;
    for sql in [
        "INSERT INTO items VALUES (3, 'd', 5), (52, 'e', 0), (53, 'f', 1)",
        "UPDATE items SET n = n + 1",
        "UPDATE items SET v = 'z' WHERE id IN (2, 51)",
        "UPDATE low SET v = 'y' WHERE id = 2",
        // From one partition to another and back, across levels.
        "UPDATE items SET id = 54 WHERE id = 1",
        "BEGIN; UPDATE items SET id = 4 WHERE id = 54; UPDATE items SET id = 55, n = 9 WHERE id = 4; COMMIT",
        "DELETE FROM items WHERE id = 52",
        "DELETE FROM low WHERE id = 3",
    ] {
        postgres.batch_execute(sql).await.expect("a write");
    }
    service = restarted(service).await;
    for client in [&mut all, &mut some, &mut keys, &mut low, &mut high, &mut higher, &mut other] {
        client.redirect(service.address());
    }
    postgres
        .batch_execute("INSERT INTO items VALUES (5, 'after', 7), (60, 'after', 7)")
        .await
        .expect("a write");
    for client in [&mut all, &mut some, &mut keys] {
        catch_up(client, &ITEMS, &postgres).await;
    }
    for (client, table) in
        [(&mut low, &LOW), (&mut high, &HIGH), (&mut higher, &HIGHER), (&mut other, &OTHER)]
    {
        catch_up(client, table, &postgres).await;
        assert!(client.refetches().is_empty(), "{}", table.name);
    }
    assert!(all.refetches().is_empty() && some.refetches().is_empty() && keys.refetches().is_empty());

    // A truncate of a partition ends the shapes of it and of what is above it.
    postgres.batch_execute("TRUNCATE higher").await.expect("a truncate");
    for client in [&mut all, &mut some, &mut keys] {
        refetched(client).await;
        catch_up(client, &ITEMS, &postgres).await;
    }
    refetched(&mut high).await;
    catch_up(&mut high, &HIGH, &postgres).await;
    refetched(&mut higher).await;
    catch_up(&mut low, &LOW, &postgres).await;
    assert!(low.refetches().is_empty() && other.refetches().is_empty());
    assert!(service.terminate().await);
    journal_is_sound(service.data_dir());
}

async fn restarted(mut service: Service) -> Service {
    assert!(service.terminate().await);
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    service
}

#[tokio::test]
async fn partitions_that_come_without_rows_end_nothing() {
    let (database, mut service) = started("newparts").await;
    let postgres = database.client().await;
    let mut all = follow(&service, ShapeRequest::table("items")).await;
    let mut some = follow(&service, ShapeRequest::table("items").filtered("v LIKE 'n%'", &[])).await;
    // One message is one transaction: made and filled at once.
    postgres
        .batch_execute(
            "CREATE TABLE third PARTITION OF items FOR VALUES FROM (1000) TO (2000);
             INSERT INTO items VALUES (1001, 'new', 1), (1002, 'old', 2)",
        )
        .await
        .expect("a partition");
    catch_up(&mut all, &ITEMS, &postgres).await;
    catch_up(&mut some, &ITEMS, &postgres).await;
    // It is given its identity before somebody changes a row of it, if nobody is faster than a second.
    identity_is_full(&database, "third").await;
    postgres.batch_execute("UPDATE items SET v = 'newer' WHERE id > 1000").await.expect("an update");
    // Attached, and empty: known before it has rows.
    postgres
        .batch_execute("CREATE TABLE fourth (v text, n int, id int PRIMARY KEY); ALTER TABLE items ATTACH PARTITION fourth FOR VALUES FROM (2000) TO (3000)")
        .await
        .expect("a partition");
    identity_is_full(&database, "fourth").await;
    postgres.batch_execute("INSERT INTO items VALUES (2001, 'n', 1)").await.expect("a row");
    // While the service is away.
    assert!(service.terminate().await);
    postgres
        .batch_execute(
            "CREATE TABLE fifth PARTITION OF items DEFAULT; INSERT INTO items VALUES (9999, 'nn', 1)",
        )
        .await
        .expect("a partition");
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    for client in [&mut all, &mut some] {
        client.redirect(service.address());
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}", client.refetches());
    }
    assert!(service.terminate().await);
    journal_is_sound(service.data_dir());
}

async fn identity_is_full(database: &TestDatabase, table: &str) {
    let sql = format!("SELECT relreplident FROM pg_class WHERE relname = '{table}'");
    until("the partition has its identity", async || {
        (database.value(&sql).await.as_deref() == Some("f")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rows_that_come_or_go_with_a_partition_end_the_shapes_above_it_alone() {
    let (database, mut service) = started("moveparts").await;
    let postgres = database.client().await;
    let mut all = follow(&service, ShapeRequest::table("items")).await;
    let mut low = follow(&service, ShapeRequest::table("low")).await;
    let mut high = follow(&service, ShapeRequest::table("high")).await;
    let mut other = follow(&service, ShapeRequest::table("other")).await;
    let first = handle(&all);
    for sql in [
        // The rows were written in the same transaction, when nobody published them.
        "BEGIN; CREATE TABLE full_one (LIKE items INCLUDING ALL); INSERT INTO full_one VALUES (5000, 'x', 1);
         ALTER TABLE items ATTACH PARTITION full_one FOR VALUES FROM (5000) TO (6000); COMMIT",
        "ALTER TABLE items DETACH PARTITION full_one",
        "ALTER TABLE items ATTACH PARTITION full_one FOR VALUES FROM (5000) TO (6000)",
        "DROP TABLE full_one",
        "ALTER TABLE items DETACH PARTITION low",
    ] {
        postgres.batch_execute(sql).await.expect("a change of partitions");
        refetched(&mut all).await;
        catch_up(&mut all, &ITEMS, &postgres).await;
    }
    // What was detached goes on by itself.
    postgres.batch_execute("INSERT INTO low (id, v, n) VALUES (7, 'alone', 1)").await.expect("a row");
    catch_up(&mut low, &LOW, &postgres).await;
    catch_up(&mut high, &HIGH, &postgres).await;
    catch_up(&mut other, &OTHER, &postgres).await;
    assert!(low.refetches().is_empty() && high.refetches().is_empty() && other.refetches().is_empty());
    // While the service is away.
    assert!(service.terminate().await);
    postgres.batch_execute("ALTER TABLE items DETACH PARTITION high").await.expect("a change of partitions");
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    for client in [&mut all, &mut high] {
        client.redirect(service.address());
    }
    catch_up(&mut all, &ITEMS, &postgres).await;
    assert_eq!(all.rows().len(), 0);
    catch_up(&mut high, &HIGH, &postgres).await;
    assert!(high.refetches().is_empty());
    assert!(service.terminate().await);
    journal_is_sound(service.data_dir());
    let told = journal_tail(service.data_dir(), &["--shape", &first]);
    assert!(told.contains("cause: PartitionsChanged"), "{told}");
}

/// Somebody else's publication may give changes of partitions the name of the table.
#[tokio::test]
async fn a_publication_by_the_root_is_followed_from_the_root() {
    let database = database("viaroot").await;
    let publication = format!("electric_publication_{}", database.name);
    database
        .execute(&format!(
            "{TREE};
             ALTER TABLE items REPLICA IDENTITY FULL; ALTER TABLE low REPLICA IDENTITY FULL;
             ALTER TABLE high REPLICA IDENTITY FULL; ALTER TABLE higher REPLICA IDENTITY FULL;
             CREATE PUBLICATION {publication} FOR TABLE items WITH (publish_via_partition_root = true)"
        ))
        .await;
    let mut service = Service::start(&database, |settings| {
        reconciling(settings);
        settings.set("ELECTRIC_MANUAL_TABLE_PUBLISHING", "true");
    })
    .await;
    let postgres = database.client().await;
    let mut all = follow(&service, ShapeRequest::table("items")).await;
    let mut some = follow(&service, ShapeRequest::table("items").filtered("n > 1", &[])).await;
    postgres
        .batch_execute("UPDATE items SET n = n + 1; INSERT INTO items VALUES (3, 'd', 5), (70, 'e', 0); UPDATE items SET id = 71 WHERE id = 1")
        .await
        .expect("writes");
    service = restarted(service).await;
    for client in [&mut all, &mut some] {
        client.redirect(service.address());
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty());
    }
    // Postgres does not send it.
    postgres.batch_execute("TRUNCATE low").await.expect("a truncate");
    refetched(&mut all).await;
    catch_up(&mut all, &ITEMS, &postgres).await;
    let answer = service.get("/v1/shape?table=low&offset=-1").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(
        answer.json(),
        json!({ "message": format!("Database table \"public.low\" cannot be followed: the publication \"{publication}\" has publish_via_partition_root set, so its changes come under the name of its partitioned table") })
    );
}

#[tokio::test]
async fn what_postgres_does_not_log_is_refused() {
    let database = database("unlogged").await;
    database
        .execute(
            "CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
             CREATE TABLE items (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE UNLOGGED TABLE \"quick.one\" PARTITION OF items FOR VALUES FROM (0) TO (10)",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    for (table, member) in [("quick", "quick"), ("items", "quick.one"), ("\"quick.one\"", "quick.one")] {
        let answer = service.get(&format!("/v1/shape?table={}&offset=-1", encode(table))).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        let message = answer.json()["message"].as_str().expect("a message").to_owned();
        let said = format!("Postgres does not log the changes of \"public.{member}\"");
        assert!(message.contains(&said), "{message}");
    }
    let none = "SELECT count(*) FROM pg_publication_rel";
    assert_eq!(database.value(none).await.as_deref(), Some("0"), "nothing was changed");
}
