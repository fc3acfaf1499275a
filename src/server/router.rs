//! From a request to its handler and back: routes, secret, and the headers of every response
//! (contract 1.1, 1.3, 1.4, 1.19).

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL,
    CONNECTION, IF_NONE_MATCH, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use percent_encoding::percent_decode_str;
use rand::Rng;
use rand::distr::Alphanumeric;

use crate::telemetry::{Metrics, OpenSpan, Sampling, SpanKind, TraceContext, Value as Attribute};

use super::App;
use super::delete::delete;
use super::encoding::{Encoding, encoded};
use super::error::{CACHE_DEFAULT, Failure, ascii};
use super::fields::{Fields, Value};
use super::health::{health, readiness};
use super::response::{ELECTRIC_HANDLE, ELECTRIC_HAS_DATA, respond};
use super::shape::{Call, get};

/// The version of the reference implementation whose contract this server keeps: clients and proxies
/// look at it.
const ELECTRIC_SERVER: &str = "ElectricSQL/1.7.12";
const EXPOSED: &str = "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,\
                       electric-up-to-date,electric-internal-known-error,retry-after";
/// Request headers that scripts of other origins may send.
const ALLOWED_HEADERS: [&str; 3] = ["if-none-match", "traceparent", "content-type"];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_LEN: std::ops::RangeInclusive<usize> = 20..=200;

/// Where a path leads. One value decides about the secret and about the handler, so that no spelling
/// of a path can pass one and reach the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Root,
    Shape,
    Health,
    Ready,
    /// Makes the writer of a shape panic.
    #[cfg(feature = "test-hooks")]
    TestPanic,
    /// Holds a part of the pipeline up, or lets it go on.
    #[cfg(feature = "test-hooks")]
    TestHold,
    Unknown,
}

impl Route {
    /// Empty segments do not count, and segments may be percent-encoded.
    fn of(path: &str) -> Route {
        let decode = |segment| percent_decode_str(segment).decode_utf8();
        let segments: Result<Vec<Cow<'_, str>>, _> =
            path.split('/').filter(|segment| !segment.is_empty()).take(3).map(decode).collect();
        let Ok(segments) = segments else { return Route::Unknown };
        let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match segments.as_slice() {
            [] => Route::Root,
            ["v1", "shape"] => Route::Shape,
            ["v1", "health"] => Route::Health,
            ["v1", "ready"] => Route::Ready,
            #[cfg(feature = "test-hooks")]
            ["test-hooks", "panic"] => Route::TestPanic,
            #[cfg(feature = "test-hooks")]
            ["test-hooks", "hold"] => Route::TestHold,
            _ => Route::Unknown,
        }
    }

    /// Of metrics.
    fn name(self) -> &'static str {
        match self {
            Route::Root => "root",
            Route::Shape => "shape",
            Route::Health => "health",
            Route::Ready => "ready",
            #[cfg(feature = "test-hooks")]
            Route::TestPanic | Route::TestHold => "test",
            Route::Unknown => "unknown",
        }
    }

    fn methods(self) -> &'static str {
        match self {
            Route::Shape => "GET, POST, HEAD, DELETE, OPTIONS",
            Route::Root | Route::Health | Route::Ready | Route::Unknown => "GET, HEAD",
            #[cfg(feature = "test-hooks")]
            Route::TestPanic | Route::TestHold => "POST",
        }
    }
}

/// Answers one request.
pub(super) async fn dispatch<B>(app: &App, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let route = Route::of(request.uri().path());
    let origin = request.headers().get(ORIGIN).cloned();
    let encoding = Encoding::accepted(request.headers());
    let id = request_id(request.headers());
    let method = request.method().clone();
    let begun = Instant::now();
    let span = begin_span(app, route, &request);
    // A bug in the handling of one request is a 500 for one client.
    let handled = AssertUnwindSafe(handle(app, route, request)).catch_unwind().await;
    let mut response = handled.unwrap_or_else(|_panic| Failure::Internal.reply(&method).into_response());
    add_common_headers(response.headers_mut(), id);
    let status = response.status();
    count(app.service.metrics(), route, status, begun);
    if let Some(span) = span {
        end_span(app, *span, &response);
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        tell(route, &method, &response, begun);
    }
    if status != StatusCode::UNAUTHORIZED {
        add_cors_headers(response.headers_mut(), route, origin);
    }
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        response.headers_mut().entry(CACHE_CONTROL).or_insert(CACHE_DEFAULT);
    }
    match encoding {
        // Boxed: most requests wait for long, and this would be part of each.
        Some(encoding) => Box::pin(encoded(encoding, response)).await,
        None => response,
    }
}

