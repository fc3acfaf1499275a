//! The rules, and where they apply.

use super::source::Source;

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub path: String,
    pub line: usize,
    pub rule: &'static str,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.what)
    }
}

/// A top-level folder of `src/` and what it may use. Whatever is not named here is not placed.
pub struct Module {
    pub name: &'static str,
    pub pure: bool,
    pub may_use: &'static [&'static str],
}

const fn pure(name: &'static str, may_use: &'static [&'static str]) -> Module {
    Module { name, pure: true, may_use }
}

const fn io(name: &'static str, may_use: &'static [&'static str]) -> Module {
    Module { name, pure: false, may_use }
}

/// domain ← filter, events ← state ← projections ← engine; the io modules beside each other on top of
/// domain alone; then runtime ← server ← cli.
pub const MODULES: &[Module] = &[
    pure("domain", &[]),
    pure("filter", &["domain"]),
    pure("events", &["domain"]),
    pure("state", &["domain", "events"]),
    pure("projections", &["domain", "events", "state"]),
    pure("engine", &["domain", "events", "state", "projections"]),
    io("postgres", &["domain"]),
    io("replication", &["domain", "postgres"]),
    io("snapshot", &["domain", "postgres"]),
    io("shape_log", &["domain"]),
    io("journal", &["domain"]),
    io("ownership", &["domain"]),
    // Knows nothing of what it counts.
    io("telemetry", &[]),
    // Questions about a history: reads it, folds it, answers; knows nobody who asks.
    io("inspect", &["domain", "events", "state", "projections", "journal"]),
    io(
        "runtime",
        &[
            "domain",
            "filter",
            "events",
            "state",
            "projections",
            "engine",
            "postgres",
            "replication",
            "snapshot",
            "shape_log",
            "journal",
            "ownership",
            "telemetry",
            "inspect",
        ],
    ),
    // Histories for tests: the core in a model of the world, and what a journal holds.
    io("testing", &["domain", "events", "state", "projections", "engine", "journal"]),
    // What the runtime hands out, the rows, and what it takes to understand a request.
    io("server", &["domain", "filter", "shape_log", "runtime", "inspect", "telemetry"]),
    // Building the service, and looking into a journal; never its parts behind the runtime.
    io(
        "cli",
        &[
            "domain",
            "events",
            "state",
            "projections",
            "engine",
            "journal",
            "postgres",
            "inspect",
            "runtime",
            "server",
            "telemetry",
        ],
    ),
];

/// The only places outside the engine that may name an effect: the queue in which effects wait, the
/// translator, and the world in which tests perform them.
const MAY_NAME_EFFECTS: [&str; 3] = ["src/runtime/core.rs", "src/runtime/executor.rs", "src/testing/model/"];

/// What the pure modules do not fetch, as single words …
const IMPURE_WORDS: [(&str, &str); 16] = [
    ("SystemTime", "time is an argument"),
    ("Instant", "time is an argument"),
    ("rand", "randomness is an argument"),
    ("tokio", "no runtime"),
    ("async", "no waiting"),
    ("await", "no waiting"),
    ("HashMap", "its order differs from run to run"),
    ("HashSet", "its order differs from run to run"),
    ("RandomState", "its order differs from run to run"),
    ("Mutex", "one owner, no sharing"),
    ("RwLock", "one owner, no sharing"),
    ("thread_local", "no state beside the arguments"),
    ("tracing", "no output"),
    ("println", "no output"),
    ("eprintln", "no output"),
    ("unsafe", "nothing here needs it"),
];

/// … and as modules of `std`.
const IMPURE_STD: [&str; 7] = ["fs", "io", "net", "thread", "env", "process", "os"];

/// The only places that may rename, remove or shorten files: behind the disk of the shape logs (which the
/// journal announces), and where the journal, the spill and the lock keep house for themselves.
const MAY_DESTROY: [&str; 4] =
    ["src/shape_log/disk.rs", "src/journal/", "src/replication/spill.rs", "src/ownership/"];

const DESTRUCTIVE: [&str; 7] = [
    "fs::remove_file(",
    "fs::remove_dir(",
    "fs::remove_dir_all(",
    "fs::rename(",
    ".truncate(true)",
    "unlinkat(",
    "renameat(",
];

/// What an instance runs that does not own the directory. It goes through the read-only disk.
const MAY_ONLY_READ: [&str; 2] = ["src/runtime/standby/", "src/shape_log/follow.rs"];

const CHANGING: [&str; 8] = [
    "OpenOptions",
    "File::create",
    "fs::write(",
    "create_dir",
    "set_len(",
    "write_at(",
    "write_all",
    "RealDisk",
];

/// A line that a rule does not apply to, and why.
pub struct Exception {
    pub path: &'static str,
    pub line: &'static str,
    pub reason: &'static str,
}

pub const EXCEPTIONS: [Exception; 0] = [];

/// Where an event, an input or an effect has to be matched by all its variants.
const EXHAUSTIVE: [&str; 5] =
    ["src/events/", "src/state/", "src/projections/", "src/engine/", "src/runtime/executor.rs"];

pub const LINES_MAX: usize = 600;

/// Everything that is wrong with these files.
pub fn check(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources {
        check_size(source, &mut found);
        if !source.path.starts_with("src/") {
            check_leftovers(source, &mut found);
            continue;
        }
        check_doc(source, &mut found);
        check_leftovers(source, &mut found);
        if is_test(source, sources) {
            continue;
        }
        check_direction(source, &mut found);
        check_effects(source, &mut found);
        check_destruction(source, &mut found);
        check_reading(source, &mut found);
        check_purity(source, &mut found);
        check_unwrap(source, &mut found);
        check_wildcards(source, &mut found);
    }
    found
}

/// Whether the file belongs to a module that is declared under `#[cfg(test)]`.
fn is_test(source: &Source, sources: &[Source]) -> bool {
    sources.iter().any(|parent| {
        let folder = match parent.path.strip_suffix("/mod.rs") {
            Some(folder) => folder.to_owned(),
            None => parent.path.trim_end_matches(".rs").to_owned(),
        };
        parent.test_modules.iter().any(|name| {
            source.path == format!("{folder}/{name}.rs")
                || source.path.starts_with(&format!("{folder}/{name}/"))
        })
    })
}

fn module(name: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.name == name)
}

fn violation(source: &Source, at: usize, rule: &'static str, what: impl Into<String>) -> Violation {
    Violation { path: source.path.clone(), line: source.line(at), rule, what: what.into() }
}

fn check_direction(source: &Source, found: &mut Vec<Violation>) {
    const RULE: &str = "dependencies point one way";
    let Some(name) = source.module() else { return };
    if name == "lib" || name == "main" {
        return;
    }
    let Some(own) = module(name) else {
        found.push(violation(source, 0, RULE, format!("{name} has no place in the table of modules")));
        return;
    };
    for (at, used) in source.paths_from("crate") {
        if used != own.name && !own.may_use.contains(&used.as_str()) {
            let allowed = own.may_use.join(", ");
            let what = format!(
                "{} may use {}, not {used}",
                own.name,
                if allowed.is_empty() { "nothing" } else { &allowed }
            );
            found.push(violation(source, at, RULE, what));
        }
    }
    for at in source.words("shapefold").filter(|at| source.code[*at..].starts_with("shapefold::")) {
        found.push(violation(source, at, RULE, "say crate::, so that this test sees it"));
    }
    for (at, _) in source.code.match_indices("super::") {
        let chain = source.code[at..].split("super::").skip(1).take_while(|rest| rest.is_empty()).count() + 1;
        let starts = !source.code[..at].ends_with("super::");
        if starts && chain >= source.depth() {
            found.push(violation(source, at, RULE, "super:: leaves the module; say crate::"));
        }
    }
}

fn check_effects(source: &Source, found: &mut Vec<Violation>) {
    let may = MAY_NAME_EFFECTS.iter().any(|place| source.path.starts_with(place));
    let outside = source.module() != Some("engine") && !may;
    let effects = outside.then(|| source.words("Effect")).into_iter().flatten();
    for at in effects {
        let what = "effects are translated in the executor and nowhere else";
        found.push(violation(source, at, "one translator", what));
    }
}

fn check_destruction(source: &Source, found: &mut Vec<Violation>) {
    if MAY_DESTROY.iter().any(|place| source.path.starts_with(place)) {
        return;
    }
    for call in DESTRUCTIVE {
        for (at, _) in source.code.match_indices(call) {
            let what = "files go by way of the disk of the shape logs, once the journal says so";
            found.push(violation(source, at, "nothing is destroyed in passing", what));
        }
    }
}

fn check_reading(source: &Source, found: &mut Vec<Violation>) {
    if !MAY_ONLY_READ.iter().any(|place| source.path.starts_with(place)) {
        return;
    }
    for call in CHANGING {
        for (at, _) in source.code.match_indices(call) {
            found.push(violation(source, at, "who waits only reads", call));
        }
    }
}

fn check_purity(source: &Source, found: &mut Vec<Violation>) {
    const RULE: &str = "the core is handed time, randomness and bytes";
    if !source.module().and_then(module).is_some_and(|module| module.pure) {
        return;
    }
    for (word, why) in IMPURE_WORDS {
        for at in source.words(word) {
            found.push(violation(source, at, RULE, format!("{word}: {why}")));
        }
    }
    for (at, used) in source.paths_from("std") {
        if IMPURE_STD.contains(&used.as_str()) && !is_excepted(source, at) {
            found.push(violation(source, at, RULE, format!("std::{used}")));
        }
    }
}

fn is_excepted(source: &Source, at: usize) -> bool {
    let line = source.code.lines().nth(source.line(at) - 1).unwrap_or_default().trim();
    EXCEPTIONS.iter().any(|exception| exception.path == source.path && exception.line == line)
}

fn check_unwrap(source: &Source, found: &mut Vec<Violation>) {
    for (at, _) in source.code.match_indices(".unwrap()") {
        found.push(violation(
            source,
            at,
            "no unwrap",
            "say with expect() why it cannot fail, or return an error",
        ));
    }
}

fn check_leftovers(source: &Source, found: &mut Vec<Violation>) {
    // In tests, too.
    let text = Source::code_with_tests(&source.raw);
    for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
        for (at, _) in text.match_indices(word) {
            found.push(violation(source, at, "nothing is left for later", word));
        }
    }
}

