//! The directory of a service that writes at full speed, copied by somebody in a hurry.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::commands::run_all;
use crate::support::{BINARY, Service, ShapeRequest, WAIT_DURATION_MAX, database, journal};

/// Transactions of one call: each commits by itself.
const BURST: usize = 500;
const COPIES_MAX: u32 = 10;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes the directory");
    for found in fs::read_dir(from).expect("reads the directory") {
        let path = found.expect("reads the directory").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() {
            copy(&path, &target);
        } else if let Err(error) = fs::copy(&path, &target) {
            // The service replaces files of its own while they are copied; that is the point.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", path.display());
        }
    }
}

/// Waits until the service has made some thousand further events durable.
fn wait_for_mark(journal: &Path) {
    let mark = || fs::read(journal.join("MARK")).expect("the mark is there");
    let (deadline, before) = (Instant::now() + WAIT_DURATION_MAX, mark());
    while mark() == before {
        assert!(Instant::now() < deadline, "the service does not go on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a slow copy looks like: the store first, and the small files only when the service has gone on by
/// thousands of events. The end of the store is missing from such a copy, and the mark says so.
fn copy_slowly(data_dir: &Path, to: &Path) {
    let (from, to) = (data_dir.join("journal"), to.join("journal"));
    wait_for_mark(&from);
    // Files that change while they are copied may fit together badly: whoever sees nothing copies again.
    for attempt in 1.. {
        copy(&from.join("sled"), &to.join("sled"));
        fs::copy(from.join("FORMAT"), to.join("FORMAT")).expect("copies");
        let tail = Command::new(BINARY).args(["journal", "tail", "-n", "1"]).arg(&to).output();
        if !tail.expect("the binary runs").stdout.is_empty() {
            break;
        }
        assert!(attempt < COPIES_MAX, "nothing can be read from {COPIES_MAX} copies");
        fs::remove_dir_all(&to).expect("removes");
    }
    wait_for_mark(&from);
    fs::copy(from.join("MARK"), to.join("MARK")).expect("copies");
    copy(&from.join("archive"), &to.join("archive"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_works_on_a_copy_and_tells_of_the_torn_tail() {
    let database = database("copied").await;
    database
        .execute(
            "CREATE TABLE items (id bigserial PRIMARY KEY, v text);
             CREATE PROCEDURE churn(n int) LANGUAGE plpgsql AS $$
             BEGIN
               FOR i IN 1..n LOOP
                 INSERT INTO items (v) VALUES ('row ' || i);
                 COMMIT;
               END LOOP;
             END $$",
        )
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is served");
    let handle = client.handle().expect("it has a handle").to_owned();

    let writer = database.client().await;
    writer.batch_execute("SET synchronous_commit = off").await.expect("is set");
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut transactions = 0;
        while !*stopped.borrow_and_update() {
            writer.batch_execute(&format!("CALL churn({BURST})")).await.expect("the rows are written");
            transactions += BURST;
        }
        transactions
    });
    let place = tempfile::tempdir().expect("a directory");
    let (data_dir, copied, out) =
        (service.data_dir().to_owned(), place.path().join("copy"), place.path().join("out"));
    let target = copied.clone();
    tokio::task::spawn_blocking(move || copy_slowly(&data_dir, &target)).await.expect("is copied");
    stop.send(true).expect("it still writes");
    let transactions = writing.await.expect("the writer ends");

    for ran in run_all(&copied, &handle, &out) {
        let expected = if ran.call.starts_with("verify") { 3 } else { 0 };
        assert_eq!(ran.code(), Some(expected), "{} on the copy: {}", ran.call, ran.said());
        let told = "the journal ends at event ";
        let torn = ran.said().lines().any(|line| line.starts_with("damage: ") && line.contains(told));
        assert!(torn || !ran.of_journal, "{} says nothing of the torn tail: {}", ran.call, ran.complained());
        if ran.call == "tail JOURNAL" {
            let listing = String::from_utf8_lossy(&ran.output.stdout).into_owned();
            let ids = listing.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            let count = listing.lines().count() as u64;
            assert!(count > 50, "only {count} events of {transactions} transactions are in the copy");
            assert!(ids.eq(1..=count), "what is there is the beginning of the history, whole");
        }
    }
    assert!(service.terminate().await, "{}", service.output());
    let sound = journal::verify(Path::new(BINARY), service.data_dir());
    sound.unwrap_or_else(|error| panic!("{error}"));
}
