//! Logs that are rewritten while clients read them: by the owner, by an instance that waits, over kills.

use std::fs;
use std::path::Path;

use super::{
    ITEMS, OWN_FILES, catch_up, fresh, handle, health_message, journal_is_sound, journal_tail, until,
};
use crate::support::{Service, ServiceSettings, ShapeClient, ShapeRequest, WAIT_DURATION_MAX, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 8) i";
/// Of a log that is compacted.
const MIN_SIZE: u64 = 64 << 10;

fn settings(settings: &mut ServiceSettings) {
    settings.set("SHAPEFOLD_COMPACTION_MIN_SIZE", MIN_SIZE.to_string());
    settings.set("SHAPEFOLD_COMPACTION_RATIO", "2");
    settings.set("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "20000");
    settings.set("ELECTRIC_MAX_SHAPES", "4");
    settings.set("SHAPEFOLD_SHAPE_EXPIRY_INTERVAL", "50ms");
}

/// Bytes of all files below a directory; of one that is not there, none.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        // Removed meanwhile.
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

fn shapes_bytes(service: &Service) -> u64 {
    ["shapes", "trash", "quarantine"].iter().map(|name| bytes_below(&service.data_dir().join(name))).sum()
}

/// A thousand transactions, each an update of all rows.
async fn updates(database: &crate::support::TestDatabase, mark: &str) {
    let update = format!("UPDATE items SET v = '{mark}' || i::text || repeat('x', i % 50)");
    database.execute(&format!("DO $$ BEGIN FOR i IN 1..1000 LOOP {update}; COMMIT; END LOOP; END $$")).await;
}

#[tokio::test]
async fn a_log_is_compacted_under_clients() {
    let database = database("compaction").await;
    database.execute(TABLE).await;
    let postgres = database.client().await;
    let mut service = Service::start(&database, settings).await;
    let mut live = service.follow(ShapeRequest::table("items"));
    catch_up(&mut live, &ITEMS, &postgres).await;
    // These come back much later, with what they have: before any change, and in the middle of them.
    let sleeper = fresh(&service, &live).await;
    updates(&database, "a").await;
    catch_up(&mut live, &ITEMS, &postgres).await;
    let second_sleeper = fresh(&service, &live).await;

    let mut standby = service.spawn_beside(&database, settings);
    health_message(&mut standby, "waiting", "lock").await;
    let mut beside = ShapeClient::new(standby.address(), ShapeRequest::table("items"));
    for round in ["b", "c", "d", "e"] {
        updates(&database, round).await;
        catch_up(&mut live, &ITEMS, &postgres).await;
        catch_up(&mut beside, &ITEMS, &postgres).await;
        if round == "d" {
            assert!(standby.terminate().await, "{}", standby.output());
            beside.redirect(service.address());
            service.kill9();
            service.restart().await.unwrap_or_else(|error| panic!("{error}"));
        }
    }
    // About 8 rows of 150 bytes, 40,000 times. A log is looked at when it has grown, and what is compacted ends
    // where a chunk and a transaction end together: a little more has to come now and then.
    until("the log is as small as its rows", async || {
        database.execute("UPDATE items SET v = 'f' || repeat('x', length(v) % 50)").await;
        (shapes_bytes(&service) < 4 * MIN_SIZE).then_some(())
    })
    .await;
    catch_up(&mut live, &ITEMS, &postgres).await;
    let known = handle(&live);
    let newcomer = fresh(&service, &live).await;
    for mut client in [live, sleeper, second_sleeper, beside, newcomer] {
        catch_up(&mut client, &ITEMS, &postgres).await;
        assert_eq!((handle(&client), client.refetches().len()), (known.clone(), 0));
    }
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
    let told = journal_tail(service.data_dir(), &["--kind", "ShapeCompacted"]);
    assert!(told.lines().count() >= 3, "{told}");
}

/// Shapes that nobody asks for go with their files.
#[tokio::test]
async fn shapes_that_nobody_needs_take_no_room() {
    let database = database("compaction_expiry").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |own| {
        settings(own);
        own.set(OWN_FILES.0, OWN_FILES.1);
    })
    .await;
    let directories = |service: &Service| -> usize {
        let shards = fs::read_dir(service.data_dir().join("shapes")).into_iter().flatten().flatten();
        shards.map(|shard| fs::read_dir(shard.path()).map_or(0, Iterator::count)).sum()
    };
    for number in 0..40 {
        let request = ShapeRequest::table("items").filtered(&format!("id > {number}"), &[]);
        let mut client = service.follow(request);
        until("the shape is made", async || client.sync().await.ok()).await;
    }
    until("those beyond the limit are gone", async || (directories(&service) <= 4).then_some(())).await;
    until("nothing waits in the trash", async || {
        (bytes_below(&service.data_dir().join("trash")) == 0).then_some(())
    })
    .await;
    service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}
