//! What is wrong outside of the service: it says what, and what to do, and goes on when it is put right.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{
    ITEMS, PrivatePostgres, catch_up, fresh, handle, health_message, journal_is_sound, journal_tail, until,
};
use crate::support::{Process, Service, ShapeRequest, WAIT_DURATION_MAX, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

const NOT_READY: &str = "Timeout waiting for Postgres lock acquisition";

/// The process runs, and its log has the message as one line, once: no loop of crashes, no flood.
async fn told_once(service: &mut Process, part: &str) {
    assert!(service.try_wait().is_none(), "the process stays: {}", service.output());
    let told =
        |output: &str| output.lines().filter(|line| line.contains("ERROR") && line.contains(part)).count();
    // The output is collected by a thread of this process, which may be a little behind.
    until("the log tells", async || (told(&service.output()) > 0).then_some(())).await;
    let output = service.output();
    assert_eq!(told(&output), 1, "{part:?} once in the log:\n{output}");
    assert!(!output.contains("panicked"), "{output}");
}

/// What was wrong has been put right: the service becomes active by itself, and has not repeated itself.
async fn recovers(service: &mut Process, told: &str) {
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    told_once(service, told).await;
}

#[tokio::test]
async fn postgres_that_is_down_at_start_is_waited_for() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("down").await;
    database.execute(TABLE).await;
    server.stop();
    let mut service = Service::spawn(&database, |_| {});
    let message = health_message(&mut service, "waiting", "the database cannot be reached").await;
    assert!(message.contains("Check that the database is running"), "{message}");
    let cause = message.strip_prefix(&format!("{NOT_READY}: ")).expect("what is waited for comes first");
    told_once(&mut service, cause).await;

    let answer = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    assert_eq!(
        answer.text(),
        r#"{"message":"Cannot connect to the database to verify the shape. Please try again later."}"#
    );

    server.start_again().await;
    recovers(&mut service, cause).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
}

/// A service that starts while Postgres is away serves the shapes that it has.
#[tokio::test]
async fn what_is_on_disk_is_served_while_postgres_is_down_at_start() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("ondisk").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_LONG_POLL_TIMEOUT", "2000");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    database.execute("UPDATE items SET v = 'known'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let known = handle(&client);
    for orderly in [false, true] {
        if orderly {
            assert!(service.terminate().await, "{}", service.output());
        } else {
            service.kill9();
        }
        server.stop();
        service.relaunch().expect("the process starts");
        health_message(&mut service, "waiting", "the database cannot be reached").await;
        let rows = fresh(&service, &client).await;
        assert_eq!(rows.handle(), Some(&*known));
        if orderly {
            client.sync().await.expect("the shape is served");
            assert_eq!(rows.rows(), client.rows());
        }
        // What was read just before kill -9 may have to come from Postgres again: until it can, nobody is
        // told that it never will.
        let ahead = format!("/v1/shape?table=items&handle={known}&offset={}_0", u64::MAX >> 1);
        let answer = service.get(&ahead).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
        // Whoever follows live has the news when Postgres is back, at the same handle and offset.
        let path = format!("/v1/shape?table=items&handle={known}&offset={}&live=true", client.offset());
        let (mut http, news) = (service.http(), format!("news {orderly}"));
        let follows = until("news", async || {
            let answer = http.get(&path).await.expect("an answer");
            assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.text());
            (answer.json()[0]["value"]["v"] == *news).then_some(())
        });
        let returns = async {
            server.start_again().await;
            database.execute(&format!("UPDATE items SET v = '{news}' WHERE id = 1")).await;
        };
        tokio::join!(follows, returns);
        catch_up(&mut client, &ITEMS, &database.client().await).await;
        assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));
    }
}

