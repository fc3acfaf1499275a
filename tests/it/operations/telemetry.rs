//! Metrics and traces, as others read them.

use super::collector::{Collector, attribute};
use super::{metric, scrape};
use crate::service::{ITEMS, catch_up, until};
use crate::support::{Service, ShapeRequest, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

#[tokio::test]
async fn prometheus_finds_what_electric_has_and_more() {
    let database = database("prometheus").await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_PROMETHEUS_PORT", "0")
            .set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms")
            .set("ELECTRIC_LONG_POLL_TIMEOUT", "300")
            .set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":0,"existing":5}"#);
    })
    .await;
    // No place for a first request.
    let refused = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let answer = scrape(&service).await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    for (name, value) in [
        ("electric_plug_serve_shape_requests_count{status=\"503\"}", 1.0),
        ("electric_admission_control_reject_count{kind=\"initial\"}", 1.0),
        ("electric_admission_control_acquire_current{kind=\"initial\"}", 0.0),
        ("electric_admission_control_acquire_limit{kind=\"existing\"}", 5.0),
        ("shapefold_status{status=\"active\"}", 1.0),
        ("shapefold_status{status=\"waiting\"}", 0.0),
        ("shapefold_pool_limit{pool=\"admin\"}", 4.0),
        ("shapefold_pool_limit{pool=\"snapshot\"}", 16.0),
    ] {
        assert_eq!(metric(&service, name).await, Some(value), "{name}");
    }
}

#[tokio::test]
async fn metrics_follow_what_happens() {
    let database = database("metrics").await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_PROMETHEUS_PORT", "0").set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    for round in 0..3 {
        database.execute(&format!("UPDATE items SET v = 'round {round}'")).await;
        catch_up(&mut client, &ITEMS, &database.client().await).await;
    }
    let at_least = async |name: &str, least: f64| {
        until(name, async || metric(&service, name).await.filter(|value| *value >= least)).await
    };
    for (name, least) in [
        ("electric_shapes_total_shapes_count", 1.0),
        ("electric_shapes_active_shapes_count", 1.0),
        ("shapefold_shapes{phase=\"live\"}", 1.0),
        ("shapefold_writers", 1.0),
        ("electric_postgres_replication_slot_retained_wal_size", 1.0),
        ("electric_postgres_replication_transaction_received_receive_lag_count", 1.0),
        ("electric_plug_serve_shape_requests_count{status=\"200\"}", 3.0),
        ("shapefold_transactions_total", 1.0),
        ("shapefold_transaction_changes_total", 10.0),
        ("shapefold_journal_entries_total", 5.0),
        ("shapefold_journal_sync_seconds_count", 1.0),
        ("shapefold_flush_groups_total", 1.0),
        ("shapefold_http_requests_total{route=\"shape\",status=\"200\"}", 3.0),
        ("shapefold_queue_limit{queue=\"inputs\"}", 4_096.0),
        ("shapefold_queue_limit{queue=\"held_bytes\"}", 1_024.0),
        ("shapefold_disk_free_bytes", 1.0),
        ("process_resident_memory_bytes", 1_000_000.0),
        ("system_memory_percent{kind=\"available_memory\"}", 0.1),
    ] {
        at_least(name, least).await;
    }
    // Everything has been flushed and acknowledged: nothing waits.
    let settled = async |name: &str| {
        until(name, async || metric(&service, name).await.filter(|value| *value == 0.0)).await;
    };
    settled("shapefold_shapes_owing").await;
    settled("shapefold_held_bytes").await;
    let text = scrape(&service).await.text();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        let row = format!("| `{name}` | {kind} |");
        assert!(document.contains(&row), "docs/operations.md lacks {row}");
    }
    for secret in ["items", "round 2", &database.name] {
        assert!(!text.contains(secret), "{secret} is in\n{text}");
    }
}

#[tokio::test]
async fn readiness_says_how_it_gets_on() {
    let database = database("ready").await;
    database.execute(TABLE).await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms");
    })
    .await;
    let answer = until("the probe has looked", async || {
        let answer = service.get("/v1/ready").await;
        answer.json()["progress"]["wal_gap_bytes"].is_u64().then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["ready"], &body["progressing"]), (&true.into(), &true.into()), "{body}");
    assert_eq!(body["status"], "active");
    assert_eq!(answer.header("cache-control"), Some("no-cache, no-store, must-revalidate"));
}

