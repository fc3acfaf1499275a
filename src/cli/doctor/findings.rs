//! What was found, and how it is printed.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    #[default]
    Good,
    /// It works, and something should be known.
    Warning,
    /// It will not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// In the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Report<'a> {
    result: Level,
    findings: &'a [Finding],
}

impl Findings {
    pub(super) fn good(&mut self, check: &'static str, message: impl Into<String>) {
        self.findings.push(Finding { check, level: Level::Good, message: message.into(), remedy: None });
    }

    pub(super) fn warning(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        self.findings.push(Finding { check, level: Level::Warning, message, remedy });
    }

    pub(super) fn problem(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        self.findings.push(Finding { check, level: Level::Problem, message, remedy });
    }

    pub(super) fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or_default()
    }

    pub(super) fn to_json(&self) -> String {
        let report = Report { result: self.worst(), findings: &self.findings };
        serde_json::to_string_pretty(&report).expect("texts have a JSON form")
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.level {
                Level::Good => "ok     ",
                Level::Warning => "WARNING",
                Level::Problem => "PROBLEM",
            };
            writeln!(f, "{mark} {:<12} {}", finding.check, finding.message)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "{:20} → {remedy}", "")?;
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        writeln!(f, "{} problems, {} warnings", count(Level::Problem), count(Level::Warning))
    }
}

/// A number of bytes for people.
pub(super) fn bytes(number: u64) -> String {
    let (unit, size) = match number {
        0..1_024 => return format!("{number} bytes"),
        1_024..1_048_576 => ("KiB", 1_024.0),
        1_048_576..1_073_741_824 => ("MiB", 1_048_576.0),
        _ => ("GiB", 1_073_741_824.0),
    };
    format!("{:.1} {unit}", number as f64 / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides_and_every_warning_has_a_remedy() {
        let mut findings = Findings::default();
        assert_eq!(findings.worst(), Level::Good);
        findings.good("disk", "there is room");
        findings.warning("clock", "it differs by 3 s", "Run a time service.");
        assert_eq!(findings.worst(), Level::Warning);
        findings.problem("wal_level", "it is replica", "Set wal_level = logical and restart Postgres.");
        assert_eq!(findings.worst(), Level::Problem);
        assert_eq!(
            findings.to_string(),
            "ok      disk         there is room\n\
             WARNING clock        it differs by 3 s\n                     → Run a time service.\n\
             PROBLEM wal_level    it is replica\n                     \
             → Set wal_level = logical and restart Postgres.\n\
             1 problems, 1 warnings\n"
        );
        let json: serde_json::Value = serde_json::from_str(&findings.to_json()).expect("JSON");
        assert_eq!((&json["result"], &json["findings"][1]["level"]), (&"problem".into(), &"warning".into()));
    }

    #[test]
    fn sizes_are_for_people() {
        let shown: Vec<String> = [12, 2_048, 5 << 20, 3 << 30].into_iter().map(bytes).collect();
        assert_eq!(shown, ["12 bytes", "2.0 KiB", "5.0 MiB", "3.0 GiB"]);
    }
}
