//! Files that are no shape's, and files that are damaged: set aside and kept, never removed at once.

use std::fs;
use std::path::{Path, PathBuf};

use super::standby::place_of;
use super::{ITEMS, OWN_FILES, catch_up, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeClient, ShapeRequest, TestDatabase, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 50) i";
/// A look five times a second; an hour, and a moment, until what was set aside goes.
const KEPT: (&str, &str) = ("SHAPEFOLD_TEST_QUARANTINE", "200,3600000");
const DUE: (&str, &str) = ("SHAPEFOLD_TEST_QUARANTINE", "200,1");

async fn served(hint: &str) -> (TestDatabase, Service, ShapeClient) {
    let database = database(hint).await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |settings| {
        settings.set(KEPT.0, KEPT.1);
        settings.set(OWN_FILES.0, OWN_FILES.1);
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    database.execute("UPDATE items SET v = 'logged'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    (database, service, client)
}

fn directory_of(data_dir: &Path, handle: &str) -> Option<PathBuf> {
    let shards = fs::read_dir(data_dir.join("shapes")).expect("there are shapes");
    shards.map(|shard| shard.expect("an entry").path().join(handle)).find(|path| path.is_dir())
}

/// What is set aside under that handle.
fn set_aside(data_dir: &Path, handle: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(data_dir.join("quarantine")).ok()?;
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(handle)))
}

/// The destruction that the journal announces, oldest first.
fn announced(data_dir: &Path) -> Vec<String> {
    journal_tail(data_dir, &["--kind", "DestructiveIntent"]).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_directory_that_is_no_shapes_is_set_aside_and_kept() {
    let (database, mut service, mut client) = served("quarantine_orphan").await;
    let data_dir = service.data_dir().to_owned();
    let stranger = "5-77";
    let made = place_of(&data_dir.join("shapes"), stranger);
    fs::create_dir_all(&made).expect("it is ours");
    fs::write(made.join("log"), "whatever this is").expect("it is ours");
    // What is no handle is left alone.
    let note = made.with_file_name("note");
    fs::write(&note, "mine").expect("it is ours");

    let kept = until("it is set aside", async || set_aside(&data_dir, stranger)).await;
    assert!(!made.exists());
    assert_eq!(fs::read_to_string(kept.join("log")).expect("it is kept"), "whatever this is");
    assert_eq!(fs::read_to_string(&note).expect("it is kept"), "mine");
    assert!(directory_of(&data_dir, &handle(&client)).is_some(), "the shape has its own");
    assert!(service.terminate().await, "{}", service.output());
    let intents = announced(&data_dir);
    assert_eq!(intents.len(), 1, "{intents:?}");
    assert!(intents[0].contains("Stranger") && intents[0].contains("Unknown"), "{intents:?}");

    // When nobody has come for it, it goes, and that is announced, too.
    service.settings_mut().set(DUE.0, DUE.1);
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    until("it is removed", async || set_aside(&data_dir, stranger).is_none().then_some(())).await;
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(client.refetches().is_empty());
    assert!(service.terminate().await, "{}", service.output());
    let intents = announced(&data_dir);
    assert_eq!(intents.len(), 2, "{intents:?}");
    assert!(intents[1].contains("QuarantineExpired"), "{intents:?}");
    assert_eq!(fs::read_to_string(&note).expect("it is kept"), "mine");
    journal_is_sound(&data_dir);
}

/// Incident 0, path 2: a directory full of shapes and a journal that knows none of them. That proves
/// nothing: every file is still there afterwards.
#[tokio::test]
async fn an_empty_journal_is_no_reason_to_remove_anything() {
    let (database, mut service, mut client) = served("quarantine_lost").await;
    let data_dir = service.data_dir().to_owned();
    let lost = handle(&client);
    assert!(service.terminate().await, "{}", service.output());
    let directory = directory_of(&data_dir, &lost).expect("the shape's directory");
    let log = fs::read(directory.join("log")).expect("a log");
    fs::rename(data_dir.join("journal"), data_dir.join("journal-that-was-lost")).expect("it is ours");

    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    let kept = until("it is set aside", async || set_aside(&data_dir, &lost)).await;
    assert_eq!(fs::read(kept.join("log")).expect("it is kept"), log);
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_ne!(handle(&client), lost, "the client has been told, and has another shape");
    assert!(service.terminate().await, "{}", service.output());
    assert!(announced(&data_dir).iter().all(|intent| intent.contains("Unknown")), "nothing is removed");
    journal_is_sound(&data_dir);
}

/// Damage is proven by a checksum, ends that one shape, and is kept as evidence.
#[tokio::test]
async fn damaged_files_are_kept_and_end_one_shape_only() {
    let (database, mut service, mut client) = served("quarantine_damage").await;
    let data_dir = service.data_dir().to_owned();
    let mut other = service.follow(ShapeRequest::table("items").filtered("k = 1", &[]));
    other.sync().await.expect("it is made");
    database.execute("UPDATE items SET v = 'both have a log'").await;
    catch_up(&mut other, &ITEMS, &database.client().await).await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let damaged = handle(&client);
    assert!(service.terminate().await, "{}", service.output());
    let definition = directory_of(&data_dir, &damaged).expect("its directory").join("definition");
    let mut bytes = fs::read(&definition).expect("a definition");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&definition, &bytes).expect("it is ours");

    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    let kept = until("it is set aside", async || set_aside(&data_dir, &damaged)).await;
    assert_eq!(fs::read(kept.join("definition")).expect("the evidence"), bytes);
    let answer =
        service.get(&format!("/v1/shape?table=items&handle={damaged}&offset={}", client.offset())).await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(client.refetches().len(), 1, "rebuilt");
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut other, &ITEMS, &database.client().await).await;
    assert!(other.refetches().is_empty(), "no other shape is touched");
    assert!(service.terminate().await, "{}", service.output());
    let history = journal_tail(&data_dir, &["--kind", "ShapeInvalidated"]);
    assert!(history.lines().count() == 1 && history.contains("StorageDamaged"), "{history}");
    journal_is_sound(&data_dir);
}

