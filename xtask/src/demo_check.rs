//! `demo --check`: the demo without a person. Writes for a while, kills the service twice, and
//! compares what clients hold with SQL.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::demo::{ORDERS, SCHEMA, STOCK, fill, write};
use crate::http::HttpClient;
use crate::page::{self, Control};
use crate::service::Service;
use crate::shape_client::{ClientError, ShapeClient, ShapeRequest};
use crate::soak::{Follower, report_clients, settle};
use crate::stage::{Stage, report};
use crate::{Outcome, journal};

const WRITE_DURATION: Duration = Duration::from_secs(20);
const WRITE_EVERY: Duration = Duration::from_millis(8);
/// When, after the first write, the service is killed.
const KILLS_AFTER: [Duration; 2] = [Duration::from_secs(6), Duration::from_secs(13)];
const DOWN_DURATION: Duration = Duration::from_millis(700);

/// Runs the check; true when everything held.
pub async fn run(postgres: Option<u32>) -> Outcome<bool> {
    println!("[1/5] starting a private Postgres");
    let stage = Stage::open("demo-check", postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;
    fill(&stage.sql).await?;
    println!("[2/5] starting the service and the page");
    let settings = stage.service_settings("demo_check");
    let service = Service::start(settings.clone()).await?;
    println!("service: {}, process {}", service.url(), service.pid().unwrap_or_default());
    let url = service.url();
    let control =
        std::sync::Arc::new(Control { service_url: url, service: tokio::sync::Mutex::new(service) });
    let (page_address, page) = page::serve(0, std::sync::Arc::clone(&control)).await?;
    let page_task = tokio::spawn(page);
    let page_answers = HttpClient::new(page_address).get("/").await?;

    println!("[3/5] three clients follow; writing for {} s, with two kills", WRITE_DURATION.as_secs());
    let (stop, stopped) = watch::channel(false);
    let requests = [
        (ORDERS, ShapeRequest::table("orders")),
        (ORDERS, ShapeRequest::table("orders").filtered("status = $1", &["open"])),
        (STOCK, ShapeRequest::table("stock")),
    ];
    let mut service = control.service.lock().await;
    let mut tasks: Vec<JoinHandle<Outcome<Follower>>> = Vec::new();
    for (table, request) in requests {
        let mut client = ShapeClient::new(service.address(), request);
        client.sync().await?;
        tasks.push(tokio::spawn(follow(Follower { table, client, refusals: Vec::new() }, stopped.clone())));
    }
    let session = stage.connect().await?;
    let writing = tokio::spawn(write_for(session, WRITE_DURATION));
    let started = Instant::now();
    for (number, after) in KILLS_AFTER.iter().enumerate() {
        tokio::time::sleep(after.saturating_sub(started.elapsed())).await;
        service.kill9();
        tokio::time::sleep(DOWN_DURATION).await;
        let restarted = Instant::now();
        service.restart().await?;
        println!(
            "  {:>4.1} s: kill -9 number {}, active again {} ms after its restart",
            started.elapsed().as_secs_f64(),
            number + 1,
            restarted.elapsed().as_millis()
        );
    }
    let (transactions, statements) = writing.await??;

    println!("[4/5] writes ended; comparing with SQL");
    stop.send_replace(true);
    let mut followers = Vec::new();
    for task in tasks {
        followers.push(task.await??);
    }
    let unequal = settle(&mut followers, &stage.sql).await?;
    let graceful = service.terminate().await;

    println!("[5/5] verifying the journal");
    let verified = journal::verify(&settings.binary, &settings.data_dir);
    page_task.abort();

    let messages: u64 = followers.iter().map(|follower| follower.client.messages()).sum();
    println!(
        "demo: wrote {transactions} transactions ({statements} statements), clients read {messages} messages"
    );
    for follower in &followers {
        println!("        {:<50} {} rows", follower.client.request().query(), follower.client.rows().len());
    }
    let mut passed = report(
        page_answers.status == 200 && page_answers.text().contains("Shapefold"),
        &format!("the page answers on http://{page_address}/"),
    );
    passed &= report(unequal.is_empty(), "every client has the rows of SQL");
    unequal.iter().for_each(|text| println!("          {text}"));
    passed &= report_clients(&followers);
    let refetches: usize = followers.iter().map(|follower| follower.client.refetches().len()).sum();
    passed &= report(refetches == 0, &format!("{refetches} refetches after two kills"));
    passed &= report(graceful, "the service ended by itself, with success, on SIGTERM");
    let text = match &verified {
        Ok(text) => text.lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    passed &= report(verified.is_ok(), &format!("journal verify: {text}"));
    if !passed {
        println!("service log: {}", stage.service_log().display());
    }
    println!("demo --check: {}", if passed { "passed" } else { "FAILED" });
    Ok(passed)
}

async fn follow(mut follower: Follower, mut stopped: watch::Receiver<bool>) -> Outcome<Follower> {
    loop {
        let outcome = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(follower),
            outcome = follower.client.step() => outcome,
        };
        match outcome {
            Ok(()) => continue,
            Err(ClientError::Unavailable(_)) => {}
            Err(ClientError::Refused(reason)) => follower.refusals.push(reason),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Transactions and statements written.
async fn write_for(session: Client, duration: Duration) -> Outcome<(usize, usize)> {
    let mut random = StdRng::from_os_rng();
    let started = Instant::now();
    let (mut transactions, mut statements) = (0, 0);
    while started.elapsed() < duration {
        statements += write(&session, &mut random).await?;
        transactions += 1;
        tokio::time::sleep(WRITE_EVERY).await;
    }
    Ok((transactions, statements))
}
