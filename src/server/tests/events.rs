//! Server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};

use crate::server::Settings;
use crate::server::testing::{Birth, Made, World, collect, definition, finish, header, push_row};

const LIVE: &str = "/v1/shape?table=items&handle=77-1&live=true&live_sse=true&offset=";

fn world(birth: Birth) -> (World, Arc<Made>) {
    let world = World::new(Settings::default(), birth);
    let made = world.make(definition());
    (world, made)
}

async fn open(world: &World, offset: &str) -> Response {
    world.get(&format!("{LIVE}{offset}")).await
}

/// The next piece; `None` at the end of the stream.
async fn next(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.expect("a whole stream");
    Some(String::from_utf8(frame.into_data().expect("no trailers").to_vec()).expect("text"))
}

/// The next piece in short: the ids of its rows, LSNs of `up-to-date`.
async fn seen(body: &mut Body) -> String {
    next(body).await.as_deref().map_or_else(|| "end".to_owned(), short)
}

fn short(events: &str) -> String {
    let events = events.strip_suffix("\n\n").expect("a whole event").split("\n\n");
    let short = |event: &str| {
        let Some(data) = event.strip_prefix("data: ") else { return event.to_owned() };
        let message: serde_json::Value = serde_json::from_str(data).expect("a message");
        let id = message["value"]["id"].as_str();
        let control = &message["headers"]["control"];
        let lsn = message["headers"]["global_last_seen_lsn"].as_str().unwrap_or_default();
        id.map_or_else(|| format!("{} {lsn}", control.as_str().expect("a row or control")), str::to_owned)
    };
    events.map(short).collect::<Vec<_>>().join(",")
}

#[tokio::test(start_paused = true)]
async fn headers_and_frames() {
    let (world, made) = world(Birth::Complete(0));
    let response = open(&world, "0_inf").await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "public, max-age=59"),
        ("connection", "keep-alive"),
        ("etag", "\"77-1:0_inf:0_inf\""),
        ("electric-offset", "0_inf"),
        ("electric-handle", "77-1"),
        ("electric-has-data", "true"),
        ("electric-schema", ""),
    ] {
        assert_eq!(header(&response, name), value, "{name}");
    }
    assert!(response.headers().contains_key("electric-up-to-date"), "it starts at the end");
    assert!(response.headers().contains_key("electric-cursor"));
    let mut body = response.into_body();
    made.commit(100, &[1]);
    let row = next(&mut body).await.expect("a row");
    assert!(
        row.starts_with("data: {\"key\":\"\\\"public\\\"") && row.ends_with("\"last\":true}}\n\n"),
        "{row}"
    );
    assert_eq!(
        next(&mut body).await.expect("an event"),
        "data: {\"headers\":{\"control\":\"up-to-date\",\"global_last_seen_lsn\":\"100\"}}\n\n"
    );
}

