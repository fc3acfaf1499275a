//! Live requests, and offsets that are ahead of the shape.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use tokio::time::Instant;

use crate::server::Settings;
use crate::server::testing::{Birth, Made, World, collect, definition, header};

const LIVE: &str = "/v1/shape?table=items&handle=77-1&live=true&offset=";

fn world() -> (World, Arc<Made>) {
    let world = World::new(Settings::default(), Birth::Complete(0));
    let made = world.make(definition());
    (world, made)
}

async fn live(world: &World, offset: &str) -> axum::response::Response {
    world.get(&format!("{LIVE}{offset}")).await
}

#[tokio::test(start_paused = true)]
async fn data_that_is_there_is_sent_at_once() {
    let (world, made) = world();
    made.commit(100, &[1]);
    made.set_published(150);
    let begun = Instant::now();
    let response = live(&world, "0_inf").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(header(&response, "electric-offset"), "100_0");
    assert_eq!(header(&response, "electric-has-data"), "true");
    assert_eq!(header(&response, "etag"), "\"77-1:0_inf:100_0\"");
    assert_eq!(header(&response, "cache-control"), "public, max-age=5, stale-while-revalidate=5");
    assert_eq!(header(&response, "electric-schema"), "", "not on live responses");
    let cursor: u64 = header(&response, "electric-cursor").parse().expect("a number");
    assert_eq!(cursor % 20, 0);
    let body = collect(response).await.expect("a body");
    assert!(
        body.ends_with(r#"{"headers":{"control":"up-to-date","global_last_seen_lsn":"100"}}]"#),
        "{body}"
    );
    let response = world.get(&format!("{LIVE}0_inf&cursor={}", cursor + 20)).await;
    let next: u64 = header(&response, "electric-cursor").parse().expect("a number");
    assert!((cursor + 21..=cursor + 20 + 3600).contains(&next), "{cursor} {next}");
}

#[tokio::test(start_paused = true)]
async fn a_commit_wakes() {
    let (world, made) = world();
    let (response, ()) = tokio::join!(live(&world, "0_inf"), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        made.commit(100, &[1]);
    });
    assert_eq!(header(&response, "electric-offset"), "100_0");
    let body = collect(response).await.expect("a body");
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&body).expect("an array").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_happens_for_the_whole_wait() {
    let (world, made) = world();
    made.commit(100, &[1]);
    let begun = Instant::now();
    let (response, ()) = tokio::join!(live(&world, "100_0"), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        // A commit elsewhere: no reason to wake, but one to tell at the end.
        made.set_published(500);
    });
    assert_eq!(begun.elapsed(), Duration::from_secs(20));
    assert_eq!(header(&response, "electric-offset"), "100_0");
    assert_eq!(header(&response, "electric-has-data"), "false");
    assert!(response.headers().contains_key("electric-up-to-date"));
    assert!(header(&response, "etag").starts_with("\"77-1:100_0:100_0:"));
    assert_eq!(
        collect(response).await.expect("a body"),
        r#"[{"headers":{"control":"up-to-date","global_last_seen_lsn":"500"}}]"#
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shape_wakes() {
    let (world, made) = world();
    let (response, ()) = tokio::join!(live(&world, "0_inf"), async {
        tokio::task::yield_now().await;
        world.end(&made);
    });
    assert_eq!((response.status().as_u16(), header(&response, "electric-handle")), (409, ""));
    assert_eq!(header(&response, "cache-control"), "public, max-age=1, must-revalidate");

    let (world, made) = self::world();
    let (response, ()) = tokio::join!(live(&world, "0_inf"), async {
        tokio::task::yield_now().await;
        world.make(definition());
        world.end(&made);
    });
    assert_eq!((response.status().as_u16(), header(&response, "electric-handle")), (409, "77-2"));
}

#[tokio::test(start_paused = true)]
async fn shutdown_wakes_with_the_answer_of_a_timeout() {
    let (world, _) = world();
    let begun = Instant::now();
    let (response, ()) = tokio::join!(live(&world, "0_inf"), async {
        tokio::task::yield_now().await;
        world.app.closing.send_replace(true);
    });
    assert_eq!((begun.elapsed(), response.status().as_u16()), (Duration::ZERO, 200));
    assert_eq!(header(&response, "electric-has-data"), "false");
    assert_eq!(live(&world, "0_inf").await.status(), 200, "nor is anything waited for later");
}

#[tokio::test(start_paused = true)]
async fn an_offset_ahead_of_the_shape_is_waited_for() {
    for live in ["", "&live=true"] {
        let (world, made) = world();
        let target = format!("/v1/shape?table=items&handle=77-1&offset=200_0{live}");
        let begun = Instant::now();
        assert_eq!(
            world.body(Method::GET, &target).await,
            r#"400 {"message":"Invalid request","errors":{"offset":["out of bounds for this shape"]}}"#
        );
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        let (response, ()) = tokio::join!(world.get(&target), async {
            tokio::task::yield_now().await;
            made.commit(100, &[1]);
            tokio::task::yield_now().await;
            made.commit(300, &[2]);
        });
        assert_eq!((response.status().as_u16(), header(&response, "electric-offset")), (200, "300_0"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_client_that_has_not_read_the_log_yet_is_answered_at_once() {
    let (world, _) = world();
    let begun = Instant::now();
    let response = live(&world, "0_0").await;
    assert_eq!((begun.elapsed(), header(&response, "electric-offset")), (Duration::ZERO, "0_inf"));
}

/// Five thousand of them wait at once.
#[tokio::test(start_paused = true)]
async fn a_waiting_request_is_small() {
    let (world, _) = world();
    let waiting = live(&world, "0_inf");
    let bytes = size_of_val(&waiting);
    assert!(bytes < 8_192, "{bytes} bytes");
    drop(waiting);
}