/// One line for each answer, with the keys of contract 6.3. Neither the path's spelling nor the query is
/// in it: a secret may be.
fn tell(route: Route, method: &Method, response: &Response, begun: Instant) {
    let header = |name: &HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    tracing::debug!(
        request_id = header(&REQUEST_ID).unwrap_or_default(),
        shape_handle = header(&ELECTRIC_HANDLE).unwrap_or_default(),
        %method,
        route = route.name(),
        status = response.status().as_u16(),
        millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
}

/// The span of a request to the shape route (contract 6.3), as the caller's trace wants it.
fn begin_span<B>(app: &App, route: Route, request: &Request<B>) -> Option<Box<OpenSpan>> {
    if route != Route::Shape || request.method() == Method::OPTIONS {
        return None;
    }
    let header = |name: &'static str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let parent = header("traceparent").and_then(TraceContext::parse);
    let tracer = app.service.tracer();
    // Apart: the request may wait for long, and most have none.
    let mut span = Box::new(tracer.begin("Plug_shape_get", SpanKind::Server, Sampling::Ratio, parent)?);
    span.set("http.request.method", Attribute::Text(request.method().to_string()));
    span.set("http.route", Attribute::Text("/v1/shape".to_owned()));
    let rate = header("tracestate").and_then(|state| {
        state.split(',').find_map(|member| member.trim().strip_prefix("electric=rate:")?.parse().ok())
    });
    if let Some(rate) = rate {
        span.set("SampleRate", Attribute::Int(rate));
    }
    Some(span)
}

fn end_span(app: &App, mut span: OpenSpan, response: &Response) {
    let empty = response.headers().get(&ELECTRIC_HAS_DATA).is_some_and(|value| value == "false");
    if empty && app.settings.drop_empty_spans {
        return;
    }
    let status = response.status();
    span.set("http.response.status_code", Attribute::Int(i64::from(status.as_u16())));
    for (name, header) in [("shape.handle", &ELECTRIC_HANDLE), ("http.request_id", &REQUEST_ID)] {
        if let Some(value) = response.headers().get(header).and_then(|value| value.to_str().ok()) {
            span.set(name, Attribute::Text(value.to_owned()));
        }
    }
    span.end(status.is_server_error());
}

fn count(metrics: &Metrics, route: Route, status: StatusCode, begun: Instant) {
    let (route_name, status) = (route.name(), status.as_str());
    metrics.http_requests.with_label_values(&[route_name, status]).inc();
    metrics.http_seconds.with_label_values(&[route_name]).observe(begun.elapsed().as_secs_f64());
    if route == Route::Shape {
        metrics.requests.with_label_values(&[status]).inc();
    }
}

async fn handle<B>(app: &App, route: Route, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    // What the request holds is freed here: a live request may wait for long.
    let (parts, body) = request.into_parts();
    let method = parts.method;
    match (route, method.clone()) {
        (Route::Root, Method::GET | Method::HEAD) => {
            respond(StatusCode::OK, HeaderMap::with_capacity(10), Body::empty())
        }
        (Route::Health, Method::GET | Method::HEAD) => {
            let alarm = app.service.progress().report(Instant::now()).and_then(|report| report.alarm());
            health(&app.service.status(), alarm.as_deref()).into_response()
        }
        (Route::Ready, Method::GET | Method::HEAD) => {
            readiness(&app.service, app.settings.stall_after).into_response()
        }
        (Route::Shape, Method::OPTIONS) => preflight(&parts.headers),
        (Route::Shape, Method::GET | Method::HEAD | Method::POST | Method::DELETE) => {
            let fields = Fields::from_query(parts.uri.query().unwrap_or_default());
            if !is_authorized(app.settings.secret.as_deref(), &fields) {
                return Failure::Unauthorized.reply(&method).into_response();
            }
            if method == Method::DELETE {
                let reply = Box::pin(delete(app, &fields)).await;
                return reply.unwrap_or_else(|failure| failure.reply(&method)).into_response();
            }
            let tags = parts.headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
            let if_none_match = tags.map(str::to_owned);
            drop((parts.headers, parts.uri, parts.extensions));
            let body = (method == Method::POST).then(|| Body::new(body));
            let call = Call { method: method.clone(), fields, if_none_match, body };
            get(app, call).await.unwrap_or_else(|failure| failure.reply(&method).into_response())
        }
        #[cfg(feature = "test-hooks")]
        (Route::TestPanic, Method::POST) => {
            let fields = Fields::from_query(parts.uri.query().unwrap_or_default());
            let reply = super::test_hooks::panic(app, &fields).await;
            reply.unwrap_or_else(|failure| failure.reply(&method)).into_response()
        }
        #[cfg(feature = "test-hooks")]
        (Route::TestHold, Method::POST) => {
            let fields = Fields::from_query(parts.uri.query().unwrap_or_default());
            let reply = super::test_hooks::hold(app, &fields);
            reply.unwrap_or_else(|failure| failure.reply(&method)).into_response()
        }
        #[cfg(feature = "test-hooks")]
        (Route::TestPanic | Route::TestHold, _) => Failure::NotFound.reply(&method).into_response(),
        (Route::Root | Route::Shape | Route::Health | Route::Ready | Route::Unknown, _) => {
            Failure::NotFound.reply(&method).into_response()
        }
    }
}

/// The secret is taken from the query only; a wrong `secret` is not rescued by a right `api_secret`.
fn is_authorized(secret: Option<&str>, fields: &Fields) -> bool {
    let Some(secret) = secret else { return true };
    match fields.get("secret").or_else(|| fields.get("api_secret")) {
        Some(Value::Text(given)) => same_secret(secret.as_bytes(), given.as_bytes()),
        Some(Value::Map(_) | Value::Unusable) | None => false,
    }
}

/// Takes as long for a good beginning as for a bad one.
fn same_secret(secret: &[u8], given: &[u8]) -> bool {
    let differences = secret.iter().zip(given).fold(0, |differences, (a, b)| differences | (a ^ b));
    secret.len() == given.len() && std::hint::black_box(differences) == 0
}

/// The incoming id where it is of a decent length, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let incoming = headers.get(REQUEST_ID).filter(|id| REQUEST_ID_LEN.contains(&id.len()));
    incoming.cloned().unwrap_or_else(|| {
        let token: String = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
        ascii(&token)
    })
}

