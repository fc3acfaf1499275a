//! What a request has to pass before anything is read.

use std::sync::Arc;

use axum::http::Method;

use crate::runtime::handle::Status;
use crate::server::Settings;
use crate::server::testing::{Birth, World, collect, definition, header, request, text};

fn world(settings: Settings) -> World {
    World::new(settings, Birth::Complete(1))
}

#[tokio::test(start_paused = true)]
async fn routes() {
    let world = world(Settings::default());
    for (method, target, expected) in [
        (Method::GET, "/", "200 "),
        (Method::GET, "/v1/health?x=1", r#"200 {"status":"active"}"#),
        (Method::POST, "/v1/health", "404 Not found"),
        (Method::PUT, "/v1/shape", "404 Not found"),
        (Method::OPTIONS, "/", "404 Not found"),
        (Method::OPTIONS, "/v1/shape", "204 "),
        (Method::GET, "/v2/shape", "404 Not found"),
        (
            Method::GET,
            "/v1/shape",
            r#"400 {"message":"Invalid request","errors":{"offset":["can't be blank"]}}"#,
        ),
        (
            Method::GET,
            "/v1/shape?offset=-1",
            r#"400 {"message":"Invalid request","errors":{"table":["can't be blank"]}}"#,
        ),
        (
            Method::GET,
            "/v1/shape?offset=-1&table=gone",
            r#"400 {"message":"Invalid request","errors":{"table":["Table \"public\".\"gone\" does not exist. If the table name contains capitals or special characters you must quote it."]}}"#,
        ),
        (
            Method::GET,
            "/v1/shape?offset=-1&table=never_seen",
            r#"503 {"message":"Cannot connect to the database to verify the shape. Please try again later."}"#,
        ),
        (
            Method::GET,
            "/v1/shape?offset=-1&table=items&where=id",
            r#"400 {"message":"Invalid request","errors":{"where":["WHERE clause must return a boolean"]}}"#,
        ),
        (Method::DELETE, "/v1/shape?table=items", r#"405 {"message":"DELETE not allowed"}"#),
    ] {
        assert_eq!(world.body(method.clone(), target).await, expected, "{method} {target}");
    }
    assert_eq!(world.made_count(), 0, "nothing of this makes a shape");
}

#[tokio::test(start_paused = true)]
async fn headers_of_every_response() {
    let world = world(Settings::default());
    let expected = "404\n\
        content-type: text/plain; charset=utf-8\n\
        cache-control: max-age=0, private, must-revalidate\n\
        electric-server: ElectricSQL/1.7.12\n\
        access-control-allow-origin: *\n\
        access-control-expose-headers: electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,electric-internal-known-error,retry-after\n\
        access-control-allow-methods: GET, HEAD\n\
        vary: accept-encoding\n\
        \nNot found";
    assert_eq!(text(world.get("/nowhere").await).await, expected);
    let mut preflight = request(Method::OPTIONS, "/v1/shape");
    preflight.headers_mut().insert("origin", "https://app.example".parse().expect("ASCII"));
    let response = world.send(preflight).await;
    assert_eq!(header(&response, "access-control-allow-origin"), "https://app.example");
    assert_eq!(header(&response, "access-control-allow-methods"), "GET, POST, HEAD, DELETE, OPTIONS");
    assert_eq!(header(&response, "cache-control"), "");
    assert_eq!(header(&response, "vary"), "");
    assert_eq!(header(&response, "connection"), "keep-alive");
    assert_eq!(header(&world.get("/").await, "cache-control"), "max-age=0, private, must-revalidate");
}

#[tokio::test(start_paused = true)]
async fn the_secret_guards_every_spelling_of_the_path() {
    let world = world(Settings { secret: Some("s".to_owned()), ..Settings::default() });
    let refused = r#"401 {"message":"Unauthorized - Invalid API secret"}"#;
    for path in ["/v1/shape", "/v1/shape/", "/v1//shape", "/v1/%73hape"] {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE] {
            assert_eq!(world.body(method, &format!("{path}?offset=-1&table=items")).await, refused, "{path}");
        }
        let open = world.get(&format!("{path}?offset=-1&table=items&secret=s")).await;
        assert_eq!(open.status(), 200, "{path}");
    }
    let response = world.get("/v1/shape").await;
    assert_eq!(header(&response, "access-control-allow-origin"), "");
    assert_eq!(header(&response, "electric-server"), "ElectricSQL/1.7.12");
    for (method, target, status) in [
        (Method::OPTIONS, "/v1/shape", 204),
        (Method::GET, "/", 200),
        (Method::GET, "/v1/health", 200),
        (Method::PUT, "/v1/shape", 404),
    ] {
        assert_eq!(world.send(request(method, target)).await.status(), status, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_before_validation_and_overload_before_readiness() {
    let world = world(Settings { initial_requests_max: 0, ..Settings::default() });
    let response = world.get("/v1/shape").await;
    assert_eq!(response.status(), 503);
    assert_eq!(header(&response, "electric-internal-known-error"), "true");
    assert_eq!(
        collect(response).await.expect("a body"),
        r#"{"code":"concurrent_request_limit_exceeded","message":"Concurrent initial request limit exceeded (limit: 0), please retry"}"#
    );

    let world = self::world(Settings::default());
    let reason = "Timeout waiting for Postgres lock acquisition";
    world.service.set_status(Status::Starting { reason: reason.to_owned() });
    let response = world.get("/v1/shape").await;
    assert_eq!(header(&response, "retry-after"), "5");
    assert_eq!(collect(response).await.expect("a body"), format!(r#"{{"message":"{reason}"}}"#));
    let (response, ()) = tokio::join!(world.get("/v1/shape?offset=-1&table=items"), async {
        tokio::task::yield_now().await;
        world.service.set_status(Status::Active);
    });
    assert_eq!(response.status(), 200, "a request waits for readiness");
}

/// A place is taken for as long as a request waits, and for as long as its body is being sent.
#[tokio::test(start_paused = true)]
async fn places_are_held_to_the_end() {
    let world = world(Settings { existing_requests_max: 1, ..Settings::default() });
    let made = world.make(definition());
    let target = "/v1/shape?table=items&handle=77-1&offset=0_inf";
    let full = r#"503 {"code":"concurrent_request_limit_exceeded","message":"Concurrent existing request limit exceeded (limit: 1), please retry"}"#;
    let live = format!("{target}&live=true");
    let (waited, ()) = tokio::join!(world.get(&live), async {
        tokio::task::yield_now().await;
        assert_eq!(world.body(Method::GET, target).await, full);
        made.commit(100, &[1]);
    });
    assert_eq!(waited.status(), 200);
    let streamed = world.get("/v1/shape?table=items&handle=77-1&offset=-1").await;
    assert_eq!(world.body(Method::GET, target).await, full);
    collect(streamed).await.expect("a whole body");
    assert_eq!(world.get(target).await.status(), 200, "the place is free again");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_service_serves_what_there_is() {
    let world = world(Settings { allow_delete: true, ..Settings::default() });
    let handle = world.make(definition()).live.handle;
    let reason = "Timeout waiting for Postgres lock acquisition";
    world.service.set_status(Status::Waiting { reason: reason.to_owned() });
    let not_ready = format!(r#"503 {{"message":"{reason}"}}"#);
    for target in ["offset=-1&table=items".to_owned(), format!("offset=0_inf&table=items&handle={handle}")] {
        assert_eq!(world.get(&format!("/v1/shape?{target}")).await.status(), 200, "{target}");
    }
    assert_eq!(world.body(Method::GET, "/v1/shape?offset=-1&table=items&columns=id,k").await, not_ready);
    assert_eq!(world.body(Method::DELETE, "/v1/shape?table=items").await, not_ready);
    let other = world.get("/v1/shape?offset=0_0&table=items&handle=1-1").await;
    assert_eq!((other.status().as_u16(), header(&other, "electric-handle")), (409, &*handle.to_string()));
}

/// `never_seen` cannot be looked up, since there is no Postgres here.
#[tokio::test(start_paused = true)]
async fn existing_shapes_are_served_without_postgres() {
    let world = world(Settings::default());
    let mut definition = definition();
    Arc::make_mut(&mut definition.relation).name.table = "never_seen".to_owned();
    let made = world.make(definition);
    made.commit(100, &[1]);
    for live in ["", "&live=true"] {
        let target = format!("/v1/shape?table=never_seen&handle=77-1&offset=0_inf{live}");
        assert_eq!(world.get(&target).await.status(), 200, "{target}");
    }
    let new = world.get("/v1/shape?table=never_seen&offset=-1").await;
    assert_eq!((new.status().as_u16(), header(&new, "retry-after")), (503, "1"));
}

#[tokio::test(start_paused = true)]
async fn bodies_of_a_post() {
    use axum::body::Body;
    let world = world(Settings::default());
    let post = |target: &str, body: &'static str| {
        let mut request = request(Method::POST, target);
        *request.body_mut() = Body::from(body);
        world.send(request)
    };
    let response = post("/v1/shape?offset=-1", r#"{"table":"items","live":false}"#).await;
    assert_eq!((response.status().as_u16(), header(&response, "cache-control")), (200, "no-cache"));
    let response = post("/v1/shape?offset=-1", "[]").await;
    assert_eq!(header(&response, "cache-control"), "max-age=0, private, must-revalidate");
    assert_eq!(collect(response).await.expect("a body"), r#"{"error":"Request body must be a JSON object"}"#);
    let mut request = request(Method::POST, "/v1/shape?offset=-1&table=items");
    *request.body_mut() = Body::from(vec![b' '; 8_000_001]);
    let response = world.send(request).await;
    assert_eq!(response.status(), 413);
    let response = post("/v1/shape?offset=-1&table=items", r#"{"limit":5}"#).await;
    assert_eq!(
        collect(response).await.expect("a body"),
        r#"{"message":"Invalid request","errors":{"subset":{"order_by":["order_by is required when limit or offset is present"]}}}"#
    );
}

#[tokio::test(start_paused = true)]
async fn deletion() {
    let world = world(Settings { allow_delete: true, ..Settings::default() });
    let handle = world.make(definition()).live.handle;
    assert_eq!(
        world.body(Method::DELETE, "/v1/shape?table=items&columns=id,k").await,
        r#"404 {"message":"No existing shape found"}"#
    );
    assert_eq!(
        world.body(Method::DELETE, "/v1/shape?table=items&handle=1-1").await,
        r#"400 {"message":"The specified shape definition and handle do not match. Please ensure the shape definition is correct or omit the shape handle from the request to obtain a new one."}"#
    );
    assert_eq!(
        world.body(Method::DELETE, "/v1/shape?handle=1-1").await,
        r#"404 {"message":"No existing shape found"}"#
    );
    let response = world.send(request(Method::DELETE, &format!("/v1/shape?handle={handle}"))).await;
    assert_eq!(response.status(), 202);
    assert_eq!(header(&response, "cache-control"), "no-cache");
    assert_eq!(header(&response, "electric-has-data"), "true");
    let gone = world.get(&format!("/v1/shape?table=items&offset=0_0&handle={handle}")).await;
    assert_eq!(gone.status(), 409);
    assert_ne!(header(&gone, "electric-handle"), handle.to_string());
}