#[tokio::test]
async fn postgres_may_restart_while_streaming() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("pgrestart").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |_| {}).await;
    let requests = [ShapeRequest::table("items"), ShapeRequest::table("items").filtered("id > $1", &["5"])];
    let mut clients = requests.map(|request| service.follow(request));
    for round in 0..3 {
        database.execute(&format!("UPDATE items SET v = 'before {round}' WHERE id > 3")).await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &database.client().await).await;
        }
        // Committed at the last moment, perhaps not received.
        database.execute(&format!("UPDATE items SET v = 'last {round}' WHERE id < 9")).await;
        server.stop();
        let message = health_message(&mut service, "waiting", "the database cannot be reached").await;
        assert!(message.starts_with(NOT_READY), "{message}");
        // What is there is served meanwhile, to those who follow it and to those who begin.
        for client in &mut clients {
            client.sync().await.expect("an existing shape is served while Postgres is away");
            let rows = fresh(&service, client).await;
            assert_eq!((rows.handle(), rows.rows()), (client.handle(), client.rows()));
        }
        let new = service.get("/v1/shape?table=items&offset=-1&where=id%20%3D%201").await;
        assert_eq!((new.status, new.header("retry-after")), (503, Some("5")), "{}", new.text());
        let text = new.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(text.starts_with(&format!("{NOT_READY}: the database cannot be reached")), "{text}");

        server.start_again().await;
        database.execute(&format!("INSERT INTO items VALUES ({}, 'while it came back')", 100 + round)).await;
        service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
        for client in &mut clients {
            catch_up(client, &ITEMS, &database.client().await).await;
            assert!(client.refetches().is_empty(), "{:?}", client.refetches());
        }
    }
    assert!(service.terminate().await, "{}", service.output());
    assert_eq!(journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]), "");
    journal_is_sound(service.data_dir());
}

