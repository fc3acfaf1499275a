//! `bench-overlap`: a transaction of 50 rows that every shape wants, with one live client, and with one on each.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::http::encode;
use crate::measure::load::{CpuClock, Follower, Recvlogical, insist, mark, over_connections};
use crate::measure::{Latencies, Limit, Point, Run};
use crate::service::Service;
use crate::stage::Stage;

use super::{Common, STREAM_ID};

const TRANSACTION_ROWS: u64 = 50;
/// Connections that make the shapes.
const MAKERS: u64 = 16;
/// Transactions before those that count.
const WARM_UP: u64 = 3;
/// The pause after a transaction, in which clients ask again.
const PAUSE: Duration = Duration::from_millis(50);
/// What issue 7 asks for at the most shapes: one client, and one on each.
const ONE_MS_MAX: f64 = 30.0;
const EACH_MS_MAX: f64 = 60.0;
const ONE: [u64; 3] = [100, 500, 1_500];
const EACH: [u64; 3] = [50, 150, 450];

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct OverlapOptions {
    /// Transactions that are measured in each round.
    pub samples: u64,
    pub common: Common,
}

/// Runs all rounds; whether every limit was kept.
pub async fn run(options: OverlapOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-overlap", options.common.postgres).await?;
    let mut run = Run::begin("overlap", options.common.keep, Some(stage.postgres.installation().major))?;
    stage
        .sql
        .batch_execute("CREATE TABLE overlap (id bigint PRIMARY KEY, mark text NOT NULL); ALTER TABLE overlap REPLICA IDENTITY FULL")
        .await?;
    let service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let mut bench = Bench { stage, service, written: 0 };
    let mut made = 0;
    let mut rounds: Vec<(u64, u64, Option<f64>)> = Vec::new();
    // Those with a client on each first: they need fewer shapes.
    rounds.extend(EACH.map(|shapes| (shapes, shapes, (shapes == EACH[2]).then_some(EACH_MS_MAX))));
    rounds.extend(ONE.map(|shapes| (shapes, 1, (shapes == ONE[2]).then_some(ONE_MS_MAX))));
    for (shapes, clients, limit) in rounds {
        if shapes > made {
            bench.make(made, shapes).await?;
            made = shapes;
        }
        let cpu = CpuClock::start(&bench.service, &bench.stage);
        let (ours, plain) = bench.round(clients, options.samples).await?;
        let name =
            if clients == 1 { "commit to the one client" } else { "commit to the last of all clients" };
        let point = Point::latency(name, &ours)
            .with("shapes", made)
            .with("clients", clients)
            .beside("pg_recvlogical", plain.percentiles().p50_ms)
            .costing(cpu.stop());
        run.note(match limit {
            // Of more shapes than the limit is about nothing is asked.
            Some(limit) if made == shapes => point.limited(Limit::ValueMax(limit)),
            Some(_) | None => point,
        });
    }
    let peak = bench.service.peak_memory_bytes().ok_or("the service is gone")?;
    run.note(Point::new("memory at most", peak as f64 / 1e6, "MB"));
    run.finish()
}

struct Bench {
    stage: Stage,
    service: Service,
    written: u64,
}

/// Shape number `k`: different clauses that are all true.
fn query(number: u64) -> String {
    format!("table=overlap&where={}", encode(&format!("id > -{}", number + 1)))
}

impl Bench {
    async fn make(&self, from: u64, to: u64) -> Outcome<()> {
        over_connections(self.service.address(), MAKERS, (from, to), |mut http, number| async move {
            insist(&mut http, "GET", &format!("/v1/shape?{}&offset=-1", query(number))).await?;
            Ok(http)
        })
        .await?;
        Ok(())
    }

    /// Transactions one after the other: how long each takes to the last client, and to `pg_recvlogical`.
    async fn round(&mut self, clients: u64, samples: u64) -> Outcome<(Latencies, Latencies)> {
        let mut followers = Vec::new();
        for number in 0..clients {
            followers.push(Follower::start(self.service.address(), &query(number)).await?);
        }
        let mut plain = Recvlogical::start(&self.stage, STREAM_ID).await?;
        let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
        for sample in 0..samples + WARM_UP {
            tokio::time::sleep(PAUSE).await;
            self.written += 1;
            let (number, first) = (self.written, self.written * TRANSACTION_ROWS);
            let last = first + TRANSACTION_ROWS - 1;
            let mark = mark(number);
            let insert =
                format!("INSERT INTO overlap SELECT n, '{mark}' FROM generate_series({first}, {last}) n");
            self.stage.sql.batch_execute(&insert).await?;
            let committed = Instant::now();
            let plain_at = plain.arrived(number).await?;
            let mut last_at = committed;
            for follower in &mut followers {
                last_at = last_at.max(follower.arrived(number).await?);
            }
            if sample >= WARM_UP {
                ours.add(last_at.saturating_duration_since(committed));
                theirs.add(plain_at.saturating_duration_since(committed));
            }
        }
        plain.end(&self.stage).await?;
        Ok((ours, theirs))
    }
}
