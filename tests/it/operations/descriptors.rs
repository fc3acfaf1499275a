//! More shapes than the process may have files open.

use std::os::unix::fs::PermissionsExt;

use crate::service::{ITEMS, catch_up, journal_is_sound};
use crate::support::{BINARY, Service, ShapeRequest, database};

/// Each has two files, of which a first read and a transaction want one each.
const SHAPES: usize = 300;
/// Half of what the shapes would keep open, with room for connections.
const DESCRIPTORS: usize = 192;

fn shape(number: usize) -> ShapeRequest {
    ShapeRequest::table("items").filtered("id > $1", &[&format!("-{number}")])
}

/// Every shape is read, then hit by every transaction, and none is lost for want of a descriptor: files
/// are closed and opened again.
#[tokio::test]
async fn shapes_are_not_bounded_by_descriptors() {
    let database = database("descriptors").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, v text);
             INSERT INTO items SELECT n, 'start' FROM generate_series(1, 5) n",
        )
        .await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wrapper = folder.path().join("shapefold");
    let script = format!("#!/bin/sh\nulimit -n {DESCRIPTORS}\nexec {BINARY} \"$@\"\n");
    std::fs::write(&wrapper, script).expect("a script");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("it is mine");
    let mut service = Service::start(&database, |settings| settings.binary = wrapper).await;
    let postgres = database.client().await;
    let mut handles = Vec::with_capacity(SHAPES);
    for number in 0..SHAPES {
        let mut client = service.follow(shape(number));
        client.sync().await.expect("the shape is made and read");
        handles.push(client.handle().expect("it has synced").to_owned());
    }
    // Larger than what stays in memory, so that every log is written to before it is flushed.
    database.execute("UPDATE items SET v = repeat('x', 30000)").await;
    database.execute("UPDATE items SET v = 'after ' || id; INSERT INTO items VALUES (6, 'new')").await;
    for (number, handle) in handles.iter().enumerate() {
        let mut client = service.follow(shape(number));
        catch_up(&mut client, &ITEMS, &postgres).await;
        assert_eq!(client.handle(), Some(handle.as_str()), "it is the same shape");
        assert_eq!(client.refetches().len(), 0);
    }
    assert!(service.terminate().await, "{}", service.output());
    assert!(!service.output().contains("errno 24"), "{}", service.output());
    journal_is_sound(service.data_dir());
}
