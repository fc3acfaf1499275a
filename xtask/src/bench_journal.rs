//! `bench-journal`: how fast the journal takes events and gives them back, beside raw sled and a plain file;
//! and how long the person on call waits for an answer from ten million events. Needs no Postgres.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::directory::RunDirectory;
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
const MOMENTS: [u64; 6] = [3, 20, 41, 63, 87, 100];
/// How often the memory of a command is looked at while it runs.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    pub events: u64,
    pub json: bool,
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
    println!("other load at the beginning: {}", load());
    rates(&example(&binary, "journal_rates")?, &directory.path().join("rates"), options)?;
    let place = directory.path().join("data");
    println!("\nwriting a journal of {} events", options.events);
    let written = Instant::now();
    let status = Command::new(example(&binary, "large_journal")?)
        .arg(&place)
        .arg(options.events.to_string())
        .status()?;
    if !status.success() {
        return Err("the journal could not be written".into());
    }
    println!("written in {:.1} s: {}", written.elapsed().as_secs_f64(), sizes(&place)?);
    let kept = questions(&binary, &place, options)?;
    println!("other load at the end: {}", load());
    Ok(kept)
}

fn rates(program: &Path, place: &Path, options: JournalOptions) -> Outcome<()> {
    let output = Command::new(program)
        .arg(place)
        .args([RATE_EVENTS.to_string(), RATE_GROUP.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("the rates could not be measured".into());
    }
    let text = String::from_utf8(output.stdout)?;
    println!("{RATE_EVENTS} events in groups of {RATE_GROUP}, each made durable before the next");
    println!("{:<24} {:>16} {:>8} {:>16} {:>8}", "store", "append, 1/s", "ratio", "replay, 1/s", "ratio");
    let mut first: Option<(f64, f64)> = None;
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let figure = |name: &str| row[name].as_f64().unwrap_or_default();
        let (append, replay) = (figure("append_events_per_s"), figure("replay_events_per_s"));
        let (own_append, own_replay) = *first.get_or_insert((append, replay));
        println!(
            "{:<24} {append:>16.0} {:>8.2} {replay:>16.0} {:>8.2}",
            row["store"].as_str().unwrap_or_default(),
            own_append / append,
            own_replay / replay
        );
        if options.json {
            println!("{line}");
        }
    }
    println!("ratio: the journal's rate divided by this one's");
    Ok(())
}

/// Every question with its time and its memory.
fn questions(binary: &Path, place: &Path, options: JournalOptions) -> Outcome<bool> {
    let folded = place.with_file_name("without-states");
    link_segments(&place.join("journal/archive"), &folded)?;
    println!("\n{:<44} {:>9} {:>12}", "question", "seconds", "MB at most");
    let mut kept = true;
    let mut ask = |name: &str, arguments: &[&str], source: &Path, limit: Option<Duration>| -> Outcome<()> {
        let ran = measure(binary, arguments, source)?;
        let (seconds, megabytes) = (ran.elapsed.as_secs_f64(), ran.memory_bytes as f64 / 1e6);
        println!("{name:<44} {seconds:>9.2} {megabytes:>12.0}");
        if options.json {
            let line = serde_json::json!({"bench": "journal", "events": options.events, "question": name,
                "seconds": seconds, "peak_memory_bytes": ran.memory_bytes});
            println!("{line}");
        }
        let in_time = limit.is_none_or(|limit| ran.elapsed <= limit);
        kept = kept && in_time && ran.memory_bytes <= MEMORY_BYTES_MAX;
        Ok(())
    };
    ask("state --at end", &["state", "--brief"], place, Some(STATE_DURATION_MAX))?;
    ask("state --at end, folded from event 1", &["state", "--brief"], &folded, Some(STATE_DURATION_MAX))?;
    for percent in MOMENTS {
        let event = (options.events * percent / 100).to_string();
        let name = format!("holding --at {event} ({percent} %)");
        ask(&name, &["holding", "--at", &event], place, Some(HOLDING_DURATION_MAX))?;
    }
    let middle = (options.events / 2).to_string();
    ask("step at the middle", &["step", "--from", &middle, "--count", "3"], place, None)?;
    ask("sql: shapes at the middle", &["sql", "--at", &middle, "--query"], place, None)?;
    ask("why ack", &["why", "ack"], place, None)?;
    ask("stats", &["stats"], place, None)?;
    ask("incident", &["incident"], place, None)?;
    ask("verify", &["verify"], place, None)?;
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
    if !status.success() {
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

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
