//! Initial sync and catch-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::Method;

use crate::runtime::handle::{Phase, SnapshotProblem};
use crate::server::Settings;
use crate::server::testing::{Birth, World, collect, definition, finish, header, push_row, request, text};

const COMMON: &str = "electric-server: ElectricSQL/1.7.12\n\
    access-control-allow-origin: *\n\
    access-control-expose-headers: electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,electric-internal-known-error,retry-after\n\
    access-control-allow-methods: GET, POST, HEAD, DELETE, OPTIONS\n\
    vary: accept-encoding\n";
const SCHEMA: &str = r#"electric-schema: {"id":{"type":"int4","not_null":true,"pk_index":1},"k":{"type":"int4","not_null":true,"pk_index":0},"value":{"type":"text"}}"#;
const SNAPSHOT_END: &str = r#"{"headers":{"control":"snapshot-end","xmin":"5","xmax":"7","xip_list":["6"]}}"#;

fn world(birth: Birth) -> World {
    World::new(Settings::default(), birth)
}

fn up_to_date(lsn: u64) -> String {
    format!(r#"{{"headers":{{"control":"up-to-date","global_last_seen_lsn":"{lsn}"}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_new_shape() {
    let world = world(Birth::Complete(1));
    let first = text(world.get("/v1/shape?table=items&offset=-1").await).await;
    let expected = format!(
        "200\n\
         content-type: application/json; charset=utf-8\n\
         cache-control: public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746\n\
         etag: \"77-1:-1:0_0\"\n\
         electric-handle: 77-1\n\
         electric-offset: 0_0\n\
         electric-has-data: true\n\
         {SCHEMA}\n{COMMON}\n\
         [{{\"key\":\"\\\"public\\\".\\\"items\\\"/\\\"1\\\"/\\\"0\\\"\",\
         \"value\":{{\"id\":\"0\",\"k\":\"1\",\"value\":\"old\"}},\
         \"headers\":{{\"operation\":\"insert\",\"relation\":[\"public\",\"items\"]}}}},{SNAPSHOT_END}]"
    );
    assert_eq!(first, expected);
    let again = text(world.get("/v1/shape?table=items&offset=-1&handle=9-9").await).await;
    assert_eq!(again, expected, "the same shape, whatever handle is sent along");
    assert_eq!(world.made_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_empty_log() {
    let world = world(Birth::Complete(1));
    world.make(definition()).set_published(1234);
    let expected = format!(
        "200\n\
         content-type: application/json; charset=utf-8\n\
         cache-control: public, max-age=60, stale-while-revalidate=300\n\
         etag: \"77-1:0_0:0_inf\"\n\
         electric-handle: 77-1\n\
         electric-offset: 0_inf\n\
         electric-has-data: true\n\
         electric-up-to-date: \n\
         {SCHEMA}\n{COMMON}\n[{}]",
        up_to_date(1234)
    );
    assert_eq!(text(world.get("/v1/shape?table=items&offset=0_0&handle=77-1").await).await, expected);
}

/// Follows the offsets from the beginning, as a client does: (offset, messages, up to date).
async fn follow(world: &World) -> Vec<(String, usize, bool)> {
    let (mut offset, mut handle, mut steps) = ("-1".to_owned(), String::new(), Vec::new());
    loop {
        let target = format!("/v1/shape?table=items&offset={offset}&handle={handle}");
        let response = world.get(&target).await;
        assert_eq!(response.status(), 200, "{target}");
        handle = header(&response, "electric-handle").to_owned();
        offset = header(&response, "electric-offset").to_owned();
        let up_to_date = response.headers().contains_key("electric-up-to-date");
        let body = collect(response).await.expect("a whole body");
        let messages: Vec<serde_json::Value> = serde_json::from_str(&body).expect("an array");
        let last = messages.last().expect("never empty");
        assert_eq!(last["headers"]["control"] == "up-to-date", up_to_date, "{body}");
        steps.push((offset.clone(), messages.len(), up_to_date));
        if up_to_date {
            return steps;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_chunk_of_snapshot_and_log() {
    let world = world(Birth::Complete(12));
    let made = world.make(definition());
    made.commit(100, &[20, 21, 22, 23]);
    made.commit(200, &[30]);
    let step = |offset: &str, messages, up_to_date| (offset.to_owned(), messages, up_to_date);
    assert_eq!(
        follow(&world).await,
        [
            step("0_0", 5, false),
            step("0_1", 5, false),
            step("0_2", 3, false),
            step("100_6", 4, false),
            step("200_0", 2, true),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn catch_up_names_what_is_in_the_body() {
    let world = world(Birth::Complete(0));
    let made = world.make(definition());
    made.commit(100, &[1, 2]);
    // Behind: never less than what is in the body.
    made.set_published(50);
    let body = world.body(Method::GET, "/v1/shape?table=items&offset=100_2&handle=77-1").await;
    assert_eq!(body, format!("200 [{}]", up_to_date(100)));
    // Ahead: a commit that does not concern this shape.
    made.set_published(150);
    let response = world.get("/v1/shape?table=items&offset=100_0&handle=77-1").await;
    assert_eq!(header(&response, "electric-offset"), "100_2");
    let body = collect(response).await.expect("a body");
    assert!(body.starts_with(r#"[{"key":"\"public\".\"items\"/\"1\"/\"2\"""#), "{body}");
    assert!(body.ends_with(&format!(",{}]", up_to_date(150))), "{body}");
    // U5: once told, it does not go back, whatever is known of the stream just now.
    made.set_published(0);
    let body = world.body(Method::GET, "/v1/shape?table=items&offset=100_2&handle=77-1").await;
    assert_eq!(body, format!("200 [{}]", up_to_date(150)));
}

#[tokio::test(start_paused = true)]
async fn from_now_on() {
    let world = world(Birth::Complete(5));
    let response = world.get("/v1/shape?table=items&offset=now").await;
    let tag = header(&response, "etag").to_owned();
    assert!(tag.starts_with("\"77-1:now:0_inf:"), "{tag}");
    assert_eq!(header(&response, "electric-offset"), "0_inf");
    assert_eq!(header(&response, "electric-has-data"), "false");
    assert_eq!(header(&response, "cache-control"), "public, max-age=60, stale-while-revalidate=300");
    assert!(response.headers().contains_key("electric-up-to-date"));
    assert!(response.headers().contains_key("electric-schema"));
    assert_eq!(collect(response).await.expect("a body"), format!("[{}]", up_to_date(0)));
    let again = world.get("/v1/shape?table=items&offset=now").await;
    assert_ne!(header(&again, "etag"), tag);
}

/// P3: what an answer says to have seen is in it. The writer marks a commit as published after its view;
/// an answer that takes the view before the mark promises a commit that it lacks.
#[tokio::test]
async fn an_answer_promises_no_commit_that_it_lacks() {
    const ANSWERS: usize = 5_000;
    let world = world(Birth::Complete(0));
    let made = world.make(definition());
    let done = Arc::new(AtomicBool::new(false));
    let (writer, stop) = (Arc::clone(&made), Arc::clone(&done));
    let writing = std::thread::spawn(move || {
        let mut lsn = 0;
        while !stop.load(Ordering::Relaxed) {
            lsn += 1;
            writer.commit(lsn, &[1]);
            writer.set_published(lsn);
        }
        lsn
    });
    let mut promised = Vec::new();
    for _ in 0..ANSWERS {
        let response = world.get("/v1/shape?table=items&offset=now").await;
        let end = header(&response, "electric-offset").to_owned();
        promised.push((end, collect(response).await.expect("a body")));
    }
    done.store(true, Ordering::Relaxed);
    let commits = writing.join().expect("the writer works");
    assert!(commits > 100, "the view changed {commits} times only");
    for (end, body) in promised {
        let (last, _) = end.split_once('_').expect("an offset");
        assert_eq!(body, format!("[{}]", up_to_date(last.parse().expect("a number"))), "up to {end}");
    }
}

#[tokio::test(start_paused = true)]
async fn handles_belong_to_definitions() {
    let world = world(Birth::Complete(0));
    world.make(definition());
    for (query, handle) in [
        ("table=items&offset=0_0&handle=1-1", "77-1"),
        ("table=items&offset=0_0&handle=banana", "77-1"),
        ("table=items&offset=0_0&handle=77-1&replica=full", "77-2"),
        ("table=items&offset=0_0&handle=77-2", "77-1"),
    ] {
        let response = world.get(&format!("/v1/shape?{query}")).await;
        assert_eq!(response.status(), 409, "{query}");
        assert_eq!(header(&response, "electric-handle"), handle, "{query}");
        assert_eq!(header(&response, "etag"), format!("\"{handle}::\""));
        assert_eq!(header(&response, "cache-control"), "public, max-age=60, must-revalidate");
        assert_eq!(collect(response).await.expect("a body"), r#"[{"headers":{"control":"must-refetch"}}]"#);
    }
    assert_eq!(world.get("/v1/shape?table=items&offset=0_0&handle=77-2&replica=full").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_modified_is_not_sent() {
    let world = world(Birth::Complete(1));
    let get = |target: &str, tag: &str| {
        let mut request = request(Method::GET, target);
        request.headers_mut().insert("if-none-match", tag.parse().expect("ASCII"));
        world.send(request)
    };
    let response = get("/v1/shape?table=items&offset=-1", "\"77-1:-1:0_0\"").await;
    assert_eq!(response.status(), 304);
    assert_eq!(header(&response, "electric-offset"), "0_0");
    assert_eq!(header(&response, "etag"), "\"77-1:-1:0_0\"");
    assert_eq!(header(&response, "electric-schema"), "");
    assert_eq!(collect(response).await.expect("a body"), "");
    let target = "/v1/shape?table=items&offset=0_0&handle=77-1";
    let tag = "\"77-1:0_0:0_inf\"";
    assert_eq!(get(target, tag).await.status(), 304);
    world.made().commit(100, &[1]);
    assert_eq!(get(target, tag).await.status(), 200);
    let live = get(&format!("{target}&live=true"), "\"77-1:0_0:100_0\"").await;
    assert_eq!(live.status(), 200, "never for live requests");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_streamed_while_it_is_written() {
    let world = world(Birth::Readable);
    let made = world.make(definition());
    let mut snapshot = made.snapshot();
    let (response, ()) = tokio::join!(world.get("/v1/shape?table=items&offset=-1"), async {
        tokio::task::yield_now().await;
        push_row(&mut snapshot, 0);
        snapshot.show().expect("the disk works");
    });
    assert_eq!((response.status().as_u16(), header(&response, "electric-offset")), (200, "0_0"));
    let (body, ()) = tokio::join!(collect(response), async {
        tokio::task::yield_now().await;
        push_row(&mut snapshot, 1);
        finish(snapshot);
    });
    let streamed = body.expect("a whole body");
    let complete = world.body(Method::GET, "/v1/shape?table=items&offset=-1").await;
    assert_eq!(format!("200 {streamed}"), complete, "the same bytes as once it is complete");
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&streamed).expect("an array").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_breaks_breaks_the_body() {
    let world = world(Birth::Readable);
    let made = world.make(definition());
    let mut snapshot = made.snapshot();
    push_row(&mut snapshot, 0);
    snapshot.show().expect("the disk works");
    let response = world.get("/v1/shape?table=items&offset=-1").await;
    drop(snapshot);
    assert!(collect(response).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_fail_say_why() {
    for (problem, expected) in [
        (
            SnapshotProblem::Known("Database connection not available".to_owned()),
            r#"503 {"message":"Database connection not available"}"#,
        ),
        (
            SnapshotProblem::Unexpected("division by zero".to_owned()),
            r#"500 {"message":"Unexpected error while creating snapshot: division by zero"}"#,
        ),
        (SnapshotProblem::MustRefetch, r#"409 [{"headers":{"control":"must-refetch"}}]"#),
    ] {
        let at_once = world(Birth::Failed(problem.clone()));
        assert_eq!(at_once.body(Method::GET, "/v1/shape?table=items&offset=-1").await, expected);
        // The query fails after the snapshot was opened, before the first row.
        let later = world(Birth::Readable);
        let made = later.make(definition());
        let snapshot = made.snapshot();
        let (body, ()) = tokio::join!(later.body(Method::GET, "/v1/shape?table=items&offset=-1"), async {
            tokio::task::yield_now().await;
            drop(snapshot);
            tokio::task::yield_now().await;
            made.set_phase(Phase::Failed(problem));
        });
        assert_eq!(body, expected);
    }
    let refused = world(Birth::Refused);
    assert_eq!(
        refused.body(Method::GET, "/v1/shape?table=items&offset=-1").await,
        r#"503 {"message":"Failed to create shape, please retry"}"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_never_begins_is_not_waited_for_for_ever() {
    for birth in [Birth::Opening, Birth::Readable] {
        let world = world(birth);
        let response = world.get("/v1/shape?table=items&offset=-1").await;
        assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, "1"));
        assert_eq!(
            collect(response).await.expect("a body"),
            r#"{"message":"Failed to create shape, please retry"}"#
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_shape_that_ends_while_its_first_request_waits_is_replaced() {
    let world = world(Birth::Opening);
    let (response, ()) = tokio::join!(world.get("/v1/shape?table=items&offset=-1"), async {
        while world.made_count() == 0 {
            tokio::task::yield_now().await;
        }
        world.set_birth(Birth::Complete(1));
        world.end(&world.made());
    });
    assert_eq!((response.status().as_u16(), header(&response, "electric-handle")), (200, "77-2"));
}
