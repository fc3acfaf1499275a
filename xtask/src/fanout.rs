//! `bench-fanout`: how long a commit takes to one live client beside many idle shapes, next to how long
//! it takes to `pg_recvlogical`, for the same commits.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::overlap;
use crate::service::Service;
use crate::stage::{Stage, report};

/// Slot of `pg_recvlogical`, and how the service's replication stream is called.
const PLAIN_SLOT: &str = "bench_plain";
const STREAM_ID: &str = "bench";
/// Connections that make shapes.
const MAKERS: u64 = 24;
/// Samples before those that count.
const WARM_UP: u64 = 20;
/// Longest wait for one sample.
const SAMPLE_WAIT_MAX: Duration = Duration::from_secs(30);
/// The pause after a sample in which the client asks again.
const PAUSE: Duration = Duration::from_millis(4);
/// Arrivals that wait to be looked at.
const ARRIVALS_MAX: usize = 1_024;
/// What the p50 at the most shapes may be of that at ten.
const GROWTH_MAX: f64 = 1.3;
/// What ILIKE may take longer than `pg_recvlogical`, at p50.
const PREFIX_EXTRA_MAX: Duration = Duration::from_millis(5);
const FORM_SHAPES_MAX: u64 = 10_000;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct FanoutOptions {
    /// Shapes of the largest round.
    pub shapes: u64,
    /// Commits that are measured in each round.
    pub samples: u64,
    pub json: bool,
    pub postgres: Option<u32>,
}

/// A kind of clause: shape number `k` wants the rows of `k`.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    pub(crate) table: &'static str,
    pub(crate) clause: fn(u64) -> String,
    pub(crate) shapes_max: u64,
}

const FORMS: [Form; 7] = [
    Form {
        name: "ILIKE 'k%'",
        table: "b_ilike",
        clause: |k| format!("label ILIKE 'P{k}x%'"),
        shapes_max: FORM_SHAPES_MAX,
    },
    Form {
        name: "range",
        table: "b_range",
        clause: |k| format!("field >= {k} AND field < {k} + 1"),
        shapes_max: FORM_SHAPES_MAX,
    },
    Form {
        name: "IN",
        table: "b_in",
        clause: |k| format!("field IN ({k}, -{k} - 1)"),
        shapes_max: FORM_SHAPES_MAX,
    },
    Form {
        name: "k = ANY (array)",
        table: "b_any",
        clause: |k| format!("{k} = ANY (tags)"),
        shapes_max: FORM_SHAPES_MAX,
    },
    Form {
        name: "array @>",
        table: "b_array",
        clause: |k| format!("tags @> '{{{k},-1}}'"),
        shapes_max: FORM_SHAPES_MAX,
    },
    Form {
        name: "jsonb @>",
        table: "b_json",
        clause: |k| format!("doc @> '{{\"k\": {k}}}'"),
        shapes_max: FORM_SHAPES_MAX,
    },
    // Evaluated by Postgres: one expression for each shape and row.
    Form {
        name: "regular expression",
        table: "b_regex",
        clause: |k| format!("label ~ '^p{k}x'"),
        shapes_max: 100,
    },
];

const EQUAL: Form =
    Form { name: "field = k", table: "b_equal", clause: |k| format!("field = {k}"), shapes_max: u64::MAX };

/// The shape that the live client follows, and whose rows are written.
const FOLLOWED: u64 = 3;

/// Runs all rounds.
pub async fn run(options: FanoutOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-fanout", options.postgres).await?;
    for form in FORMS.iter().chain([&EQUAL, &overlap::OVERLAP]) {
        stage
            .sql
            .batch_execute(&format!(
                "CREATE TABLE {} (id bigint PRIMARY KEY, field bigint, label text, tags int[], doc jsonb, mark text);
                 ALTER TABLE {} REPLICA IDENTITY FULL",
                form.table, form.table
            ))
            .await?;
    }
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let most = options.shapes;
    let mut bench = Bench { stage, options, sample: 0 };
    let mut passed = true;
    let (mut first, mut last) = (None, None);
    let mut made = 0;
    let mut rate = 0.0;
    for shapes in [10, 1_000, 10_000, 100_000].into_iter().filter(|shapes| *shapes <= most) {
        let figures = bench.round(&service, &EQUAL, made, shapes).await?;
        made = shapes;
        rate = figures.made_per_s;
        first.get_or_insert(figures.service.p50);
        last = Some(figures.service.p50);
    }
    if let (Some(first), Some(last)) = (first, last) {
        let growth = last.as_secs_f64() / first.as_secs_f64();
        passed &= report(
            growth <= GROWTH_MAX,
            &format!("p50 grows by a factor of {growth:.2}, at most {GROWTH_MAX}"),
        );
    }
    passed &= overlap::creation(&bench.stage, EQUAL.table, rate, bench.options.json)?;
    passed &= overlap::overlap(&bench.stage, &service, bench.options.json).await?;
    for form in &FORMS {
        let shapes = form.shapes_max.min(bench.options.shapes);
        let figures = bench.round(&service, form, 0, shapes).await?;
        if form.table == "b_ilike" {
            let extra = figures.service.p50.saturating_sub(figures.plain.p50);
            let what = format!("{:.2} ms above pg_recvlogical, at most 5", extra.as_secs_f64() * 1e3);
            passed &= report(extra <= PREFIX_EXTRA_MAX, &what);
        }
    }
    if let Some(bytes) = service.peak_memory_bytes() {
        println!("memory           {:>9.0} MB at most", bytes as f64 / 1e6);
    }
    service.terminate().await;
    Ok(passed)
}

