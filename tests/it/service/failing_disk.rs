//! A file system that fails under the running service: a few of the rows of `./dev chaos faults`.

use rustix::io::Errno;
use shapefold_xtask::faults::layer::{Call, Fault, Layer, Rule};

use super::{ITEMS, catch_up, fresh, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeClient, ShapeRequest, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

/// The layer, in a folder that outlives the service which has it loaded.
struct Failing {
    layer: Layer,
    _folder: tempfile::TempDir,
}

impl Failing {
    fn new() -> Failing {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let layer = Layer::compile(folder.path()).unwrap_or_else(|error| panic!("{error}"));
        Failing { layer, _folder: folder }
    }

    async fn strikes(&self) {
        until("the fault strikes", async || (self.layer.counts().1 > 0).then_some(())).await;
    }
}

fn rule(call: Call, fault: Fault, part: &'static str, times: u32) -> Rule {
    Rule { call, fault, part, without: "log.idx", skip: 0, times }
}

async fn start(failing: &Failing, name: &str) -> (crate::support::TestDatabase, Service, ShapeClient) {
    let database = database(name).await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |settings| failing.layer.put_under(settings)).await;
    assert!(failing.layer.is_loaded());
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    (database, service, client)
}

/// What the journal could not be made to keep is not acknowledged: the process ends and says why, and what was
/// committed meanwhile comes again from Postgres.
#[tokio::test]
async fn a_journal_that_cannot_be_written_ends_the_service_and_loses_nothing() {
    let failing = Failing::new();
    let (database, mut service, mut client) = start(&failing, "eiojournal").await;
    let known = handle(&client);
    for (call, fault) in [
        (Call::Sync, Fault::Error(Errno::IO)),
        (Call::Write, Fault::Error(Errno::IO)),
        (Call::Write, Fault::ShortWrite(Errno::NOSPC)),
    ] {
        let value = format!("{call:?} {fault:?}");
        failing.layer.arm(&rule(call, fault, "/journal/sled/db", 0)).expect("the rule is written");
        database.execute(&format!("UPDATE items SET v = '{value}'")).await;
        until("the service ends", async || service.try_wait()).await;
        let output = service.output();
        assert!(output.contains("the journal failed"), "{output}");
        assert!(!output.contains("panicked at"), "{output}");
        failing.layer.lift().expect("the rule is lifted");
        service.restart().await.unwrap_or_else(|error| panic!("{error}"));
        client.redirect(service.address());
        catch_up(&mut client, &ITEMS, &database.client().await).await;
        assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));
        assert_eq!(fresh(&service, &client).await.rows(), client.rows());
    }
    service.kill9();
    journal_is_sound(service.data_dir());
}

/// One failed append is the business of one writer, which is started again.
#[tokio::test]
async fn an_append_that_fails_once_is_made_again() {
    let failing = Failing::new();
    let (database, mut service, mut client) = start(&failing, "eioappend").await;
    let known = handle(&client);
    for (number, fault) in
        [Fault::Error(Errno::IO), Fault::ShortWrite(Errno::NOSPC), Fault::Error(Errno::NOSPC)]
            .into_iter()
            .enumerate()
    {
        failing.layer.arm(&rule(Call::Write, fault, "/log", 2)).expect("the rule is written");
        database.execute(&format!("UPDATE items SET v = 'append {number}'")).await;
        failing.strikes().await;
        catch_up(&mut client, &ITEMS, &database.client().await).await;
        failing.layer.lift().expect("the rule is lifted");
        assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));
    }
    assert!(service.try_wait().is_none(), "{}", service.output());
    assert!(service.terminate().await, "{}", service.output());
    let faults = journal_tail(service.data_dir(), &["--kind", "StorageFault"]);
    assert!(faults.contains("NoSpace") && faults.contains("Transient"), "{faults}");
    assert_eq!(journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]), "");
    journal_is_sound(service.data_dir());
}

/// A sync that fails says that nothing in the page cache can be trusted: the process ends, and what was not
/// acknowledged comes again.
#[tokio::test]
async fn a_failed_sync_of_a_shape_log_ends_the_service_and_loses_nothing() {
    let failing = Failing::new();
    let (database, mut service, mut client) = start(&failing, "eiosync").await;
    failing
        .layer
        .arm(&rule(Call::Sync, Fault::Error(Errno::IO), "/shapes/", 1))
        .expect("the rule is written");
    database.execute("UPDATE items SET v = 'synced in vain'").await;
    until("the service ends", async || service.try_wait()).await;
    let output = service.output();
    assert!(output.contains("a sync of the shape logs failed"), "{output}");
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    client.redirect(service.address());
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_eq!(client.refetches().len(), 0);
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

/// What cannot be made is refused, with a reason and for a time; what is there is not touched.
#[tokio::test]
async fn a_shape_that_cannot_be_made_harms_no_other() {
    let failing = Failing::new();
    let (database, mut service, mut client) = start(&failing, "enospcnew").await;
    let known = handle(&client);
    for (number, call, fault, part) in [
        (1, Call::Write, Fault::Error(Errno::NOSPC), "/snapshot"),
        (2, Call::Sync, Fault::Error(Errno::IO), "/snapshot"),
        (3, Call::Mkdir, Fault::Error(Errno::NOSPC), "/shapes/"),
        (4, Call::Open, Fault::Error(Errno::MFILE), "/definition"),
    ] {
        failing.layer.arm(&rule(call, fault, part, 0)).expect("the rule is written");
        let path = format!("/v1/shape?table=items&offset=-1&where=id%20%3E%20{number}");
        let answer = service.get(&path).await;
        assert!((500..=599).contains(&answer.status), "{part}: {} {}", answer.status, answer.text());
        assert!(answer.json()["message"].is_string(), "{part}: {}", answer.text());
        database.execute(&format!("UPDATE items SET v = 'beside {number}'")).await;
        catch_up(&mut client, &ITEMS, &database.client().await).await;
        failing.layer.lift().expect("the rule is lifted");
        let mut now = service.follow(ShapeRequest::table("items").filtered(&format!("id > {number}"), &[]));
        catch_up(&mut now, &ITEMS, &database.client().await).await;
    }
    assert!(service.try_wait().is_none(), "{}", service.output());
    assert_eq!((handle(&client), client.refetches().len()), (known, 0));
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

/// L4: the end of a shape has to come, whatever its files do at first; and it does not wait for a restart.
#[tokio::test]
async fn files_that_cannot_be_removed_at_first_are_removed_later() {
    let failing = Failing::new();
    let (_database, mut service, client) = start(&failing, "eiotrash").await;
    failing
        .layer
        .arm(&rule(Call::Rename, Fault::Error(Errno::IO), "/shapes/", 1))
        .expect("the rule is written");
    let path = format!("/v1/shape?table=items&handle={}", handle(&client));
    let answer = service.http().request("DELETE", &path, &[], b"").await.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    failing.strikes().await;
    let directory = service.data_dir().join("shapes");
    until("the files are gone", async || {
        let shards = std::fs::read_dir(&directory).expect("it is there");
        let left =
            shards.flatten().flat_map(|shard| std::fs::read_dir(shard.path()).into_iter().flatten()).count();
        (left == 0).then_some(())
    })
    .await;
    assert!(service.terminate().await, "{}", service.output());
    let kinds = |kind: &str| journal_tail(service.data_dir(), &["--kind", kind]).lines().count();
    assert_eq!((kinds("StorageFault"), kinds("ShapeGone"), kinds("DestructiveIntent")), (1, 1, 1));
    journal_is_sound(service.data_dir());
}
