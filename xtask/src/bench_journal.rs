//! `bench-journal`: how fast the journal takes events and gives them back, beside raw sled and a plain file;
//! and how long the person on call waits for an answer from ten million events. Needs no Postgres.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::directory::RunDirectory;
use crate::measure::{Point, Run};
use crate::service::default_binary;
use crate::stage::report;

/// Events appended by each store in groups that are synced.
const RATE_EVENTS: u64 = 200_000;
const RATE_GROUP: u64 = 100;
/// What the issue of forensics asks for, at ten million events.
const STATE_DURATION_MAX: Duration = Duration::from_secs(10);
const HOLDING_DURATION_MAX: Duration = Duration::from_secs(2);
const MEMORY_BYTES_MAX: u64 = 500 * 1024 * 1024;
/// Moments asked about, in percent of the events.
const MOMENTS: [u64; 8] = [3, 20, 41, 63, 87, 93, 97, 100];
/// Writers that die in the last tenth of the events, with nobody to pay what they owe.
const DEAD_WRITERS: u64 = 100;
/// `verify` found a broken rule, which that is.
const BROKEN: i32 = 2;
/// How often the memory of a command is looked at while it runs.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    pub events: u64,
    pub json: bool,
    /// Keep the figures for docs/benchmarks.md.
    pub keep: bool,
}

/// One command, run once.
struct Ran {
    elapsed: Duration,
    memory_bytes: u64,
}

/// The whole benchmark; whether every limit was kept.
pub fn run(options: JournalOptions) -> Outcome<bool> {
    let directory = RunDirectory::claim("bench-journal")?;
    let binary = default_binary()?;
    let mut run = Run::begin("journal", options.keep, None)?;
    rates(&example(&binary, "journal_rates")?, &directory.path().join("rates"), &mut run)?;
    let place = directory.path().join("data");
    println!("\nwriting a journal of {} events", options.events);
    let written = Instant::now();
    let status = Command::new(example(&binary, "large_journal")?)
        .arg(&place)
        .args([options.events.to_string(), DEAD_WRITERS.to_string()])
        .status()?;
    if !status.success() {
        return Err("the journal could not be written".into());
    }
    println!("written in {:.1} s: {}", written.elapsed().as_secs_f64(), sizes(&place)?);
    questions(&binary, &place, options, &mut run)?;
    let kept = run.finish()?;
    Ok(report(
        kept,
        &format!(
            "state within {} s, holding within {} s, memory below {} MiB",
            STATE_DURATION_MAX.as_secs(),
            HOLDING_DURATION_MAX.as_secs(),
            MEMORY_BYTES_MAX >> 20
        ),
    ))
}

