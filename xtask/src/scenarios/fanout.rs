//! `bench-fanout`: how long a commit takes to one live client beside many idle shapes that do not want it, next to
//! how long it takes to `pg_recvlogical`, for the same commits.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::measure::load::{CpuClock, Follower, Recvlogical, mark};
use crate::measure::{Latencies, Limit, Point, Run};
use crate::service::Service;
use crate::stage::Stage;

use super::forms::{Form, make, query};
use super::{Common, STREAM_ID};

/// Samples before those that count.
const WARM_UP: u64 = 20;
/// The pause after a sample in which the client asks again.
const PAUSE: Duration = Duration::from_millis(4);
/// What the p50 at the most shapes may be of that at ten: issue 7.
const GROWTH_MAX: f64 = 1.3;
/// What ILIKE may take longer than `pg_recvlogical`, at p50: issue 7.
const PREFIX_EXTRA_MS_MAX: f64 = 3.0;
const FORM_SHAPES_MAX: u64 = 10_000;
/// Shapes of the rounds of `field = k`; the last is what the command line says.
const ROUNDS: [u64; 5] = [10, 1_000, 10_000, 100_000, 300_000];
/// The shape that the live client follows, and whose rows are written.
const FOLLOWED: u64 = 3;

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct FanoutOptions {
    /// Shapes of the largest round.
    pub shapes: u64,
    /// Commits that are measured in each round.
    pub samples: u64,
    pub common: Common,
}

const fn form(name: &'static str, table: &'static str, clause: fn(u64) -> String) -> Form {
    Form { name, table, clause, shapes_max: FORM_SHAPES_MAX }
}

const EQUAL: Form = Form { shapes_max: u64::MAX, ..form("field = k", "b_equal", |k| format!("field = {k}")) };

const FORMS: [Form; 7] = [
    form("ILIKE 'k%'", "b_ilike", |k| format!("label ILIKE 'P{k}x%'")),
    form("range", "b_range", |k| format!("field >= {k} AND field < {k} + 1")),
    form("IN", "b_in", |k| format!("field IN ({k}, -{k} - 1)")),
    form("k = ANY (array)", "b_any", |k| format!("{k} = ANY (tags)")),
    form("array @>", "b_array", |k| format!("tags @> '{{{k},-1}}'")),
    form("jsonb @>", "b_json", |k| format!("doc @> '{{\"k\": {k}}}'")),
    // Evaluated by Postgres: one expression for each shape and row.
    Form { shapes_max: 100, ..form("regular expression", "b_regex", |k| format!("label ~ '^p{k}x'")) },
];

/// Runs all rounds; whether every limit was kept.
pub async fn run(options: FanoutOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-fanout", options.common.postgres).await?;
    let run = Run::begin("fanout", options.common.keep, Some(stage.postgres.installation().major))?;
    for form in FORMS.iter().chain([&EQUAL]) {
        let table = form.table;
        stage
            .sql
            .batch_execute(&format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY, field bigint, label text, tags int[], doc jsonb, mark text);
                 ALTER TABLE {table} REPLICA IDENTITY FULL"
            ))
            .await?;
    }
    let service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let mut bench = Bench { stage, service, run, samples: options.samples, written: 0 };
    let (mut made, mut first) = (0, None);
    let rounds: Vec<u64> =
        ROUNDS.into_iter().filter(|shapes| *shapes < options.shapes).chain([options.shapes]).collect();
    for shapes in rounds {
        let point = bench.round(&EQUAL, made, shapes).await?;
        made = shapes;
        let p50 = point.value;
        bench.run.note(point);
        let least = *first.get_or_insert(p50);
        if made == options.shapes {
            let growth = Point::new("field = k, p50 at the most shapes", p50, "ms").with("shapes", made);
            bench.run.note(growth.beside("at the fewest", least).limited(Limit::RatioMax(GROWTH_MAX)));
        }
    }
    for form in &FORMS {
        let shapes = form.shapes_max.min(options.shapes);
        let point = bench.round(form, 0, shapes).await?;
        let limit = (form.table == "b_ilike").then_some(Limit::ExtraMax(PREFIX_EXTRA_MS_MAX));
        bench.run.note(Point { limit, ..point });
    }
    let peak = bench.service.peak_memory_bytes().ok_or("the service is gone")?;
    bench.run.note(Point::new("memory at most", peak as f64 / 1e6, "MB"));
    bench.service.terminate().await;
    bench.run.finish()
}

struct Bench {
    stage: Stage,
    service: Service,
    run: Run,
    samples: u64,
    written: u64,
}

impl Bench {
    /// Makes the missing shapes, then measures.
    async fn round(&mut self, form: &Form, made: u64, shapes: u64) -> Outcome<Point> {
        let address = self.service.address();
        let making = make(address, form, made, shapes).await?;
        println!("{}: {} more shapes made in {:.1} s", form.name, shapes - made, making.as_secs_f64());
        let mut plain = Recvlogical::start(&self.stage, STREAM_ID).await?;
        let mut client = Follower::start(address, &query(form.table, &(form.clause)(FOLLOWED))).await?;
        let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
        let cpu = CpuClock::start(&self.service, &self.stage);
        for number in 0..self.samples + WARM_UP {
            self.written += 1;
            let (ours_took, theirs_took) = self.sample(form, &mut client, &mut plain).await?;
            if number >= WARM_UP {
                ours.add(ours_took);
                theirs.add(theirs_took);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let cpu = cpu.stop();
        drop(client);
        plain.end(&self.stage).await?;
        let plain = theirs.percentiles();
        println!("pg_recvlogical: p50 {:.2} ms, p99 {:.2} ms", plain.p50_ms, plain.p99_ms);
        let point = Point::latency(form.name, &ours).with("shapes", shapes);
        Ok(point.beside("pg_recvlogical", plain.p50_ms).costing(cpu))
    }

    /// One commit; how long it took to the client and to `pg_recvlogical`.
    async fn sample(
        &self,
        form: &Form,
        client: &mut Follower,
        plain: &mut Recvlogical,
    ) -> Outcome<(Duration, Duration)> {
        let (number, k) = (self.written, FOLLOWED);
        let sql = format!(
            "INSERT INTO {} VALUES ({number}, {k}, 'p{k}x{number}', '{{{k},-1}}', '{{\"k\": {k}, \"n\": {number}}}', '{}')",
            form.table,
            mark(number)
        );
        self.stage.sql.batch_execute(&sql).await?;
        let committed = Instant::now();
        let (ours, theirs) = tokio::join!(client.arrived(number), plain.arrived(number));
        Ok((ours?.saturating_duration_since(committed), theirs?.saturating_duration_since(committed)))
    }
}
