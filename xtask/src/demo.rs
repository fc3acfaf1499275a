//! `demo`: Postgres, the service, a writer and a page, for a person to watch and to break.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::Outcome;
use crate::compare::Table;
use crate::page::{self, Control};
use crate::service::Service;
use crate::stage::Stage;

pub const ORDERS: Table = Table { name: "orders", primary_key: &["id"] };
pub const STOCK: Table = Table { name: "stock", primary_key: &["item"] };

pub const SCHEMA: &str = "
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, item text NOT NULL,
    quantity int NOT NULL, status text NOT NULL DEFAULT 'open', updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE stock (item text PRIMARY KEY, on_hand int NOT NULL);
";

const ITEMS: [&str; 8] = ["apples", "bread", "cheese", "dates", "eggs", "figs", "grapes", "honey"];
const CUSTOMERS: [&str; 6] = ["Ada", "Grace", "Linus", "Margaret", "Edsger", "Barbara"];
/// Rows that the writer leaves in `orders`: enough to see, few enough to follow by eye.
const ORDERS_MAX: i64 = 40;
/// Pause between two writes of `demo`.
const WRITE_EVERY: Duration = Duration::from_millis(350);
/// How often the demo looks whether the service is still there.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// How long a killed service stays down, so that the page shows it.
const DOWN_DURATION: Duration = Duration::from_millis(1500);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Port of the page; 0 picks one.
    pub port: u16,
    pub postgres: Option<u32>,
}

/// Runs until the future is dropped (Ctrl-C) or something cannot be started.
pub async fn run(options: DemoOptions) -> Outcome<bool> {
    println!("[1/4] starting a private Postgres");
    let stage = Stage::open("demo", options.postgres).await?;
    println!("[2/4] creating the tables orders and stock");
    stage.sql.batch_execute(SCHEMA).await?;
    fill(&stage.sql).await?;
    println!("[3/4] starting the service");
    let service = Service::start(stage.service_settings("demo")).await?;
    let pid = service.pid().unwrap_or_default();
    let control = Arc::new(Control { service_url: service.url(), service: Mutex::new(service) });
    println!("[4/4] serving the page, writing a row every {} ms", WRITE_EVERY.as_millis());
    let (address, page) = page::serve(options.port, Arc::clone(&control)).await?;

    println!();
    println!("  Open  http://{address}/");
    println!();
    println!("  Try:  kill -9 {pid}");
    println!("        The service is started again; the page carries on where it was, without a refetch.");
    println!("        psql '{}' -c \"UPDATE orders SET status = 'yours' WHERE id % 5 = 0\"", stage.url());
    println!("        curl '{}/v1/shape?table=orders&offset=-1'", control.service_url);
    println!("        {} journal tail {}", stage.binary.display(), stage.directory().join("data").display());
    println!();
    println!("  Ctrl-C stops everything. Log of the service: {}", stage.service_log().display());
    println!();

    let session = stage.connect().await?;
    tokio::select! {
        outcome = write_forever(&session, WRITE_EVERY) => outcome.map(|()| true),
        outcome = revive_forever(&control) => outcome.map(|()| true),
        outcome = page => outcome,
    }
}

/// Starts the service again whenever it has ended.
async fn revive_forever(control: &Control) -> Outcome<()> {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let mut service = control.service.lock().await;
        if let Some(status) = service.try_wait() {
            println!("service: ended ({status}), starting it again");
            tokio::time::sleep(DOWN_DURATION).await;
            service.restart().await?;
            println!("service: active again, process {}", service.pid().unwrap_or_default());
        }
    }
}

/// The first rows of both tables.
pub async fn fill(session: &Client) -> Outcome<()> {
    for item in ITEMS {
        session.execute("INSERT INTO stock VALUES ($1, 100)", &[&item]).await?;
    }
    let mut random: StdRng = rand::SeedableRng::from_os_rng();
    for _ in 0..10 {
        session.batch_execute(&insert(&mut random)).await?;
    }
    Ok(())
}

async fn write_forever(session: &Client, pause: Duration) -> Outcome<()> {
    let mut random: StdRng = rand::SeedableRng::from_os_rng();
    loop {
        write(session, &mut random).await?;
        tokio::time::sleep(pause).await;
    }
}

/// One random transaction over both tables; the number of statements in it.
pub async fn write(session: &Client, random: &mut StdRng) -> Outcome<usize> {
    let rows: i64 = session.query_one("SELECT count(*) FROM orders", &[]).await?.get(0);
    let mut statements = vec![match random.random_range(0..10) {
        0..3 if rows > 5 => DELETE.to_owned(),
        _ if rows >= ORDERS_MAX => DELETE.to_owned(),
        3..7 => update(random),
        _ => insert(random),
    }];
    if random.random_bool(0.6) {
        statements.push(format!(
            "UPDATE stock SET on_hand = greatest(0, on_hand + {}) WHERE item = '{}'",
            random.random_range(-9..10),
            pick(&ITEMS, random)
        ));
    }
    if random.random_bool(0.05) {
        statements.push("DELETE FROM stock WHERE item = 'pears'".to_owned());
        statements.push(format!("INSERT INTO stock VALUES ('pears', {})", random.random_range(1..50)));
    }
    session.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await?;
    Ok(statements.len())
}

const DELETE: &str = "DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)";

fn insert(random: &mut StdRng) -> String {
    format!(
        "INSERT INTO orders (customer, item, quantity) VALUES ('{}', '{}', {})",
        pick(&CUSTOMERS, random),
        pick(&ITEMS, random),
        random.random_range(1..20)
    )
}

fn update(random: &mut StdRng) -> String {
    let status = pick(&["open", "packed", "sent", "paid"], random);
    format!(
        "UPDATE orders SET status = '{status}', quantity = quantity + {}, updated_at = now() \
         WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)",
        random.random_range(0..2)
    )
}

fn pick<'a>(from: &[&'a str], random: &mut StdRng) -> &'a str {
    from.choose(random).copied().unwrap_or_default()
}
