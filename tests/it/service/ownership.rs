//! A data directory that is taken away, and one that is reached by several ways: the one who loses it
//! stops and destroys nothing, and nobody else is let in before.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ITEMS, catch_up, handle, health_message, journal_is_sound, until};
use crate::support::{
    Process, Service, ShapeClient, ShapeRequest, TestDatabase, WAIT_DURATION_MAX, database,
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 50) i";

async fn served(hint: &str) -> (TestDatabase, Service, ShapeClient) {
    let database = database(hint).await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    database.execute("UPDATE items SET v = 'logged'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    (database, service, client)
}

/// Waits for the process to end by itself; whether with success.
async fn ended(process: &mut Process) -> bool {
    until("the process ends by itself", async || process.try_wait()).await.success()
}

/// The bytes of every shape's files, by path.
fn shape_files(data_dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![data_dir.join("shapes")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let below = path.strip_prefix(data_dir).expect("below").to_owned();
                files.insert(below, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

/// The service starts again, and the client goes on where it was.
async fn goes_on(database: &TestDatabase, service: &mut Service, client: &mut ShapeClient) {
    let known = handle(client);
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(client), client.refetches().len()), (known, 0));
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

#[tokio::test]
async fn a_lock_file_that_is_removed_or_replaced_ends_the_owner() {
    let (database, mut service, mut client) = served("own_lock").await;
    for replaced in [false, true] {
        let lock = service.data_dir().join("LOCK");
        let before = shape_files(service.data_dir());
        fs::remove_file(&lock).expect("it is there");
        if replaced {
            fs::write(&lock, "").expect("it is ours");
        }
        assert!(!ended(&mut service).await, "this is no success");
        let output = service.output();
        assert!(output.contains("ownership lost: the lock file was replaced or removed"), "{output}");
        assert_eq!(shape_files(service.data_dir()), before, "nothing is destroyed");
        service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    }
    goes_on(&database, &mut service, &mut client).await;
}

/// The lock file is replaced while another instance waits: that one does not get in beside the owner,
/// and the clients are served on by whoever is left.
#[tokio::test]
async fn a_replaced_lock_file_lets_nobody_in_beside_the_owner() {
    let (database, mut first, mut client) = served("own_beside").await;
    let known = handle(&client);
    let mut second = first.spawn_beside(&database, |_| {});
    health_message(&mut second, "waiting", "lock").await;
    fs::remove_file(first.data_dir().join("LOCK")).expect("it is there");
    assert!(!ended(&mut first).await, "{}", first.output());
    second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(second.address());
    database.execute("UPDATE items SET v = 'by the second'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(second.terminate().await, "{}", second.output());
    journal_is_sound(first.data_dir());
}

/// O6: a directory that is renamed away under a writer is no reason to blame a shape. Nothing is made at
/// its old path, nothing in it is destroyed, and put back it is as good as before.
#[tokio::test]
async fn a_directory_that_is_renamed_away_ends_the_owner_and_no_shape() {
    let (database, mut service, mut client) = served("own_rename").await;
    let data_dir = service.data_dir().to_owned();
    let away = data_dir.with_file_name("away");
    // A shape whose files are not open, so that the next change has to find them.
    let mut other = service.follow(ShapeRequest::table("items").filtered("k = 1", &[]));
    other.sync().await.expect("it is made");
    let before = shape_files(&data_dir);
    fs::rename(&data_dir, &away).expect("it is ours");
    database.execute("UPDATE items SET v = 'while away'").await;
    // A shape that is made just now, if it still is, is made in the directory and not at its path.
    let _made = service.http().get("/v1/shape?table=items&where=k%3D2&offset=-1").await;
    assert!(!ended(&mut service).await, "this is no success");
    let output = service.output();
    assert!(output.contains("ownership lost: the data directory was moved or removed"), "{output}");
    assert!(!data_dir.exists(), "nothing is made at the old path");
    for (path, bytes) in &before {
        let now = fs::read(away.join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(now.starts_with(bytes) || path.ends_with("log.idx"), "{} lost something", path.display());
    }
    assert!(fs::read_dir(away.join("trash")).map_or(true, |mut trash| trash.next().is_none()));

    fs::rename(&away, &data_dir).expect("it is ours");
    service.relaunch().expect("the process starts");
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    catch_up(&mut other, &ITEMS, &database.client().await).await;
    assert!(other.refetches().is_empty());
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(client.refetches().is_empty(), "{:?}", client.refetches());
    goes_on(&database, &mut service, &mut client).await;
}

#[tokio::test]
async fn a_directory_that_is_removed_ends_the_owner() {
    let (_database, mut service, _client) = served("own_remove").await;
    let data_dir = service.data_dir().to_owned();
    fs::remove_dir_all(&data_dir).expect("it is ours");
    assert!(!ended(&mut service).await, "this is no success");
    let output = service.output();
    assert!(output.contains("ownership lost: the data directory was moved or removed"), "{output}");
    assert!(!data_dir.exists(), "it is not made again");
}

/// In a known handover the end is orderly all the same: exit 0, and what was not flushed stays with
/// Postgres.
#[tokio::test]
async fn a_directory_that_goes_during_a_drain_ends_it_with_success() {
    let (database, mut service, mut client) = served("own_drain").await;
    let data_dir = service.data_dir().to_owned();
    let away = data_dir.with_file_name("away");
    // It is stopped while the directory goes, so that it finds out in the middle of the drain.
    service.signal(rustix::process::Signal::STOP);
    database.execute("UPDATE items SET v = 'before the drain'").await;
    fs::rename(&data_dir, &away).expect("it is ours");
    service.signal(rustix::process::Signal::TERM);
    service.signal(rustix::process::Signal::CONT);
    let success = ended(&mut service).await;
    let output = service.output();
    assert!(success, "{output}");
    assert!(!data_dir.exists(), "nothing is made at the old path");
    fs::rename(&away, &data_dir).expect("it is ours");
    goes_on(&database, &mut service, &mut client).await;
}

#[tokio::test]
async fn a_higher_epoch_ends_the_owner() {
    let (database, mut service, mut client) = served("own_epoch").await;
    let lock = service.data_dir().join("LOCK");
    let text = fs::read_to_string(&lock).expect("a lock file");
    let line = text.lines().next().expect("a record");
    let mut record: serde_json::Value = serde_json::from_str(line).expect("JSON");
    record["epoch"] = serde_json::json!(record["epoch"].as_u64().expect("a number") + 5);
    let line = record.to_string();
    fs::write(&lock, format!("{line}\ncrc32c={:08x}\n", crc32c::crc32c(line.as_bytes())))
        .expect("it is ours");
    assert!(!ended(&mut service).await, "this is no success");
    assert!(service.output().contains("was taken by another process"), "{}", service.output());
    goes_on(&database, &mut service, &mut client).await;
}

/// Two bind mounts of one directory, as two containers have them: the lock is on what it is, not on where.
#[tokio::test]
async fn a_bind_mount_and_a_symbolic_link_are_the_same_directory() {
    let (database, mut first, client) = served("own_mounts").await;
    let known = handle(&client);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(first.data_dir(), &link).expect("the folder is ours");
    let mut paths = vec![link];
    // Mounting takes root; the link is tried by everyone.
    let mount = rustix::process::geteuid().is_root().then(|| BindMount::new(first.data_dir(), folder.path()));
    paths.extend(mount.as_ref().map(|mount| mount.0.clone()));
    let mut waiting = Vec::new();
    for path in paths {
        let mut second = first.spawn_beside(&database, |settings| settings.data_dir = path);
        health_message(&mut second, "waiting", "lock").await;
        let answer = crate::support::HttpClient::new(second.address())
            .get("/v1/shape?table=items&offset=-1")
            .await
            .expect("an answer");
        assert_eq!((answer.status, answer.header("electric-handle")), (200, Some(known.as_str())));
        waiting.push(second);
    }
    assert!(first.terminate().await, "{}", first.output());
    until("one of them takes over", async || {
        for second in &mut waiting {
            if second.health().await == Some(200) {
                return Some(());
            }
        }
        None
    })
    .await;
    let mut active = 0;
    for second in &mut waiting {
        active += u32::from(second.health().await == Some(200));
    }
    assert_eq!(active, 1, "and only one");
    for second in &mut waiting {
        assert!(second.terminate().await, "{}", second.output());
    }
    drop(mount);
}

struct BindMount(PathBuf);

impl BindMount {
    fn new(of: &Path, folder: &Path) -> Self {
        let at = folder.join("mount");
        fs::create_dir(&at).expect("the folder is ours");
        let done = Command::new("mount").arg("--bind").arg(of).arg(&at).status();
        assert!(done.is_ok_and(|status| status.success()), "root may mount");
        Self(at)
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Some network file systems have no locks. Then nobody is let in: without a lock two instances could
/// destroy each other's data.
#[tokio::test]
async fn a_file_system_without_locks_is_refused_with_a_remedy() {
    let (database, mut service, mut client) = served("own_nolocks").await;
    assert!(service.terminate().await, "{}", service.output());
    let before = shape_files(service.data_dir());
    service.settings_mut().wrapper = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"]
        .into_iter()
        .chain(["-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"])
        .map(str::to_owned)
        .collect();
    service.relaunch().expect("the process starts");
    let message = health_message(&mut service, "starting", "locks").await;
    assert!(message.contains("Put the data directory on a local file system"), "{message}");
    let refused = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{}", refused.text());
    assert_eq!(shape_files(service.data_dir()), before);
    service.kill9();
    service.settings_mut().wrapper = Vec::new();
    goes_on(&database, &mut service, &mut client).await;
}

/// A program that the service is started by, and for which every lock is granted.
fn idle_locks() -> Vec<String> {
    ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:retval=0"]
        .map(str::to_owned)
        .into()
}

/// A file system that grants every lock. It is found out by a second descriptor, before anything is touched;
/// who knows better can say so.
#[tokio::test]
async fn a_file_system_whose_locks_exclude_nobody_is_refused_unless_it_is_wanted() {
    let (database, mut service, mut client) = served("own_idle_locks").await;
    assert!(service.terminate().await, "{}", service.output());
    let before = shape_files(service.data_dir());
    service.settings_mut().wrapper = idle_locks();
    service.relaunch().expect("the process starts");
    let message = health_message(&mut service, "starting", "exclude nobody").await;
    assert!(message.contains("SHAPEFOLD_UNSAFE_FILE_LOCKS"), "{message}");
    assert_eq!(shape_files(service.data_dir()), before);
    service.kill9();
    service.settings_mut().set("SHAPEFOLD_UNSAFE_FILE_LOCKS", "true");
    service.relaunch().expect("the process starts");
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    service.kill9();
    service.settings_mut().wrapper = Vec::new();
    goes_on(&database, &mut service, &mut client).await;
}

/// Where that is wanted, a second instance does not get in while another one streams.
#[tokio::test]
async fn without_file_locks_the_lock_in_postgres_is_waited_for() {
    let (database, mut first, mut client) = served("own_turns").await;
    let known = handle(&client);
    assert!(first.terminate().await, "{}", first.output());
    let relaxed = |settings: &mut crate::support::ServiceSettings| {
        settings.wrapper = idle_locks();
        settings.set("SHAPEFOLD_UNSAFE_FILE_LOCKS", "true");
    };
    relaxed(first.settings_mut());
    first.relaunch().expect("the process starts");
    first.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    let mut second = first.spawn_beside(&database, relaxed);
    health_message(&mut second, "waiting", "lock").await;
    database.execute("UPDATE items SET v = 'by the first'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(first.terminate().await, "{}", first.output());
    second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(second.address());
    database.execute("UPDATE items SET v = 'by the second'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(second.terminate().await, "{}", second.output());
    journal_is_sound(first.data_dir());
}