fn add_common_headers(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(HeaderName::from_static("electric-server"), HeaderValue::from_static(ELECTRIC_SERVER));
    headers.insert(REQUEST_ID, id);
}

fn add_cors_headers(headers: &mut HeaderMap, route: Route, origin: Option<HeaderValue>) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.unwrap_or(HeaderValue::from_static("*")));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(route.methods()));
}

fn preflight(request: &HeaderMap) -> Response {
    let mut headers = HeaderMap::with_capacity(10);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    let requested =
        request.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter().filter_map(|line| line.to_str().ok());
    let allowed: Vec<&str> = requested
        .flat_map(|line| line.split(','))
        .filter_map(|name| ALLOWED_HEADERS.iter().find(|allowed| name.trim().eq_ignore_ascii_case(allowed)))
        .copied()
        .collect();
    if !allowed.is_empty() {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ascii(&allowed.join(",")));
    }
    respond(StatusCode::NO_CONTENT, headers, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_many_spellings_and_one_meaning() {
        for (path, route) in [
            ("", Route::Root),
            ("/", Route::Root),
            ("//", Route::Root),
            ("/v1/shape", Route::Shape),
            ("/v1/shape/", Route::Shape),
            ("/v1//shape", Route::Shape),
            ("/v1/%73hape", Route::Shape),
            ("/%76%31/shape", Route::Shape),
            ("/v1/health", Route::Health),
            ("/v1/ready", Route::Ready),
            ("/v1/Shape", Route::Unknown),
            ("/v1%2Fshape", Route::Unknown),
            ("/v1/shape/x", Route::Unknown),
            ("/v1/shape/x/y", Route::Unknown),
            ("/v1/%ff", Route::Unknown),
            ("/v1/../v1/shape", Route::Unknown),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn the_secret_is_in_the_query() {
        let check = |secret: Option<&str>, query: &str| is_authorized(secret, &Fields::from_query(query));
        assert!(check(None, "secret=whatever"));
        for (query, authorized) in [
            ("secret=s3cr%C3%A9t", true),
            ("api_secret=s3cr%C3%A9t", true),
            ("secret=s3cr%C3%A9t&api_secret=wrong", true),
            ("secret=wrong&api_secret=s3cr%C3%A9t", false),
            ("secret=&api_secret=s3cr%C3%A9t", false),
            ("secret=s3cr", false),
            ("secret[a]=s3cr%C3%A9t", false),
            ("", false),
        ] {
            assert_eq!(check(Some("s3crét"), query), authorized, "{query}");
        }
    }

    #[test]
    fn request_ids_of_a_decent_length_are_echoed() {
        let check = |len: usize| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, ascii(&"x".repeat(len)));
            request_id(&headers)
        };
        assert_eq!(check(20), "x".repeat(20));
        assert_eq!(check(200), "x".repeat(200));
        for refused in [19, 201] {
            let id = check(refused);
            assert!(id.len() == 20 && id != "x".repeat(20), "{id:?}");
        }
    }

    #[test]
    fn preflights_name_the_headers_that_are_known() {
        let check = |requested: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCESS_CONTROL_REQUEST_HEADERS, ascii(requested));
            let response = preflight(&headers);
            assert_eq!(response.status(), 204);
            assert_eq!(response.headers()[ACCESS_CONTROL_MAX_AGE], "86400");
            response.headers().get(ACCESS_CONTROL_ALLOW_HEADERS).map(|v| v.to_str().expect("text").to_owned())
        };
        assert_eq!(check("If-None-Match").as_deref(), Some("if-none-match"));
        assert_eq!(check("if-none-match, traceparent, x-evil").as_deref(), Some("if-none-match,traceparent"));
        assert_eq!(check("x-evil"), None);
    }
}