/// The same events to the journal, to raw sled and to a plain file, each group made durable before the next; and
/// back.
fn rates(program: &Path, place: &Path, run: &mut Run) -> Outcome<()> {
    let output = Command::new(program)
        .arg(place)
        .args([RATE_EVENTS.to_string(), RATE_GROUP.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("the rates could not be measured".into());
    }
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<serde_json::Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (own, others) = rows.split_first().ok_or("no rates")?;
    for other in others {
        let store = other["store"].as_str().unwrap_or_default();
        for (name, figure) in [("append", "append_events_per_s"), ("replay", "replay_events_per_s")] {
            let rate = |row: &serde_json::Value| row[figure].as_f64().unwrap_or_default();
            let point = Point::new(name, rate(own), "events/s").with("events a group", RATE_GROUP);
            run.note(point.beside(store, rate(other)));
        }
    }
    Ok(())
}

/// Every question with its time and its memory.
fn questions(binary: &Path, place: &Path, options: JournalOptions, run: &mut Run) -> Outcome<()> {
    let folded = place.with_file_name("without-states");
    link_segments(&place.join("journal/archive"), &folded)?;
    let mut peak = 0;
    let mut ask = |name: &str, arguments: &[&str], source: &Path, limit: Option<Duration>| -> Outcome<()> {
        let ran = measure(binary, arguments, source)?;
        peak = peak.max(ran.memory_bytes);
        let point = Point::new(name, ran.elapsed.as_secs_f64(), "s").with("events", options.events);
        run.note(match limit {
            Some(limit) => point.at_most(limit.as_secs_f64()),
            None => point,
        });
        if options.json {
            let line = serde_json::json!({"bench": "journal", "events": options.events, "question": name,
                "seconds": ran.elapsed.as_secs_f64(), "peak_memory_bytes": ran.memory_bytes});
            println!("{line}");
        }
        Ok(())
    };
    ask("state --at end", &["state", "--brief"], place, Some(STATE_DURATION_MAX))?;
    ask("state --at end, folded from event 1", &["state", "--brief"], &folded, Some(STATE_DURATION_MAX))?;
    ask("why ack", &["why", "ack"], place, Some(HOLDING_DURATION_MAX))?;
    ask("consumers --dead", &["consumers", "--dead"], place, Some(HOLDING_DURATION_MAX))?;
    for percent in MOMENTS {
        let event = (options.events * percent / 100).to_string();
        let name = format!("holding --at {percent} %");
        ask(&name, &["holding", "--at", &event], place, Some(HOLDING_DURATION_MAX))?;
    }
    let middle = (options.events / 2).to_string();
    ask("step at the middle", &["step", "--from", &middle, "--count", "3"], place, None)?;
    ask("sql: shapes at the middle", &["sql", "--at", &middle, "--query"], place, None)?;
    ask("stats", &["stats"], place, None)?;
    ask("incident", &["incident"], place, None)?;
    ask("verify", &["verify"], place, None)?;
    let limit = MEMORY_BYTES_MAX as f64 / 1e6;
    run.note(Point::new("memory at most, of all questions", peak as f64 / 1e6, "MB").at_most(limit));
    Ok(())
}

/// Runs one command to its end. The memory is looked at while it runs: what it needed in its last
/// milliseconds may be missing.
fn measure(binary: &Path, arguments: &[&str], source: &Path) -> Outcome<Ran> {
    let begun = Instant::now();
    let mut command = Command::new(binary);
    command.arg("journal").arg(arguments[0]);
    // The query of `sql` and the word of `why` stand behind the journal.
    match arguments {
        ["sql", rest @ .., "--query"] => {
            command.arg(source).arg("SELECT life, count(*) FROM shapes GROUP BY 1").args(rest);
        }
        [_, rest @ ..] => {
            command.arg(source).args(rest);
        }
        [] => return Err("no command".into()),
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut memory_bytes = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        memory_bytes = memory_bytes.max(peak_memory(child.id()).unwrap_or(0));
        std::thread::sleep(LOOK_EVERY);
    };
    if !status.success() && (arguments[0], status.code()) != ("verify", Some(BROKEN)) {
        return Err(format!("{arguments:?} ended with {status}").into());
    }
    Ok(Ran { elapsed: begun.elapsed(), memory_bytes })
}

fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The sealed segments alone: without states, everything is folded.
fn link_segments(archive: &Path, target: &Path) -> Outcome<()> {
    fs::create_dir_all(target)?;
    for file in fs::read_dir(archive)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "sfj") {
            fs::hard_link(&path, target.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn sizes(place: &Path) -> Outcome<String> {
    let (mut segments, mut states, mut counts) = (0, 0, (0, 0));
    for file in fs::read_dir(place.join("journal/archive"))? {
        let file = file?;
        let bytes = file.metadata()?.len();
        if file.path().extension().is_some_and(|extension| extension == "sfs") {
            (states, counts.1) = (states + bytes, counts.1 + 1);
        } else {
            (segments, counts.0) = (segments + bytes, counts.0 + 1);
        }
    }
    let mega = |bytes: u64| bytes as f64 / 1e6;
    Ok(format!(
        "{} segments of {:.0} MB, {} states of {:.1} MB",
        counts.0,
        mega(segments),
        counts.1,
        mega(states)
    ))
}

/// The examples are built beside the service.
fn example(binary: &Path, name: &str) -> Outcome<PathBuf> {
    let path = binary.with_file_name("examples").join(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is not built", path.display()).into()) }
}
