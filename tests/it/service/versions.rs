//! Deploys from one version to the next and back. The newer version is this build with a test hook: it
//! writes a newer layout, and has a step that brings a directory there.

use std::fs;
use std::path::Path;

use super::{ITEMS, catch_up, handle, health_message, journal_is_sound, journal_tail, until};
use crate::support::{Process, Service, ShapeRequest, WAIT_DURATION_MAX, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 50) i";
const NEWER: (&str, &str) = ("SHAPEFOLD_TEST_LAYOUT", "3");
const REFUSED: &str = "which writes layout 3; this version reads up to 2. Start the newer version";

/// Waits for the process to refuse the directory, and checks that it says why and has changed nothing.
async fn refuses(process: &mut Process) {
    let data_dir = process.data_dir().to_owned();
    let before = contents(&data_dir);
    let status = until("the older version ends", async || process.try_wait()).await;
    assert!(!status.success());
    assert!(process.output().contains(REFUSED), "{}", process.output());
    assert_eq!(contents(&data_dir), before, "nothing was changed");
}

/// Every file but those of a process at work, with its bytes.
fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).expect("a file");
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_newer_version_takes_over_and_an_older_one_refuses_what_it_left() {
    let database = database("versions").await;
    database.execute(TABLE).await;
    let postgres = database.client().await;
    let mut old = Service::start(&database, |_| {}).await;
    let mut client = old.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &postgres).await;
    let known = handle(&client);
    let step = old.data_dir().join("layout-3");

    let mut new = old.spawn_beside(&database, |settings| {
        settings.set(NEWER.0, NEWER.1);
    });
    health_message(&mut new, "waiting", "lock").await;
    assert!(!step.exists(), "nothing is brought anywhere while another owns the directory");
    assert!(old.terminate().await, "{}", old.output());
    new.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fs::read_to_string(&step).expect("the step was run"), "done");
    client.redirect(new.address());
    database.execute("UPDATE items SET v = 'newer'").await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));

    // Back again: the older version waits like any other, and refuses once the directory is free.
    old.relaunch().expect("the process starts");
    health_message(&mut old, "waiting", "lock").await;
    new.kill9();
    refuses(&mut old).await;
    // The newer one carries on; its step is behind it.
    fs::write(&step, "left alone").expect("it is ours");
    new.restart().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fs::read_to_string(&step).expect("it is there"), "left alone");
    database.execute("UPDATE items SET v = 'again'").await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(new.terminate().await, "{}", new.output());
    journal_is_sound(new.data_dir());
    let history = journal_tail(new.data_dir(), &["--kind", "ProcessStarted"]);
    let layouts: Vec<&str> =
        history.lines().filter_map(|line| line.split("format: ").nth(1)?.split(',').next()).collect();
    assert_eq!(layouts, ["2", "3", "3"], "the journal tells who was here: {history}");
}

/// A migration that fails half-way, or is killed there: the older version stays out from the first moment
/// on, and the newer one runs it again.
#[tokio::test]
async fn a_migration_that_was_cut_short_is_run_again() {
    let database = database("migration").await;
    database.execute(TABLE).await;
    let postgres = database.client().await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &postgres).await;
    let known = handle(&client);
    let step = service.data_dir().join("layout-3");
    assert!(service.terminate().await, "{}", service.output());

    let older = service.settings_mut().environment.clone();
    service.settings_mut().set(NEWER.0, NEWER.1).set("SHAPEFOLD_TEST_MIGRATION_FAILS", "true");
    service.relaunch().expect("the process starts");
    assert!(!until("it ends", async || service.try_wait()).await.success());
    assert!(service.output().contains("could not be brought to layout 3"), "{}", service.output());
    assert_eq!(fs::read_to_string(&step).expect("it was begun"), "begun");

    service.settings_mut().environment = older;
    service.relaunch().expect("the process starts");
    refuses(&mut service).await;

    service.settings_mut().set(NEWER.0, NEWER.1);
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fs::read_to_string(&step).expect("it was run"), "done");
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}