#[tokio::test]
async fn a_wrong_password_is_named_and_can_be_put_right() {
    let database = database("password").await;
    let user = format!("{}_user", database.name);
    database.execute(&format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'other'; {TABLE}")).await;
    let url = database.url_as(&user, "s3cret-never-shown");
    let mut service = Service::spawn(&database, |settings| settings.database_url = url);
    let message = health_message(&mut service, "waiting", "the database refused the password").await;
    assert!(message.contains("Correct the user name or the password in DATABASE_URL."), "{message}");
    told_once(&mut service, "Correct the user name or the password in DATABASE_URL.").await;
    assert!(!service.output().contains("s3cret-never-shown"), "{}", service.output());
    database.execute(&format!("ALTER ROLE {user} PASSWORD 's3cret-never-shown'")).await;
    recovers(&mut service, "Correct the user name or the password in DATABASE_URL.").await;
    assert_eq!(service.get("/v1/health").await.text(), r#"{"status":"active"}"#);
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn a_wal_level_that_is_too_low_is_named_and_can_be_put_right() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("wallevel").await;
    database.execute(TABLE).await;
    database.execute("ALTER SYSTEM SET wal_level = 'replica'").await;
    server.stop();
    server.start_again().await;
    let mut service = Service::spawn(&database, |_| {});
    let message = health_message(&mut service, "waiting", "Electric requires wal_level >= logical").await;
    assert!(message.contains("Set wal_level = logical and restart Postgres."), "{message}");
    told_once(&mut service, "Set wal_level = logical and restart Postgres.").await;
    database.execute("ALTER SYSTEM RESET wal_level").await;
    server.stop();
    server.start_again().await;
    recovers(&mut service, "Set wal_level = logical and restart Postgres.").await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
}

#[tokio::test]
async fn a_role_that_may_not_replicate_is_named_and_can_be_put_right() {
    let database = database("replication").await;
    let user = format!("{}_user", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN PASSWORD 'pw'; GRANT CREATE ON DATABASE {} TO {user}; {TABLE};
             ALTER TABLE items OWNER TO {user}",
            database.name
        ))
        .await;
    let url = database.url_as(&user, "pw");
    let mut service = Service::spawn(&database, |settings| settings.database_url = url);
    let message = health_message(&mut service, "waiting", "the role lacks REPLICATION").await;
    assert!(message.contains("ALTER ROLE <user> WITH REPLICATION"), "{message}");
    told_once(&mut service, "ALTER ROLE <user> WITH REPLICATION").await;
    database.execute(&format!("ALTER ROLE {user} REPLICATION")).await;
    recovers(&mut service, "ALTER ROLE <user> WITH REPLICATION").await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn a_role_that_may_not_make_the_publication_is_told_so() {
    let database = database("publication").await;
    let user = format!("{}_user", database.name);
    database.execute(&format!("CREATE ROLE {user} LOGIN REPLICATION PASSWORD 'pw'")).await;
    let url = database.url_as(&user, "pw");
    let mut service = Service::spawn(&database, |settings| settings.database_url = url);
    let publication = format!("electric_publication_{}", database.name);
    let message = health_message(&mut service, "waiting", &publication).await;
    assert!(message.contains("CREATE PUBLICATION"), "the remedy: {message}");
    told_once(&mut service, &publication).await;
    database.execute(&format!("GRANT CREATE ON DATABASE {} TO {user}", database.name)).await;
    recovers(&mut service, &publication).await;
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

/// A directory that nothing can be written to: a read-only mount for root, whom no mode bits keep out,
/// else a directory without write permission.
struct ReadOnly {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl ReadOnly {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = rustix::process::geteuid().is_root();
        if mounted {
            let done = run("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs"], folder.path());
            assert!(done, "root may mount a tmpfs");
        } else {
            assert!(run("chmod", &["0555"], folder.path()), "the folder is ours");
        }
        Self { folder, mounted }
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn make_writable(&self) {
        let done = if self.mounted {
            run("mount", &["-o", "remount,rw"], self.folder.path())
        } else {
            run("chmod", &["0755"], self.folder.path())
        };
        assert!(done, "the folder is writable again");
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        if self.mounted {
            run("umount", &["--lazy"], self.folder.path());
        }
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named_and_can_be_put_right() {
    let database = database("readonly").await;
    database.execute(TABLE).await;
    let place = ReadOnly::new();
    let data_dir = place.data_dir();
    let mut service = Service::spawn(&database, |settings| settings.data_dir = data_dir.clone());
    let (problem, remedy) = if place.mounted {
        ("is on a read-only file system", "Mount the data directory read-write.")
    } else {
        ("no permission for", "Let the user of this process read and write the data directory")
    };
    let message = health_message(&mut service, "starting", problem).await;
    assert!(message.contains(remedy), "{message}");
    assert!(message.contains(&data_dir.display().to_string()), "which: {message}");
    told_once(&mut service, remedy).await;
    let refused = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{}", refused.text());
    assert_eq!(refused.json()["message"], message);
    place.make_writable();
    recovers(&mut service, remedy).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    service.kill9();
}

/// The same for a directory that has been used, on a file system that has become read-only.
#[tokio::test]
async fn a_used_data_directory_that_became_read_only_is_not_touched() {
    if !rustix::process::geteuid().is_root() {
        // Without root there is no mount; mode bits are covered above.
        return;
    }
    let database = database("remount").await;
    database.execute(TABLE).await;
    let place = ReadOnly::new();
    place.make_writable();
    let data_dir = place.data_dir();
    let mut service = Service::start(&database, |settings| settings.data_dir = data_dir).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let before = handle(&client);
    assert!(service.terminate().await);
    assert!(run("mount", &["-o", "remount,ro"], place.folder.path()));
    service.relaunch().expect("the process starts");
    health_message(&mut service, "starting", "Mount the data directory read-write.").await;
    told_once(&mut service, "Mount the data directory read-write.").await;
    place.make_writable();
    recovers(&mut service, "Mount the data directory read-write.").await;
    database.execute("UPDATE items SET v = 'after'").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!((handle(&client), client.refetches().len()), (before, 0));
    service.kill9();
}

#[tokio::test]
async fn a_file_in_place_of_the_data_directory_is_named() {
    let database = database("file").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("data");
    std::fs::write(&file, "no directory").expect("the folder is ours");
    let mut service = Service::spawn(&database, |settings| settings.data_dir = file.clone());
    let message = health_message(&mut service, "starting", "is not a directory").await;
    assert!(message.contains("Point the data directory setting at a directory."), "{message}");
    told_once(&mut service, "is not a directory").await;
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "no directory");
    std::fs::remove_file(&file).expect("the folder is ours");
    until("the service is active once the file is gone", async || {
        (service.health().await == Some(200)).then_some(())
    })
    .await;
}