#[tokio::test(start_paused = true)]
async fn up_to_date_after_changes_only_and_never_past_them() {
    let (world, made) = world(Birth::Complete(0));
    let begun = Instant::now();
    let mut body = open(&world, "0_inf").await.into_body();
    made.set_published(900);
    assert_eq!(seen(&mut body).await, ": keep-alive");
    assert_eq!(begun.elapsed(), Duration::from_secs(21));
    sleep(Duration::from_secs(2)).await;
    made.commit(1000, &[1, 2]);
    made.set_published(5000);
    assert_eq!(seen(&mut body).await, "1,2");
    assert_eq!(seen(&mut body).await, "up-to-date 1000", "what the client asks for next is 1000_0");
    made.commit(6000, &[3]);
    assert_eq!(
        (seen(&mut body).await, seen(&mut body).await),
        ("3".to_owned(), "up-to-date 6000".to_owned())
    );
    assert_eq!(seen(&mut body).await, ": keep-alive");
    assert_eq!(begun.elapsed(), Duration::from_secs(44), "21 s after the last message");
    assert_eq!(seen(&mut body).await, "end");
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

/// U9: over the ends of chunks, and never without `up-to-date`.
#[tokio::test(start_paused = true)]
async fn a_backlog_is_sent_to_its_end() {
    let (world, made) = world(Birth::Complete(20));
    let ids: Vec<usize> = (100..130).collect();
    made.commit(100, &ids);
    made.commit(200, &[1]);
    let plain = world.get("/v1/shape?table=items&handle=77-1&offset=0_inf").await;
    assert_ne!(header(&plain, "electric-offset"), "200_0", "the backlog has several chunks");
    let begun = Instant::now();
    for (offset, first) in [("0_inf", "100,"), ("0_0", "")] {
        let response = open(&world, offset).await;
        assert_eq!(header(&response, "electric-offset"), offset, "what a client goes back to");
        assert!(!response.headers().contains_key("electric-up-to-date"));
        let all = short(&collect(response).await.expect("a whole stream"));
        assert!(all.starts_with(first) && all.ends_with("128,129,1,up-to-date 200"), "{all}");
        assert_eq!(all.matches("up-to-date").count(), 1, "{all}");
        assert_eq!(all.contains("snapshot-end"), offset == "0_0", "{all}");
    }
    assert_eq!(begun.elapsed(), 2 * Duration::from_millis(1_200), "then the stream ends");
}

/// Less than a second would be a broken stream to the official client. What is written meanwhile is sent.
#[tokio::test(start_paused = true)]
async fn a_stream_that_caught_up_lasts_for_more_than_a_second() {
    let (world, made) = world(Birth::Complete(0));
    made.commit(100, &[1]);
    made.commit(200, &[2]);
    let begun = Instant::now();
    let mut body = open(&world, "100_0").await.into_body();
    assert_eq!((seen(&mut body).await, seen(&mut body).await), ("2".to_owned(), "up-to-date 200".to_owned()));
    assert_eq!(begun.elapsed(), Duration::ZERO, "what there is comes at once");
    let (rest, ()) = tokio::join!(
        async { [seen(&mut body).await, seen(&mut body).await, seen(&mut body).await] },
        async {
            sleep(Duration::from_secs(1)).await;
            made.commit(300, &[3]);
        }
    );
    assert_eq!(rest, ["3", "up-to-date 300", "end"]);
    assert_eq!(begun.elapsed(), Duration::from_millis(1_200));
}

/// The client derives `200_0` from `up-to-date`, although the last message is `200_4`.
#[tokio::test(start_paused = true)]
async fn the_rest_of_the_last_transaction_is_no_reason_to_end() {
    let (world, made) = world(Birth::Complete(0));
    made.commit(200, &[1, 2, 3]);
    let mut body = open(&world, "200_0").await.into_body();
    assert_eq!(
        (seen(&mut body).await, seen(&mut body).await),
        ("2,3".to_owned(), "up-to-date 200".to_owned())
    );
    made.commit(300, &[4]);
    assert_eq!((seen(&mut body).await, seen(&mut body).await), ("4".to_owned(), "up-to-date 300".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_shape_and_shutdown_end_the_stream_at_once() {
    for shutdown in [false, true] {
        for successor in [false, true] {
            let (world, made) = world(Birth::Complete(0));
            let begun = Instant::now();
            let mut body = open(&world, "0_inf").await.into_body();
            let (ended, ()) = tokio::join!(seen(&mut body), async {
                sleep(Duration::from_secs(5)).await;
                if successor {
                    world.make(definition());
                }
                match shutdown {
                    true => drop(world.app.closing.send_replace(true)),
                    false => world.end(&made),
                }
            });
            assert_eq!((ended.as_str(), begun.elapsed()), ("end", Duration::from_secs(5)));
            if !shutdown {
                assert_eq!(open(&world, "0_inf").await.status(), 409, "and the next request is told why");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_come_as_json() {
    let (world, _) = world(Birth::Complete(0));
    for (target, status) in [
        ("/v1/shape?table=items&handle=1-1&live=true&live_sse=true&offset=0_inf", 409),
        ("/v1/shape?table=items&handle=77-1&live_sse=true&offset=0_inf", 400),
        ("/v1/shape?table=items&handle=77-1&live=true&live_sse=true&offset=900_0", 400),
        ("/v1/shape?table=gone&handle=77-1&live=true&live_sse=true&offset=0_inf", 400),
    ] {
        let response = world.get(target).await;
        assert_eq!(response.status(), status, "{target}");
        assert_eq!(header(&response, "content-type"), "application/json; charset=utf-8");
    }
}

#[tokio::test(start_paused = true)]
async fn the_old_name_of_the_parameter() {
    let (world, _) = world(Birth::Complete(0));
    let target = "/v1/shape?table=items&handle=77-1&live=true&offset=0_inf&experimental_live_sse=";
    assert_eq!(header(&world.get(&format!("{target}true")).await, "content-type"), "text/event-stream");
    let plain = world.get(&format!("{target}false")).await;
    assert_eq!(header(&plain, "content-type"), "application/json; charset=utf-8");
    let post = crate::server::testing::request(Method::POST, &format!("{LIVE}0_inf"));
    assert_eq!(header(&world.send(post).await, "cache-control"), "no-cache");
}

/// A snapshot that is still being written is part of the backlog.
#[tokio::test(start_paused = true)]
async fn the_stream_follows_a_snapshot() {
    let (world, made) = world(Birth::Readable);
    let mut snapshot = made.snapshot();
    (0..10).for_each(|row| push_row(&mut snapshot, row));
    snapshot.show().expect("the disk works");
    let response = open(&world, "0_0").await;
    let (all, ()) = tokio::join!(
        async {
            let mut body = response.into_body();
            let mut all = String::new();
            while !all.contains("up-to-date") {
                all.push_str(&seen(&mut body).await);
                all.push(',');
            }
            all
        },
        async {
            sleep(Duration::from_secs(1)).await;
            push_row(&mut snapshot, 10);
            finish(snapshot);
        }
    );
    assert!(all.ends_with("9,10,snapshot-end ,up-to-date 0,"), "{all}");
}
