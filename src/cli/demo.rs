//! `shapefold demo`: the service on a database of yours, two tables that change, and a page that shows
//! them live. (`./dev demo` brings a database along.)

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rand::Rng;
use tokio::net::TcpListener;

use crate::cli::serve::{self, Parts};
use crate::postgres::{PgError, SqlClient, connect};

const INDEX: &str = include_str!("../../web/demo/index.html");
const SCRIPT: &str = include_str!("../../web/demo/demo.js");
const STYLE: &str = include_str!("../../web/demo/demo.css");

/// The tables that the page shows. What is there already is left alone.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL,
    item text NOT NULL, quantity int NOT NULL, status text NOT NULL DEFAULT 'open',
    updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS stock (item text PRIMARY KEY, on_hand int NOT NULL);
INSERT INTO stock SELECT item, 100 FROM unnest(ARRAY['apples','bread','cheese','dates','eggs']) item
    ON CONFLICT DO NOTHING;
";

/// Rows that the writer leaves in `orders`: enough to see, few enough to follow by eye.
const ORDERS_MAX: i64 = 40;
const WRITE_EVERY: Duration = Duration::from_millis(350);

// A group of its own: that of the service, which is named after its type, is inside.
#[derive(Debug, clap::Args)]
#[group(id = "demo")]
pub struct Arguments {
    /// Port of the page; 0 picks a free one.
    #[arg(long, default_value_t = 8080)]
    page_port: u16,
    #[command(flatten)]
    serve: serve::Arguments,
}

/// Runs until a signal or a fatal error.
pub fn run(arguments: Arguments) -> ExitCode {
    let page_port = arguments.page_port;
    serve::run_with(arguments.serve, move |parts: &Parts, service: SocketAddr| {
        let (url, options) = (parts.service.database_url.clone(), parts.service.connect.clone());
        async move {
            let writer = async {
                let session = connect(&url, &options).await?;
                session.batch_execute(SCHEMA).await?;
                write_forever(&session).await
            };
            let outcome = tokio::select! {
                result = writer => result.map_err(|error| format!("the demo cannot write: {error}. {}", error.remedy())),
                result = show(page_port, service) => result.map_err(|error| format!("the page cannot be served: {error}")),
            };
            if let Err(message) = outcome {
                tracing::error!("{message}");
            }
        }
    })
}

async fn write_forever(session: &SqlClient) -> Result<(), PgError> {
    loop {
        let choice = rand::rng().random_range(0..10);
        let rows: i64 = session.query_one("SELECT count(*) FROM orders", &[]).await?.try_get(0)?;
        let statement = match choice {
            0..2 if rows > 5 => {
                "DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)"
            }
            _ if rows >= ORDERS_MAX => {
                "DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)"
            }
            2..6 => {
                "UPDATE orders SET status = (ARRAY['open','packed','sent','paid'])[1 + floor(random() * 4)], \
                 updated_at = now() WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)"
            }
            6..8 => "UPDATE stock SET on_hand = greatest(0, on_hand + (random() * 18 - 9)::int)",
            _ => {
                "INSERT INTO orders (customer, item, quantity) SELECT \
                 (ARRAY['Ada','Grace','Linus','Margaret'])[1 + floor(random() * 4)], item, 1 + floor(random() * 19)::int \
                 FROM stock ORDER BY random() LIMIT 1"
            }
        };
        session.batch_execute(statement).await?;
        tokio::time::sleep(WRITE_EVERY).await;
    }
}

async fn show(port: u16, service: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    tracing::info!("open http://{}/", listener.local_addr()?);
    let file = |content_type: &'static str, body: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], body) })
    };
    let app = Router::new()
        .route("/", file("text/html; charset=utf-8", INDEX))
        .route("/demo.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/demo.css", file("text/css; charset=utf-8", STYLE))
        .route("/service.json", get(where_the_service_is))
        .with_state(service);
    loop {
        let (stream, _) = listener.accept().await?;
        let app = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            // A browser that goes away is no event.
            let _gone =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), app).await;
        });
    }
}

async fn where_the_service_is(State(service): State<SocketAddr>) -> impl IntoResponse {
    let body = serde_json::json!({ "url": format!("http://{service}"), "pid": std::process::id() });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string())
}
