//! The documentation, checked against what it speaks of: names of tests and constants, links, commands
//! with their output, and the help texts.

mod commands;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shapefold::projections::forensics::Invariant;

const DOCUMENTS: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs/benchmarks.md",
    "docs/configuration.md",
    "docs/conformance.md",
    "docs/dashboard.md",
    "docs/forensics.md",
    "docs/guarantees.md",
    "docs/incidents.md",
    "docs/invariants.md",
    "docs/journal-format.md",
    "docs/migrate-from-electric.md",
    "docs/operations.md",
    "docs/runbook.md",
    "docs/shape-log-format.md",
    "docs/tables.md",
    "docs/testing.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The kinds of tests that documents may name: the first segment, and where they are.
const KINDS: [(&str, &str); 5] = [
    ("lib", "src"),
    ("it", "tests/it"),
    ("sim", "tests/sim"),
    ("forensics", "tests/forensics"),
    ("filter_scale", "tests/filter_scale"),
];

/// The names that are written as `it::…`, `sim::…` or another of [`KINDS`].
fn tests_named_in(text: &str) -> BTreeSet<&str> {
    let is_test = |name: &&str| {
        let kind = name.split_once("::").map(|(kind, _)| kind);
        // A type of a module of the same name is none.
        let is_function = name.rsplit("::").next().is_some_and(|last| last.starts_with(char::is_lowercase));
        KINDS.iter().any(|(known, _)| Some(*known) == kind) && is_function && !name.contains('…')
    };
    quoted(text).filter(is_test).collect()
}

/// Why there is no such test, if there is none.
fn missing(name: &str) -> Option<String> {
    let mut segments: Vec<&str> = name.split("::").collect();
    let function = segments.pop()?;
    let Some((_, folder)) = KINDS.iter().find(|(kind, _)| *kind == segments[0]) else {
        return Some(format!("{name}: no kind of test"));
    };
    segments[0] = folder;
    let file = file_of(&segments).or_else(|| {
        // Beside the code.
        (segments.pop() == Some("tests")).then(|| file_of(&segments)).flatten()
    });
    let Some(file) = file else { return Some(format!("{name}: there is no such module")) };
    let text = fs::read_to_string(&file).expect("a source is text");
    let Some((before, _)) = text.split_once(&format!("fn {function}(")) else {
        return Some(format!("{name}: not in {}", file.display()));
    };
    let attributes: Vec<&str> = before.lines().rev().take(5).collect();
    let is_test = attributes.iter().any(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
    (!is_test).then(|| format!("{name}: no test"))
}

fn file_of(segments: &[&str]) -> Option<PathBuf> {
    let path = root().join(segments.join("/"));
    [path.with_extension("rs"), path.join("mod.rs")].into_iter().find(|file| file.is_file())
}

#[test]
fn every_test_that_is_named_exists() {
    let mut named = 0;
    let mut wrong = Vec::new();
    for name in DOCUMENTS {
        let text = document(name);
        let tests = tests_named_in(&text);
        named += tests.len();
        wrong.extend(tests.into_iter().filter_map(missing).map(|why| format!("{name}: {why}")));
    }
    assert!(named > 40, "only {named} tests are named");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_test_that_does_not_exist_is_noticed() {
    assert_eq!(missing("it::docs::a_test_that_does_not_exist_is_noticed"), None);
    assert_eq!(missing("lib::events::codec::tests::what_is_written_is_read"), None);
    for name in
        ["it::docs::nothing", "sim::nowhere::nothing", "lib::events::codec::encode", "it::docs::missing"]
    {
        assert!(missing(name).is_some(), "{name}");
    }
}

/// A promise has a test: every row of a table of promises names one.
#[test]
fn every_promise_names_a_test() {
    let text = document("docs/guarantees.md");
    let promises = text.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 1);
    let promises: Vec<&str> = promises.filter(|line| !line.starts_with("| Promise |")).collect();
    assert!(promises.len() > 30, "only {} promises were found", promises.len());
    for promise in promises {
        assert!(!tests_named_in(promise).is_empty(), "no test: {promise}");
    }
}

#[test]
fn every_constant_that_is_named_exists() {
    let sources = sources(&root().join("src"));
    let is_constant = |word: &str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    let mut checked = 0;
    for name in DOCUMENTS {
        for word in quoted(&document(name)).filter(|word| is_constant(word)) {
            checked += 1;
            assert!(sources.contains(word), "{name} speaks of {word}, which is not in the sources");
        }
    }
    assert!(checked > 10, "only {checked} constants were found");
}

/// What users can set or run cannot come without an entry in the changelog.
#[test]
fn every_setting_and_command_of_ours_has_an_entry_in_the_changelog() {
    let (changelog, settings, dev) =
        (document("CHANGELOG.md"), document("docs/configuration.md"), document("dev"));
    let rows = settings.lines().filter_map(|line| line.strip_prefix("| `SHAPEFOLD_"));
    let settings = rows.filter_map(|row| row.split_once('`')).map(|(name, _)| format!("SHAPEFOLD_{name}"));
    let usage = dev.lines().filter_map(|line| line.strip_prefix("./dev "));
    let commands = usage.map(|line| line.split([' ', '|']).next().unwrap_or_default());
    let commands = commands.map(|name| format!("./dev {name}"));
    let all: std::collections::BTreeSet<String> = settings.chain(commands).collect();
    let missing: Vec<&String> = all.iter().filter(|name| !changelog.contains(name.as_str())).collect();
    assert!(all.len() > 25, "only {} were found: {all:?}", all.len());
    assert!(missing.is_empty(), "CHANGELOG.md does not name {missing:?}");
}

fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).expect("the sources are there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let read = |path: PathBuf| {
        if path.is_dir() { sources(&path) } else { fs::read_to_string(path).expect("a source is text") }
    };
    paths.map(read).collect()
}