struct Bench {
    stage: Stage,
    options: FanoutOptions,
    sample: u64,
}

#[derive(Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

struct Round {
    service: Figures,
    plain: Figures,
    made_per_s: f64,
}

impl Bench {
    /// Makes the missing shapes, then measures.
    async fn round(&mut self, service: &Service, form: &Form, made: u64, shapes: u64) -> Outcome<Round> {
        let begun = Instant::now();
        make(service, form, made, shapes).await?;
        let making = begun.elapsed();
        let rate = (shapes - made) as f64 / making.as_secs_f64();
        println!(
            "{}: {shapes} shapes; {} made in {:.1} s, {rate:.0}/s",
            form.name,
            shapes - made,
            making.as_secs_f64()
        );
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut plain = Plain::start(&self.stage, STREAM_ID).await?;
        let mut client = LiveClient::start(service, form).await?;
        for number in 0..self.options.samples + WARM_UP {
            self.sample += 1;
            let (ours_took, theirs_took) = self.sample(form, &mut client, &mut plain).await?;
            if number >= WARM_UP {
                ours.push(ours_took);
                theirs.push(theirs_took);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let round = Round { service: figures(ours), plain: figures(theirs), made_per_s: rate };
        let shown = |figures: Figures| {
            format!(
                "p50 {:>7.2} ms  p99 {:>7.2} ms",
                figures.p50.as_secs_f64() * 1e3,
                figures.p99.as_secs_f64() * 1e3
            )
        };
        println!("  shapefold       {}", shown(round.service));
        println!("  pg_recvlogical  {}", shown(round.plain));
        if self.options.json {
            let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            let line = serde_json::json!({"bench": "fanout", "form": form.name, "shapes": shapes, "made_per_s": rate,
                "p50_us": micros(round.service.p50), "p99_us": micros(round.service.p99),
                "recvlogical_p50_us": micros(round.plain.p50), "recvlogical_p99_us": micros(round.plain.p99)});
            println!("{line}");
        }
        Ok(round)
    }

    /// One commit; what it took to the client and to `pg_recvlogical`.
    async fn sample(
        &self,
        form: &Form,
        client: &mut LiveClient,
        plain: &mut Plain,
    ) -> Outcome<(Duration, Duration)> {
        let (number, k) = (self.sample, FOLLOWED);
        let sql = format!(
            "INSERT INTO {} VALUES ({number}, {k}, 'p{k}x{number}', '{{{k},-1}}', '{{\"k\": {k}, \"n\": {number}}}', \
             'mark-{number:010}')",
            form.table
        );
        let begun = Instant::now();
        self.stage.sql.batch_execute(&sql).await?;
        let both = async {
            tokio::join!(wait_for(&mut client.arrivals, number), wait_for(&mut plain.arrivals, number))
        };
        let (ours, theirs) = tokio::time::timeout(SAMPLE_WAIT_MAX, both)
            .await
            .map_err(|_| format!("{}: a commit did not arrive in time", form.name))?;
        Ok((ours?.saturating_duration_since(begun), theirs?.saturating_duration_since(begun)))
    }
}

pub(crate) async fn wait_for(arrivals: &mut mpsc::Receiver<(u64, Instant)>, number: u64) -> Outcome<Instant> {
    loop {
        match arrivals.recv().await {
            Some((seen, at)) if seen >= number => return Ok(at),
            Some(_) => {}
            None => return Err("a receiver has ended".into()),
        }
    }
}

pub(crate) fn figures(mut samples: Vec<Duration>) -> Figures {
    samples.sort_unstable();
    let at = |percent: usize| {
        samples
            .get((samples.len() * percent / 100).min(samples.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    Figures { p50: at(50), p99: at(99) }
}

/// Asks for shapes `made..shapes`, over several connections.
pub(crate) async fn make(service: &Service, form: &Form, made: u64, shapes: u64) -> Outcome<()> {
    let next = Arc::new(AtomicU64::new(made));
    let makers: Vec<_> = (0..MAKERS)
        .map(|_| {
            let (next, clause, table) = (Arc::clone(&next), form.clause, form.table);
            let mut http = HttpClient::new(service.address());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= shapes {
                        return Ok::<(), crate::Failure>(());
                    }
                    let path = match clause(number).as_str() {
                        "" => format!("/v1/shape?table={table}&offset=-1"),
                        clause => format!("/v1/shape?table={table}&offset=-1&where={}", encode(clause)),
                    };
                    loop {
                        let answer = http.get(&path).await?;
                        match answer.status {
                            200 => break,
                            503 => tokio::time::sleep(Duration::from_millis(100)).await,
                            status => return Err(format!("{status}: {}", answer.text()).into()),
                        }
                    }
                }
            })
        })
        .collect();
    for maker in makers {
        maker.await??;
    }
    Ok(())
}

/// The numbers of the marks in what was received.
fn marks(text: &[u8]) -> Option<u64> {
    let at = memchr::memmem::rfind(text, b"mark-")?;
    std::str::from_utf8(text.get(at + 5..at + 15)?).ok()?.parse().ok()
}

/// One client that follows the shape by long-poll.
pub(crate) struct LiveClient {
    pub(crate) arrivals: mpsc::Receiver<(u64, Instant)>,
    task: tokio::task::JoinHandle<()>,
}

impl LiveClient {
    pub(crate) async fn start(service: &Service, form: &Form) -> Outcome<Self> {
        let base = format!("/v1/shape?table={}&where={}", form.table, encode(&(form.clause)(FOLLOWED)));
        let mut http = HttpClient::new(service.address());
        let (mut offset, mut handle, mut cursor) = ("-1".to_owned(), String::new(), String::new());
        let (tell, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let mut up_to_date = false;
        while !up_to_date {
            let answer = http.get(&format!("{base}&offset={offset}&handle={}", encode(&handle))).await?;
            let header = |name: &str| answer.header(name).unwrap_or_default().to_owned();
            (offset, handle, up_to_date) = (
                header("electric-offset"),
                header("electric-handle"),
                answer.header("electric-up-to-date").is_some(),
            );
        }
        let task = tokio::spawn(async move {
            loop {
                let path =
                    format!("{base}&offset={offset}&handle={}&live=true&cursor={cursor}", encode(&handle));
                let Ok(answer) = http.get(&path).await else { return };
                let at = Instant::now();
                if let Some(number) = marks(&answer.body)
                    && tell.send((number, at)).await.is_err()
                {
                    return;
                }
                let header = |name: &str| answer.header(name).unwrap_or_default().to_owned();
                (offset, cursor) = (header("electric-offset"), header("electric-cursor"));
            }
        });
        Ok(Self { arrivals, task })
    }
}

impl Drop for LiveClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `pg_recvlogical` on a slot of its own, read through a pipe.
pub(crate) struct Plain {
    child: Child,
    pub(crate) arrivals: mpsc::Receiver<(u64, Instant)>,
}

impl Plain {
    pub(crate) async fn start(stage: &Stage, stream_id: &str) -> Outcome<Self> {
        let program = stage.postgres.installation().program("pg_recvlogical")?;
        // That of the round before, once its receiver is seen to be gone.
        let begun = Instant::now();
        loop {
            let left = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
            match stage.sql.query_opt(left, &[&PLAIN_SLOT]).await?.map(|row| row.get::<_, bool>(0)) {
                None => break,
                Some(false) => {
                    stage.sql.execute("SELECT pg_drop_replication_slot($1)", &[&PLAIN_SLOT]).await?;
                }
                Some(true) if begun.elapsed() > SAMPLE_WAIT_MAX => {
                    return Err("the receiver of the round before does not end".into());
                }
                Some(true) => tokio::time::sleep(PAUSE).await,
            }
        }
        stage
            .sql
            .execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&PLAIN_SLOT])
            .await?;
        let mut child = Command::new(program)
            .args(["--slot", PLAIN_SLOT, "--start", "--no-loop", "-f", "-", "-d", &stage.url()])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names=electric_publication_{stream_id}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut stdout = child.stdout.take().ok_or("pg_recvlogical has no output")?;
        let (tell, arrivals) = mpsc::channel(ARRIVALS_MAX);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read) = stdout.read(&mut buffer) {
                let at = Instant::now();
                if read == 0 {
                    return;
                }
                if let Some(number) = marks(&buffer[..read])
                    && tell.blocking_send((number, at)).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { child, arrivals })
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