fn check_size(source: &Source, found: &mut Vec<Violation>) {
    let lines = source.raw.lines().count();
    if lines > LINES_MAX {
        let what = format!("{lines} lines, more than {LINES_MAX}");
        found.push(Violation { path: source.path.clone(), line: lines, rule: "files are short", what });
    }
}

fn check_doc(source: &Source, found: &mut Vec<Violation>) {
    if source.path != "src/main.rs" && !source.raw.starts_with("//!") {
        found.push(violation(source, 0, "every file says what it is", "it does not begin with //!"));
    }
}

/// A heuristic: a `match` of which some arm names a variant of an event, an input or an effect must not
/// have an arm that takes whatever is left, neither `_` nor a bare name. It sees `Event::Stream(..)` and
/// `StreamEvent::Started { .. }`, not variants that were imported by name, which nobody does here.
/// `if let`, `let … else` and `matches!` ask about one variant and are left alone.
fn check_wildcards(source: &Source, found: &mut Vec<Violation>) {
    if !EXHAUSTIVE.iter().any(|place| source.path.starts_with(place)) {
        return;
    }
    for arms in source.matches() {
        if !arms.iter().any(|(_, pattern)| names_a_closed_enum(pattern)) {
            continue;
        }
        for (at, _) in arms.iter().filter(|(_, pattern)| takes_the_rest(pattern)) {
            let what = "name the variants, so that a new one is noticed here";
            found.push(violation(source, *at, "matches are exhaustive", what));
        }
    }
}

fn names_a_closed_enum(pattern: &str) -> bool {
    pattern.match_indices("::").any(|(at, _)| {
        let name: String =
            pattern[..at].chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let name: String = name.chars().rev().collect();
        name.ends_with("Event") || name == "Input" || name == "Effect"
    })
}

fn takes_the_rest(pattern: &str) -> bool {
    let bare = pattern.split(" if ").next().unwrap_or_default().trim();
    bare.chars().all(|c| c.is_lowercase() || c.is_ascii_digit() || c == '_')
}
