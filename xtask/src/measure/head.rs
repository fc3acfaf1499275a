//! On what, when and of which commit a run was made.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The first line of a file of results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub scenario: String,
    /// UTC.
    pub date: String,
    pub commit: String,
    pub processor: String,
    pub processors: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub postgres: Option<u32>,
    /// Load of the machine over one minute, before and after: what else ran.
    pub load_before: f64,
    pub load_after: f64,
}

impl Head {
    pub(super) fn of_this_run(scenario: &str, postgres: Option<u32>) -> Head {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
        let kib: u64 = memory.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Head {
            scenario: scenario.to_owned(),
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])),
            commit: said(Command::new("git").args(["rev-parse", "--short=10", "HEAD"])),
            processor: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            // Rounded up: the kernel keeps some for itself.
            memory_gib: kib.div_ceil(1 << 20),
            kernel: kernel.trim().split('-').next().unwrap_or_default().to_owned(),
            postgres,
            load_before: load(),
            load_after: 0.0,
        }
    }

    pub(super) fn ended(&mut self) {
        self.load_after = load();
    }

    /// What it ran on.
    #[must_use]
    pub fn machine_text(&self) -> String {
        let postgres = self.postgres.map_or_else(String::new, |major| format!(", Postgres {major}"));
        format!(
            "{} processors ({}), {} GiB, Linux {}{postgres}",
            self.processors, self.processor, self.memory_gib, self.kernel
        )
    }
}

/// What a program prints, in one line; nothing where it cannot be run.
fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

/// The load over the last minute.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}
