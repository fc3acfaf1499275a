//! The oracle: random shapes over random tables with foreign keys, random concurrent transactions, and the
//! official client, which must end with the rows of SQL. `./dev soak oracle` does the same for longer, with
//! kills in between.

use shapefold_xtask::oracle::{self, Generator, SCHEMA, WRITERS};
use tokio_postgres::Client;

use super::started;
use crate::support::{NodeFollower, count};

const TRANSACTIONS: usize = 300;
/// The same shapes and transactions every time; the soak takes others.
const SEED: u64 = 20_261_120;

async fn write(client: Client, mut generator: Generator, transactions: usize) -> usize {
    let mut committed = 0;
    for _ in 0..transactions {
        committed += usize::from(oracle::write(&client, &mut generator).await.expect("the session lives"));
    }
    committed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_ends_with_the_rows_of_sql() {
    let seed = std::env::var("SHAPEFOLD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(SEED);
    println!("SHAPEFOLD_SEED={seed}");
    let (database, service) = started("oracle", SCHEMA, &[]).await;
    let shapes = oracle::shapes(&mut service.http(), &mut Generator::new(seed)).await.expect("shapes");
    let mut node = NodeFollower::start(&service, &oracle::clients(&shapes));
    let mut writers = Vec::new();
    for number in 1..=WRITERS as u64 {
        let generator = Generator::new(seed ^ number << 40);
        writers.push(tokio::spawn(write(database.client().await, generator, TRANSACTIONS.div_ceil(WRITERS))));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.expect("the writer lives");
    }
    let sql = database.client().await;
    for (index, shape) in shapes.iter().enumerate() {
        let rows = oracle::expected(&sql, shape).await.expect("the clause is SQL");
        println!("{index}: {} WHERE {}", shape.table, shape.clause);
        let name = index.to_string();
        let waited = std::panic::AssertUnwindSafe(node.wait_for_rows(&name, &rows));
        let seen = match futures_util::FutureExt::catch_unwind(waited).await {
            Ok(seen) => seen,
            Err(panic) => {
                let request = crate::support::ShapeRequest::table(shape.table).filtered(&shape.clause, &[]);
                let mut fresh = service.follow(request);
                println!("a fresh client: {:?}, {:?}", fresh.sync().await, fresh.rows().values());
                println!("what it found odd: {:?}", fresh.anomalies());
                println!("{}", service.output());
                std::panic::resume_unwind(panic);
            }
        };
        assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{}: {:?}", shape.clause, seen.errors);
    }
    let nested = shapes.iter().filter(|shape| shape.clause.contains("SELECT")).count();
    count(
        "subquery oracle",
        shapes.len() as u64,
        &format!("shapes ({nested} with subqueries), {committed} transactions"),
    );
}
