//! An orderly end: whom it answers, whom it does not wait for, and who takes over.

use std::time::{Duration, Instant};

use super::{ITEMS, catch_up, handle, health_message, journal_is_sound, until};
use crate::support::{Service, ShapeRequest, WAIT_DURATION_MAX, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 200) i";

/// A snapshot that is being taken does not hold up an orderly end: it starts over in the next process.
#[tokio::test]
async fn a_drain_does_not_wait_for_a_snapshot() {
    let database = database("drainsnap").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, v text); ALTER TABLE items REPLICA IDENTITY FULL;
             INSERT INTO items VALUES (1, 'a')",
        )
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    // A writer that stays open keeps the snapshot from being taken, for as long as the test likes.
    let open = database.client().await;
    open.batch_execute("BEGIN; INSERT INTO items VALUES (2, 'open')").await.expect("the test's SQL is right");
    let mut http = service.http();
    let waits =
        tokio::spawn(async move { http.get("/v1/shape?table=items&offset=-1").await.expect("an answer") });
    let publication = format!("electric_publication_{}", database.name);
    until("the table is published", async || {
        let sql = format!(
            "SELECT 1 FROM pg_publication_tables WHERE pubname = '{publication}' AND tablename = 'items'"
        );
        database.value(&sql).await.map(|_| ())
    })
    .await;
    let begun = Instant::now();
    assert!(service.terminate().await, "exit 0: {}", service.output());
    assert!(begun.elapsed() < Duration::from_secs(20), "it did not wait for the snapshot");
    let answer = waits.await.expect("the request ended");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    open.batch_execute("COMMIT").await.expect("it can commit");
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(client.rows().len(), 2);
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

#[tokio::test]
async fn a_second_instance_waits_and_takes_over() {
    let database = database("second").await;
    database.execute(TABLE).await;
    let mut first = Service::start(&database, |_| {}).await;
    let mut client = first.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let known = handle(&client);
    let mut second = first.spawn_beside(&database, |_| {});
    let message =
        health_message(&mut second, "waiting", "Timeout waiting for Postgres lock acquisition").await;
    assert_eq!(message, "Timeout waiting for Postgres lock acquisition");
    let mut http = crate::support::HttpClient::new(second.address());
    let refused = http.get("/v1/shape?table=items&offset=-1&where=id%3D1").await.expect("it answers");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{}", refused.text());
    assert_eq!(refused.text(), r#"{"message":"Timeout waiting for Postgres lock acquisition"}"#);

    database.execute("UPDATE items SET v = 'by the first' WHERE id < 100").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(second.health().await, Some(202), "it still waits");
    assert!(first.terminate().await, "{}", first.output());
    second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(second.address());
    database.execute("UPDATE items SET v = 'by the second' WHERE id > 50").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));

    // The other way round, without a goodbye.
    first.relaunch().expect("the process starts");
    health_message(&mut first, "waiting", "lock").await;
    second.kill9();
    first.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(first.address());
    database.execute("DELETE FROM items WHERE id > 150").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(client.refetches().is_empty(), "{:?}", client.refetches());
    assert!(first.terminate().await, "{}", first.output());
    journal_is_sound(first.data_dir());
}

#[tokio::test]
async fn a_drain_answers_who_waits_at_once_and_exits_0() {
    let database = database("drain").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        // Far longer than the test may take: an answer that waits for it fails the test.
        settings.set("ELECTRIC_LONG_POLL_TIMEOUT", "60000");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let path =
        format!("/v1/shape?table=items&handle={}&offset={}&live=true", handle(&client), client.offset());
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (mut http, path) = (service.http(), path.clone());
            tokio::spawn(async move { http.get(&path).await })
        })
        .collect();
    // The service has read all twenty requests: from here on it owes each an answer.
    until("all twenty connections are open", async || {
        let port = format!(":{:04X}", service.address().port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let open = table
            .lines()
            .filter(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // State 01 is ESTABLISHED; the service's end, with nothing left unread.
                fields.get(1).is_some_and(|local| local.ends_with(&port))
                    && fields.get(3) == Some(&"01")
                    && fields.get(4).is_some_and(|queues| queues.ends_with(":00000000"))
            })
            .count();
        (open >= 20).then_some(())
    })
    .await;
    let begun = Instant::now();
    assert!(service.terminate().await, "exit 0: {}", service.output());
    assert!(begun.elapsed() < Duration::from_secs(30), "it did not wait for the long-polls");
    for answer in waiting {
        let answer = answer.await.expect("the request ended").expect("an answer, not a broken connection");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body = answer.json();
        assert_eq!(body.as_array().map(Vec::len), Some(1), "{body}");
        assert_eq!(body[0]["headers"]["control"], "up-to-date");
        assert_eq!(answer.header("electric-has-data"), Some("false"));
        assert_eq!(answer.header("electric-offset"), Some(client.offset()));
    }
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("DELETE FROM items WHERE id = 7").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(client.refetches().is_empty());
}
