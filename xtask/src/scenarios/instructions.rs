//! `bench-instructions`: how many instructions the innermost loops take, counted by callgrind: the same on a quiet
//! machine and on a busy one. Compared with a budget that is checked in, so that a regression shows in CI.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::service::default_binary;
use crate::stage::report;

/// Instructions of one iteration of each loop, as they were when somebody looked at them.
const BUDGET: &str = "docs/benchmarks/instructions.json";
/// What one may be above its budget, in percent. The same sources give the same count, on any machine. But a change
/// elsewhere in the crate can move functions to other units of compilation, and then others are inlined: up to 7 %
/// were seen.
const ABOVE_PERCENT_MAX: f64 = 10.0;
/// So much below it the budget is to be lowered, or it would hide the next regression.
const BELOW_PERCENT_MAX: f64 = 20.0;
/// The difference of the two runs is that of so many iterations, without what comes before and after.
const FEW: u64 = 1_000;
const MANY: u64 = 5_000;

/// The C library chooses among its ways to copy memory by what the processor can: always the plainest, or the counts
/// of one machine say nothing about another. (<https://sourceware.org/glibc/manual/latest/html_node/Hardware-Capability-Tunables.html>)
const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-ERMS,-EVEX,-SSSE3,-Fast_Unaligned_Copy",
);

/// What is checked in.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Budget {
    /// `rustc --version` of the counts. Another one makes other code: there is nothing to compare with.
    compiler: String,
    loops: BTreeMap<String, u64>,
}

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct InstructionsOptions {
    /// Write the budget instead of comparing with it.
    pub write: bool,
}

/// Counts; whether every loop is within its budget.
pub fn run(options: InstructionsOptions) -> Outcome<bool> {
    let program = default_binary()?.with_file_name("examples").join("hot_loops");
    let names = String::from_utf8(Command::new(&program).output()?.stdout)?;
    let budget: Budget = match fs::read_to_string(BUDGET) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.write => Budget::default(),
        Err(error) => return Err(format!("{BUDGET}: {error}").into()),
    };
    let compiler = compiler()?;
    if !options.write && compiler != budget.compiler {
        println!("the budget is of {}, this is {compiler}: nothing is compared", budget.compiler);
        return Ok(true);
    }
    let budget = budget.loops;
    let folder = crate::directory::dev_directory()?.join("bench");
    fs::create_dir_all(&folder)?;
    let mut found = BTreeMap::new();
    let mut kept = true;
    println!("{:<40} {:>12} {:>12} {:>9}", "loop", "instructions", "budget", "change");
    for name in names.lines() {
        let few = count(&program, &folder, name, FEW)?;
        let many = count(&program, &folder, name, MANY)?;
        let each = many.saturating_sub(few) / (MANY - FEW);
        found.insert(name.to_owned(), each);
        let allowed = budget.get(name).copied();
        let change = allowed.map(|allowed| (each as f64 / allowed.max(1) as f64 - 1.0) * 100.0);
        println!(
            "{name:<40} {each:>12} {:>12} {:>9}",
            allowed.map_or_else(|| "none".to_owned(), |allowed| allowed.to_string()),
            change.map_or_else(String::new, |change| format!("{change:+.1} %"))
        );
        kept &= change.is_some_and(|change| (-BELOW_PERCENT_MAX..=ABOVE_PERCENT_MAX).contains(&change));
    }
    if options.write {
        let written = Budget { compiler, loops: found };
        fs::write(BUDGET, serde_json::to_string_pretty(&written)? + "\n")?;
        println!("written to {BUDGET}");
        return Ok(true);
    }
    let gone: Vec<&String> = budget.keys().filter(|name| !found.contains_key(*name)).collect();
    let what = format!(
        "within {ABOVE_PERCENT_MAX} % above and {BELOW_PERCENT_MAX} % below the budget; after a change that is meant: ./dev bench instructions --write"
    );
    Ok(report(kept && gone.is_empty(), &what))
}

fn compiler() -> Outcome<String> {
    let output =
        Command::new("rustc").arg("--version").output().map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Instructions of the whole program for so many iterations.
fn count(program: &Path, folder: &Path, name: &str, iterations: u64) -> Outcome<u64> {
    let out: PathBuf = folder.join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--error-exitcode=9"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([name, &iterations.to_string()])
        .env(TUNABLES.0, TUNABLES.1)
        .output()
        .map_err(|error| format!("valgrind: {error}; ./dev setup installs it"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let text = fs::read_to_string(&out)?;
    total(&text).ok_or_else(|| format!("{name}: callgrind did not say how much it was").into())
}

/// `summary: 12345` or `totals: 12345`
fn total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_callgrind_is_found() {
        assert_eq!(total("events: Ir\nsummary: 123\n\nfn=main\n1 2\ntotals: 456\n"), Some(456));
        assert_eq!(total("events: Ir\nsummary: 123\n"), Some(123));
        assert_eq!(total("events: Ir\n"), None);
    }
}
