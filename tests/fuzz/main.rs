//! Damaged input: bytes and texts that come from outside or from disk, changed at random.
//!
//! Nothing may panic, and nothing may take memory that its input does not justify. The inputs to begin
//! with are well-formed; the changes follow from a seed, so that a failure comes again. `./dev test`
//! runs some thousands of each, `SHAPEFOLD_FUZZ_SECONDS` says otherwise. `./dev fuzz` reads the same targets
//! with libFuzzer, which sees what an input reaches (fuzz/); it begins with the inputs that
//! `SHAPEFOLD_FUZZ_CORPUS` has this write.

mod memory;
mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mutate::Mutator;
use targets::Target;

/// Changed inputs of a target where no time is given.
const CASES: u64 = 3_000;
/// What one input may take beyond what its length justifies: some sets of shapes, a few bytes of which
/// stand for 16 MiB at most.
const BYTES_MAX: usize = 48 << 20;
/// Bytes of memory for a byte of input: JSON takes the most.
const BYTES_PER_BYTE_MAX: usize = 256;

/// For as long as is asked for.
fn run(target: &Target) {
    let seconds = std::env::var("SHAPEFOLD_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    run_until(target, seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)));
}

fn run_until(target: &Target, until: Option<Instant>) {
    let seed = std::env::var("SHAPEFOLD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let seeds = (target.seeds)();
    // Undamaged they are read to their end, or the target tests nothing.
    for input in &seeds {
        assert!((target.read)(input), "{}: a well-formed input is refused", target.name);
    }
    if let Some(corpus) = std::env::var_os("SHAPEFOLD_FUZZ_CORPUS") {
        let folder = std::path::Path::new(&corpus).join(target.name.replace(' ', "_"));
        std::fs::create_dir_all(&folder).expect("a folder");
        for (number, input) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), input).expect("the seed is written");
        }
    }
    let mut mutator = Mutator::new(seed);
    let mut cases = 0;
    while until.map_or(cases < CASES, |until| Instant::now() < until) {
        let input = mutator.change(&seeds);
        let before = memory::start();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.read)(&input)));
        let peak = memory::peak_since(before);
        let shown = || format!("{} case {cases} of seed {seed}: {}", target.name, input.escape_ascii());
        assert!(outcome.is_ok(), "{}", shown());
        assert!(peak <= BYTES_MAX + input.len() * BYTES_PER_BYTE_MAX, "{peak} bytes for {}", shown());
        cases += 1;
    }
    assert!(cases > 0, "{}: no time for a single case", target.name);
}

#[test]
fn request_parameters() {
    run(&targets::PARAMETERS);
}

#[test]
fn bodies_of_a_post() {
    run(&targets::POST_BODIES);
}

#[test]
fn messages_of_pgoutput() {
    run(&targets::PGOUTPUT);
}

#[test]
fn events_of_a_journal() {
    run(&targets::EVENTS);
}

#[test]
fn journal_files() {
    run(&targets::JOURNAL_FILES);
}

#[test]
fn shape_logs() {
    run(&targets::SHAPE_LOGS);
}

/// The harness notices what it is for.
#[test]
fn a_panic_and_a_large_allocation_are_noticed() {
    let fails = |read: fn(&[u8]) -> bool| {
        let target = Target { name: "sick", seeds: || vec![b"ok".to_vec()], read };
        catch_unwind(AssertUnwindSafe(|| run_until(&target, None))).is_err()
    };
    assert!(fails(|input| input == b"ok" || panic!("a bug")));
    assert!(fails(|input| input == b"ok" || !std::hint::black_box(vec![1_u8; 64 << 20]).is_empty()));
    assert!(!fails(|input| !input.is_empty() || input.is_empty()));
}