/// A shape whose snapshot waits for an open transaction owes what is committed meanwhile: the service is
/// active, and not ready, and says on whose account.
#[tokio::test]
async fn a_shape_that_holds_everything_up_is_named() {
    let database = database("holder").await;
    database.execute(TABLE).await;
    database.execute("ALTER TABLE items REPLICA IDENTITY FULL").await;
    let mut service = Service::start(&database, |settings| {
        settings
            .set("SHAPEFOLD_READY_STALL_AFTER", "1500ms")
            .set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms");
    })
    .await;
    let mut blocking = database.client().await;
    let transaction = blocking.transaction().await.expect("a transaction");
    transaction.batch_execute("UPDATE items SET v = 'open' WHERE id = 1").await.expect("it is written");
    let mut http = service.http();
    let request = tokio::spawn(async move { http.get("/v1/shape?table=items&offset=-1").await });
    let published = format!(
        "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'electric_publication_{}'",
        database.name
    );
    until("the table is published", async || {
        (database.value(&published).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    database.execute("UPDATE items SET v = 'owed' WHERE id = 2").await;
    let told = until("it is not ready", async || {
        let answer = service.get("/v1/ready").await;
        (answer.status == 503).then(|| answer.json()).filter(|told| told["progress"]["shapes_owing"] == 1)
    })
    .await;
    assert_eq!(service.health().await, Some(200), "active is not ready");
    assert_eq!((&told["ready"], &told["progressing"]), (&false.into(), &false.into()), "{told}");
    let holder = told["progress"]["holder"]["shape_handle"].as_str().expect("a holder").to_owned();
    let message = told["message"].as_str().expect("a message");
    assert!(message.contains("has not moved") && message.contains(&holder), "{message}");
    transaction.commit().await.expect("it commits");
    let answer = request.await.expect("no panic").expect("an answer");
    assert_eq!((answer.status, answer.header("electric-handle")), (200, Some(&*holder)), "{}", answer.text());
    until("it is ready", async || (service.get("/v1/ready").await.status == 200).then_some(())).await;
}

/// Datagrams of whole lines: gauges, and counters as what they grew by.
#[tokio::test]
async fn statsd_gets_metrics() {
    let database = database("statsd").await;
    database.execute(TABLE).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let host = socket.local_addr().expect("bound").to_string();
    let service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_STATSD_HOST", host)
            .set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms")
            .set("ELECTRIC_OTEL_DEBUG", "true")
            .set("ELECTRIC_OTEL_SAMPLING_RATIO", "1")
            .set("ELECTRIC_EXCLUDE_SPANS", "pg_txn.received, shape_snapshot.create")
            .set("ELECTRIC_DROP_EMPTY_RESPONSE_SPANS", "true")
            .set("ELECTRIC_TWEAKS_CONN_MAX_REQUESTS", "2");
    })
    .await;
    let mut http = service.http();
    let first = http.get("/v1/shape?table=items&offset=-1").await.expect("an answer");
    assert_eq!((first.status, first.header("connection")), (200, None));
    let now = http.get("/v1/shape?table=items&offset=now").await.expect("an answer");
    assert_eq!((now.status, now.header("connection")), (200, Some("close")));
    let (mut requests, mut shapes) = (0.0, false);
    let mut buffer = vec![0; 65_536];
    let told = async {
        while requests < 2.0 || !shapes {
            let len = socket.recv(&mut buffer).await.expect("a datagram");
            for line in std::str::from_utf8(&buffer[..len]).expect("text").lines() {
                let (name, rest) = line.split_once(':').expect("a name");
                let (value, kind) = rest.split_once('|').expect("a type");
                let value: f64 = value.parse().expect("a number");
                match (name, kind) {
                    ("electric.plug.serve_shape.requests.count", "c|#status:200") => requests += value,
                    ("electric.shapes.total_shapes.count", "g") => shapes |= value == 1.0,
                    _ => assert!(kind.starts_with('g') || kind.starts_with('c'), "{line}"),
                }
            }
        }
    };
    tokio::time::timeout(crate::support::WAIT_DURATION_MAX, told).await.expect("it is told in time");
    assert!(requests == 2.0, "{requests}");
    let spans = until("the span is printed", async || {
        let output = service.output();
        let spans: Vec<String> =
            output.lines().filter(|line| line.starts_with("span ")).map(str::to_owned).collect();
        (!spans.is_empty()).then_some(spans)
    })
    .await;
    let [span] = spans.as_slice() else { panic!("one span is wanted: {spans:?}") };
    assert!(span.starts_with("span Plug_shape_get trace_id=") && span.contains("shape.handle="), "{span}");
}

/// Spans and metrics arrive, continue the caller's trace, and hold nothing of the data.
#[tokio::test]
async fn a_collector_gets_spans_and_metrics() {
    let database = database("otlp").await;
    database.execute(TABLE).await;
    let collector = Collector::start().await;
    let mut service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_OTLP_ENDPOINT", collector.url.clone())
            .set("ELECTRIC_OTEL_EXPORT_PERIOD", "200ms")
            .set("ELECTRIC_OTEL_SAMPLING_RATIO", "0")
            .set("ELECTRIC_SERVICE_NAME", "sync")
            .set("ELECTRIC_INSTANCE_ID", "one")
            .set("ELECTRIC_HNY_API_KEY", "hny-key")
            .set("OTEL_RESOURCE_ATTRIBUTES", "region=eu%2Dwest");
    })
    .await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let sampled = format!("00-{trace}-b7ad6b7169203331-01");
    let mut http = service.http();
    let headers = [("traceparent", sampled.as_str()), ("tracestate", "x=1,electric=rate:50")];
    let path = "/v1/shape?table=items&offset=-1&where=v%20%3D%20%27marker-value%27";
    let answer = http.request("GET", path, &headers, b"").await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let handle = answer.header("electric-handle").expect("a handle").to_owned();
    // A caller that keeps no trace, and one that has none: the ratio is 0.
    let unsampled = format!("00-{trace}-b7ad6b7169203332-00");
    http.request("GET", path, &[("traceparent", &unsampled)], b"").await.expect("an answer");
    http.get(path).await.expect("an answer");
    let spans = || {
        collector.look(|arrived| {
            let scopes = arrived.traces.iter().flat_map(|trace| &trace.resource_spans);
            let spans =
                scopes.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone());
            spans.collect::<Vec<_>>()
        })
    };
    let request = until("the span of the request", async || {
        spans().into_iter().find(|span| span.name == "Plug_shape_get")
    })
    .await;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (trace.into(), "b7ad6b7169203331".into())
    );
    assert!(request.end_time_unix_nano >= request.start_time_unix_nano && request.start_time_unix_nano > 0);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("shape.handle", handle.as_str()),
        ("SampleRate", "50"),
    ] {
        assert_eq!(attribute(&request.attributes, key).as_deref(), Some(value), "{key}");
    }
    let snapshot = until("the span of the snapshot", async || {
        spans().into_iter().find(|span| span.name == "shape_snapshot.create")
    })
    .await;
    assert_eq!(attribute(&snapshot.attributes, "shape.root_table").as_deref(), Some("public.items"));
    let points = until("metrics", async || {
        collector.look(|arrived| {
            let scopes = arrived.metrics.iter().flat_map(|metrics| &metrics.resource_metrics);
            let metrics =
                scopes.flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics);
            let names: std::collections::BTreeSet<String> =
                metrics.map(|metric| metric.name.clone()).collect();
            names.contains("electric.plug.serve_shape.requests.count").then_some(names)
        })
    })
    .await;
    for name in
        ["electric.shapes.total_shapes.count", "shapefold.journal_sync_seconds", "shapefold.held_bytes"]
    {
        assert!(points.contains(name), "{name}: {points:?}");
    }
    let line = until("a line of the log", async || {
        collector.look(|arrived| {
            let scopes = arrived.logs.iter().flat_map(|logs| &logs.resource_logs);
            let mut records =
                scopes.flat_map(|resource| &resource.scope_logs).flat_map(|scope| &scope.log_records);
            let is_own = |value: String| value == handle;
            records.find(|record| attribute(&record.attributes, "shape_handle").is_some_and(is_own)).cloned()
        })
    })
    .await;
    assert!(line.time_unix_nano > 0 && line.body.is_some(), "{line:?}");
    assert_eq!((line.severity_number, line.severity_text.as_str()), (9, "INFO"));
    assert!(service.terminate().await, "{}", service.output());
    collector.look(|arrived| {
        let resource = arrived.traces[0].resource_spans[0].resource.as_ref().expect("a resource");
        for (key, value) in [("service.name", "sync"), ("service.instance.id", "one"), ("region", "eu-west")]
        {
            assert_eq!(attribute(&resource.attributes, key).as_deref(), Some(value), "{key}");
        }
        assert!(arrived.heads.iter().all(|head| head.contains("x-honeycomb-team: hny-key")));
        assert!(!format!("{arrived:?}").contains("marker-value"), "a where clause was exported");
    });
    let requests = spans().iter().filter(|span| span.name == "Plug_shape_get").count();
    assert_eq!(requests, 1, "the others were not to be kept");
}

/// What cannot be delivered is told once, counted, and holds up nobody.
#[tokio::test]
async fn a_collector_that_is_away_holds_up_nobody() {
    let database = database("nocollector").await;
    database.execute(TABLE).await;
    let mut service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_OTLP_ENDPOINT", "http://127.0.0.1:1")
            .set("ELECTRIC_OTEL_EXPORT_PERIOD", "20ms")
            .set("ELECTRIC_PROMETHEUS_PORT", "0");
    })
    .await;
    let failed = "shapefold_exports_total{result=\"failed\",signal=\"metrics\"}";
    until("many failures", async || metric(&service, failed).await.filter(|count| *count >= 10.0)).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let told = service.output().lines().filter(|line| line.contains("could not be exported")).count();
    assert!((1..=4).contains(&told), "{told} lines:\n{}", service.output());
    assert!(service.terminate().await, "{}", service.output());
}
