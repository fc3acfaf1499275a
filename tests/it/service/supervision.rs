//! One writer of a thousand panics.

use futures_util::StreamExt;
use shapefold_xtask::journal::explains_end;

use super::{
    ITEMS, acknowledged, catch_up, current_lsn, fresh, handle, journal_is_sound, journal_tail, until,
};
use crate::support::{Service, ShapeClient, ShapeRequest, database, said};

const SHAPES: usize = 1_000;
/// Shapes that are asked for at the same time.
const CONCURRENCY: usize = 32;
const VICTIM: usize = 417;

/// Every event of the given names about the victim, in order.
fn events<'a>(tail: &'a str, names: &[&str]) -> Vec<&'a str> {
    tail.lines().filter(|line| names.iter().any(|name| line.contains(&format!("{name} ")))).collect()
}

#[tokio::test]
async fn a_panic_in_one_writer_of_a_thousand_is_nobody_elses_business() {
    let database = database("supervision").await;
    let postgres = database.client().await;
    database
        .execute(&format!(
            "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
             CREATE TABLE others (id int PRIMARY KEY);
             INSERT INTO items SELECT i, i, 'start' FROM generate_series(0, {SHAPES} - 1) i"
        ))
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut clients: Vec<ShapeClient> = futures_util::stream::iter(0..SHAPES)
        .map(|k| {
            let request = ShapeRequest::table("items").filtered(&format!("k = {k}"), &[]);
            let mut client = service.follow(request);
            async move {
                client.sync().await.unwrap_or_else(|error| panic!("shape {k}: {error}"));
                client
            }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let handles: Vec<String> = clients.iter().map(handle).collect();

    // One writer each, alive.
    database.execute("UPDATE items SET v = 'first'").await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
    }

    let panic = format!("/test-hooks/panic?handle={}", handles[VICTIM]);
    let answer = service.http().request("POST", &panic, &[], b"").await.expect("the hook answers");
    assert_eq!(answer.status, 202, "{}", answer.text());
    database.execute("UPDATE items SET v = 'second'").await;
    // No traffic to the victim's table from here on: it recovers and is acknowledged by itself.
    let committed = current_lsn(&postgres).await;
    until("the transaction that the writer panicked at is acknowledged", async || {
        (acknowledged(&database, &postgres).await >= committed).then_some(())
    })
    .await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}", client.refetches());
        assert_eq!(client.messages(), 3, "one row, two updates: {:?}", client.request());
    }
    assert_eq!(clients.iter().map(handle).collect::<Vec<_>>(), handles);
    let again = fresh(&service, &clients[VICTIM]).await;
    assert_eq!((again.handle(), again.rows()), (clients[VICTIM].handle(), clients[VICTIM].rows()));
    said(&service, "a writer panicked");

    // A writer that was restarted is a writer like any other.
    database.execute("UPDATE items SET v = 'third'").await;
    catch_up(&mut clients[VICTIM], &ITEMS, &postgres).await;

    assert!(service.terminate().await, "{}", service.output());
    let tail = journal_tail(service.data_dir(), &["--shape", &handles[VICTIM]]);
    let story =
        events(&tail, &["ConsumerStarted", "ConsumerExited", "RestartScheduled", "Flushed", "Watermark"]);
    let position = |name: &str, part: &str, from: usize| {
        story[from..]
            .iter()
            .position(|line| line.contains(name) && line.contains(part))
            .map(|found| from + found)
            .unwrap_or_else(|| panic!("no {name} {part} after line {from} of\n{tail}"))
    };
    let exited = position("ConsumerExited", "Panicked", 0);
    let scheduled = position("RestartScheduled", "attempt: 1", exited);
    let started = position("ConsumerStarted", "", scheduled);
    position("Flush", "", started);
    let everyone = journal_tail(service.data_dir(), &["--kind", "ConsumerExited"]);
    assert_eq!(everyone.matches("Panicked").count(), 1, "{everyone}");
    let invalidated = journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]);
    assert_eq!(invalidated, "", "no shape has ended");
    journal_is_sound(service.data_dir());
}

/// A writer that panics as often as it tries: this shape is given up, and no other.
#[tokio::test]
async fn a_shape_whose_writer_never_gets_on_is_given_up_alone() {
    let database = database("givenup").await;
    let postgres = database.client().await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
             INSERT INTO items SELECT i, i % 3, 'start' FROM generate_series(1, 30) i",
        )
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut clients: Vec<ShapeClient> = (0..3)
        .map(|k| service.follow(ShapeRequest::table("items").filtered(&format!("k = {k}"), &[])))
        .collect();
    for client in &mut clients {
        client.sync().await.expect("the shape is made");
    }
    let handles: Vec<String> = clients.iter().map(handle).collect();
    let panic = format!("/test-hooks/panic?handle={}&times=100", handles[1]);
    let answer = service.http().request("POST", &panic, &[], b"").await.expect("the hook answers");
    assert_eq!(answer.status, 202, "{}", answer.text());
    database.execute("UPDATE items SET v = 'never in that shape'").await;
    let committed = current_lsn(&postgres).await;
    until("the shape is given up and holds back nothing", async || {
        (acknowledged(&database, &postgres).await >= committed).then_some(())
    })
    .await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
    }
    assert_eq!([0, 1, 0].to_vec(), clients.iter().map(|client| client.refetches().len()).collect::<Vec<_>>());
    let successor = clients[1].refetches()[0].new_handle.clone();
    assert_eq!(successor.as_deref(), clients[1].handle(), "the 409 names the next shape");
    assert_ne!(clients[1].handle(), Some(&*handles[1]));
    // The next shape of that definition is none the worse.
    database.execute("UPDATE items SET v = 'after'").await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
    }
    assert!(service.terminate().await, "{}", service.output());
    let tail = journal_tail(service.data_dir(), &["--shape", &handles[1]]);
    assert_eq!(events(&tail, &["ConsumerExited"]).len(), 4, "one writer and three more: {tail}");
    assert_eq!(events(&tail, &["RestartScheduled"]).len(), 3, "{tail}");
    assert!(tail.contains("WriterFailed"), "{tail}");
    assert!(explains_end(&tail, &handles[1]), "{tail}");
    let invalidated = journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]);
    assert_eq!(invalidated.lines().count(), 1, "{invalidated}");
    journal_is_sound(service.data_dir());
}

#[tokio::test]
async fn only_builds_for_tests_have_the_hook_and_only_for_shapes_that_exist() {
    let database = database("hook").await;
    let service = Service::start(&database, |_| {}).await;
    let unknown = service.http().request("POST", "/test-hooks/panic?handle=1-2", &[], b"").await;
    assert_eq!(unknown.expect("the hook answers").status, 404);
    let get = service.get("/test-hooks/panic").await;
    assert_eq!((get.status, get.text().as_str()), (404, "Not found"));
}