#[test]
fn links_and_paths_lead_somewhere() {
    let mut checked = 0;
    for name in DOCUMENTS {
        let text = document(name);
        let here = root().join(name);
        let folder = here.parent().expect("a file is in a folder");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            checked += 1;
            assert!(folder.join(link).exists(), "{name}: {link}");
        }
        let is_path = |word: &&str| {
            ["src/", "tests/", "docs/"].iter().any(|prefix| word.starts_with(prefix))
                && !word.contains(['*', '…'])
        };
        for path in quoted(&text).filter(is_path) {
            checked += 1;
            assert!(root().join(path).exists(), "{name}: {path}");
        }
    }
    assert!(checked > 20, "only {checked} links were found");
}

/// Every claim of the reports, every defect beside them and every class that loses data or takes something
/// down has an answer: a test, a reason why it cannot happen with what would show it, or that it is open.
#[test]
fn every_row_of_the_incidents_is_answered() {
    let text = document("docs/incidents.md");
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| # ") && !line.starts_with("|---"))
        .collect();
    let mut numbers = BTreeSet::new();
    for row in &rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(matches!(cells.len(), 4 | 5), "{row}");
        assert!(numbers.insert(cells[0].to_owned()), "twice: {row}");
        let answer = cells[cells.len() - 1];
        let shown = !tests_named_in(answer).is_empty();
        let impossible = answer.starts_with("By construction: ") && answer.contains("it would show as");
        let told = answer.starts_with("Open: ") || answer.starts_with("Record");
        assert!(shown || impossible || told, "{row}");
    }
    let rows_of = |report: &str| numbers.iter().filter(|number| number.starts_with(report)).count();
    for (report, claims) in [("0.", 33), ("1.", 22), ("2.", 17), ("3.", 42), ("4.", 29), ("X", 21)] {
        assert_eq!(rows_of(report), claims, "rows of {report}");
    }
    // S1 and S2 of the nineteen classes; the others are S3.
    for class in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 19] {
        assert!(numbers.contains(&class.to_string()), "class {class}");
    }
}

/// Every rule of the lifecycle is watched by something, and something breaks it; those that the checker of
/// journals knows, and no others, are said to be seen in a journal.
#[test]
fn every_invariant_is_watched_and_broken() {
    let text = document("docs/invariants.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Id "));
    let in_journals: BTreeSet<String> = Invariant::ALL.iter().map(Invariant::to_string).collect();
    let mut seen = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, _, watched, broken] = cells[..] else { panic!("{row}") };
        assert!(seen.insert(id.to_owned()), "twice: {row}");
        assert_eq!(watched.starts_with("Journal"), in_journals.contains(id), "{row}");
        assert!(watched.starts_with("Journal") || watched.starts_with("Simulator"), "{row}");
        assert!(!tests_named_in(broken).is_empty(), "nothing breaks it: {row}");
    }
    let topics = [("O", 8), ("S", 5), ("L", 7), ("R", 5), ("N", 6), ("F", 10), ("P", 6)];
    let all = topics.iter().flat_map(|(topic, count)| (1..=*count).map(move |n| format!("{topic}{n}")));
    assert_eq!(seen, all.collect::<BTreeSet<String>>());
    // The journal's rules about itself are no part of the lifecycle.
    let itself = in_journals.difference(&seen).map(String::as_str);
    assert_eq!(itself.collect::<Vec<_>>(), ["J1", "J2"]);
}

/// A feature of the contract is shown by a test, deliberately different, or said to be missing.
#[test]
fn every_feature_of_the_contract_is_accounted_for() {
    let text = document("docs/conformance.md");
    // The checklist; what follows is about other things.
    let checklist = text.split("\n## Where the reference").next().unwrap_or_default();
    let rows: Vec<Vec<&str>> = checklist
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| # "))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut before = 0;
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let number: u32 = row[0].parse().unwrap_or_else(|_| panic!("{row:?}"));
        assert!(number > before, "in order and once: {row:?}");
        before = number;
        let shown = !tests_named_in(row[2]).is_empty();
        let different = row[3].starts_with("Deliberately different: ");
        let missing = row[2] == "not yet" && row[3].starts_with("issue ");
        assert!(shown || different || missing, "{row:?}");
    }
    assert!(rows.len() > 150, "{} rows", rows.len());
}
