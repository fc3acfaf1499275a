//! What comes again after a connection was lost, and what the slot says.

use shapefold::domain::Lsn;
use shapefold::replication::{HistoryBroken, StartupNotice, connect_and_identify};

use crate::postgres::{Harness, WAIT_MAX, show};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_comes_again() {
    let harness = Harness::new("resume").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    let mut stream = harness.stream().await;
    assert!(stream.slot.created && stream.history_broken.is_none());
    harness.publish("items").await;
    harness.run("INSERT INTO items VALUES (1)").await;
    harness.run("INSERT INTO items VALUES (2)").await;
    let first = stream.transaction().await;
    assert_eq!(stream.shown().await, ["0 items + 2"]);
    drop(stream);

    let mut stream = harness.stream().await;
    assert!(!stream.slot.created);
    let again = stream.transaction().await;
    assert_eq!(show(&again), ["0 items + 1"]);
    assert_eq!((again.xid, again.lsn, again.end_lsn), (first.xid, first.lsn, first.end_lsn));
    stream.status.send_status(again.end_lsn);
    wait_confirmed(&harness, again.end_lsn).await;
    // An earlier position takes nothing back.
    stream.status.send_status(Lsn(1));
    assert_eq!(stream.status.acknowledged(), again.end_lsn);
    drop(stream);

    let mut stream = harness.stream().await;
    assert_eq!(stream.slot.confirmed_flush, again.end_lsn);
    assert_eq!(stream.shown().await, ["0 items + 2"], "the first one is acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_status_is_sent_when_a_stream_is_closed() {
    let harness = Harness::new("close").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness.run("INSERT INTO items VALUES (1)").await;
    let transaction = stream.transaction().await;
    stream.status.send_status(transaction.end_lsn);
    stream.transactions.close().await;
    assert_eq!(harness.stream().await.slot.confirmed_flush, transaction.end_lsn);
}

async fn wait_confirmed(harness: &Harness, lsn: Lsn) {
    let confirmed = async {
        loop {
            let row = harness
                .sql
                .query_one(
                    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
                    &[&harness.settings.slot],
                )
                .await
                .expect("the slot");
            if row.get::<_, &str>(0).parse() == Ok(lsn) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_MAX, confirmed).await.expect("the slot moves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_its_publication_is_made_anew_and_reported() {
    let harness = Harness::new("broken").await;
    let first = harness.stream().await.slot;
    harness.run(&format!("DROP PUBLICATION {}", harness.settings.publication)).await;
    let stream = harness.stream().await;
    assert_eq!(stream.history_broken, Some(HistoryBroken::PublicationCreated));
    assert!(stream.slot.created && stream.slot.confirmed_flush > first.confirmed_flush);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_waits_for_the_lock() {
    let harness = Harness::new("lock").await;
    let first = harness.ready().await;
    assert!(first.system_id != 0 && first.timeline > 0 && first.server_version >= 140_000);
    assert_eq!(first.database_oid.0, {
        let row =
            harness.sql.query_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[]);
        row.await.expect("the database").get::<_, u32>(0)
    });
    let (told, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let settings = harness.settings.clone();
    let second = tokio::spawn(async move {
        let mut notify = |notice| told.send(notice).expect("the test listens");
        connect_and_identify(&settings, &mut notify).await.map(|ready| ready.slot.created)
    });
    assert_eq!(notices.recv().await, Some(StartupNotice::WaitingForLock));
    drop(first);
    assert_eq!(notices.recv().await, Some(StartupNotice::LockTaken));
    assert!(!second.await.expect("no panic").expect("ready"), "the slot was there already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_slot_ends_with_its_connection() {
    let mut harness = Harness::new("temporary").await;
    harness.settings.temporary_slot = true;
    let stream = harness.stream().await;
    assert!(stream.slot.created && stream.slot.temporary);
    drop(stream);
    // The server ends the connection when it notices.
    let gone = async {
        loop {
            let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
            let row = harness.sql.query_one(slots, &[&harness.settings.slot]).await.expect("the slots");
            if row.get::<_, i64>(0) == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_MAX, gone).await.expect("the slot goes");
    assert!(harness.stream().await.slot.created);
}