/// Damage in the middle of a log is met by who reads it, not by a start. It ends that shape, with its files
/// kept, and the client that met it gets another.
#[tokio::test]
async fn damage_that_a_reader_meets_ends_that_shape_only() {
    let (database, mut service, mut client) = served("quarantine_reader").await;
    let data_dir = service.data_dir().to_owned();
    let mut other = service.follow(ShapeRequest::table("items").filtered("k = 1", &[]));
    other.sync().await.expect("it is made");
    for text in ["one", "two", "three"] {
        database.execute(&format!("UPDATE items SET v = repeat('{text}', 5000)")).await;
    }
    catch_up(&mut other, &ITEMS, &database.client().await).await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let damaged = handle(&client);
    let log = directory_of(&data_dir, &damaged).expect("its directory").join("log");
    let mut bytes = fs::read(&log).expect("a log");
    bytes[200] ^= 0x10;
    fs::write(&log, &bytes).expect("it is ours");

    // Its rows are in memory no more than its writer needs: who comes new reads the file.
    let path = format!("/v1/shape?table=items&handle={damaged}&offset=0_inf");
    until("the damage is met, and ends the shape", async || {
        let answer = service.http().get(&path).await;
        answer.is_ok_and(|answer| answer.status == 409).then_some(())
    })
    .await;
    let kept = until("it is set aside", async || set_aside(&data_dir, &damaged)).await;
    assert_eq!(fs::read(kept.join("log")).expect("the evidence").len(), bytes.len());
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(client.refetches().len(), 1, "rebuilt");
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut other, &ITEMS, &database.client().await).await;
    assert!(other.refetches().is_empty(), "no other shape is touched");
    assert!(service.terminate().await, "{}", service.output());
    let history = journal_tail(&data_dir, &["--kind", "ShapeInvalidated"]);
    assert!(history.lines().count() == 1 && history.contains("StorageDamaged"), "{history}");
    journal_is_sound(&data_dir);
}
