//! The architecture, checked: which module may use which, what the pure ones may not touch, and the
//! house rules that text can tell. ARCHITECTURE.md says why.

mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use rules::{EXCEPTIONS, LINES_MAX, MODULES, Violation, check};
use source::Source;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(folder: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the sources are there") {
            let path = entry.expect("the folder is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(source_of(&path));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn source_of(path: &Path) -> Source {
    let relative = path.strip_prefix(root()).expect("below the crate").to_string_lossy().into_owned();
    Source::new(&relative, &fs::read_to_string(path).expect("a source is text"))
}

fn everything() -> Vec<Source> {
    let mut sources = read("src");
    sources.extend(read("tests"));
    sources.extend(read("xtask/src"));
    sources
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(|violation| format!("{violation}\n")).collect()
}

#[test]
fn the_sources_keep_the_rules() {
    let sources = everything();
    assert!(sources.len() > 150, "only {} files were read", sources.len());
    let found = check(&sources);
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), list(&found));
}

/// A folder that nobody placed, and a place that nobody uses, are both mistakes.
#[test]
fn every_folder_has_one_place() {
    let mut folders: Vec<String> = read("src")
        .iter()
        .filter(|source| source.path.matches('/').count() > 1)
        .filter_map(|source| source.module().map(str::to_owned))
        .collect();
    folders.dedup();
    let mut placed: Vec<&str> = MODULES.iter().map(|module| module.name).collect();
    placed.sort_unstable();
    assert_eq!(folders, placed);
}

/// The directions form an order: whatever a module may use comes before it in the table.
#[test]
fn the_table_has_no_cycle() {
    for (position, module) in MODULES.iter().enumerate() {
        for used in module.may_use {
            let before = MODULES[..position].iter().find(|other| other.name == *used);
            assert!(before.is_some(), "{} may use {used}, which does not come before it", module.name);
            let pure = before.is_some_and(|before| before.pure);
            assert!(pure || !module.pure, "{} is pure and may use {used}, which is not", module.name);
        }
    }
}

#[test]
fn every_exception_is_needed() {
    for exception in EXCEPTIONS {
        let source = source_of(&root().join(exception.path));
        let used = source.code.lines().any(|line| line.trim() == exception.line);
        assert!(used, "{} no longer has {:?} ({})", exception.path, exception.line, exception.reason);
    }
}

// ---- the checker fires ------------------------------------------------------------------------

/// The rules that a made-up file breaks, with the lines.
fn broken(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    let text = format!("//! Made up.\n{text}");
    check(&[Source::new(path, &text)]).into_iter().map(|violation| (violation.line, violation.rule)).collect()
}

const DIRECTION: &str = "dependencies point one way";
const PURITY: &str = "the core is handed time, randomness and bytes";

#[test]
fn a_wrong_direction_is_found() {
    for (path, text) in [
        ("src/domain/a.rs", "use crate::events::Event;"),
        ("src/state/a.rs", "use crate::{domain::Lsn, engine::Input};"),
        ("src/engine/decide/a.rs", "fn f() { crate::journal::open(); }"),
        ("src/journal/a.rs", "use crate::engine::Effect;"),
        ("src/replication/a.rs", "use crate::shape_log::Op;"),
        ("src/snapshot/a.rs", "use crate::replication::Transaction;"),
        ("src/runtime/a.rs", "use crate::server::Settings;"),
        ("src/server/a.rs", "use crate::engine::Input;"),
        ("src/events/a.rs", "use shapefold::engine::Input;"),
        ("src/events/a.rs", "use super::super::engine::Input;"),
        ("src/events/mod.rs", "use super::engine::Input;"),
        ("src/unheard_of/mod.rs", "fn f() {}"),
    ] {
        let found = broken(path, text);
        assert!(found.iter().any(|(_, rule)| *rule == DIRECTION), "{path}: {text} gave {found:?}");
    }
    let line = broken("src/domain/a.rs", "use crate::{\n    domain::Lsn,\n    journal::X,\n};");
    assert_eq!(line, [(4, DIRECTION)]);
}

#[test]
fn a_right_direction_is_not() {
    for (path, text) in [
        ("src/engine/decide/a.rs", "use crate::{domain::Lsn, state::{State, Window}, events::Event};"),
        ("src/engine/decide/a.rs", "use super::super::Decision;\npub(in crate::engine) fn f() {}"),
        ("src/replication/a.rs", "use crate::postgres::PgError;"),
        ("src/domain/a.rs", "// use crate::engine::Input;\nconst A: &str = \"crate::engine\";"),
        ("src/domain/a.rs", "#[cfg(test)]\nmod tests {\n    use crate::engine::Input;\n}"),
        ("src/domain/a.rs", "const A: &[u8] = br#\"crate::engine \" Instant\"#; const B: char = '\"';"),
    ] {
        assert_eq!(broken(path, text), [], "{path}: {text}");
    }
}

#[test]
fn what_a_pure_module_fetches_is_found() {
    for text in [
        "use std::time::{Duration, Instant};",
        "fn f() -> std::time::SystemTime { now() }",
        "use std::{collections::BTreeMap, fs};",
        "use std::io::Read;",
        "use std::net::TcpStream;",
        "fn f() { std::thread::spawn(g); }",
        "use std::collections::{BTreeMap, HashMap};",
        "fn f(seen: &HashSet<u8>) {}",
        "fn f() -> u64 { rand::random() }",
        "async fn f() {}",
        "use tokio::sync::mpsc;",
        "fn f<'a>(a: &'a str) { tracing::info!(\"a\"); }",
    ] {
        for folder in ["domain", "filter", "events", "state", "projections", "engine"] {
            let found = broken(&format!("src/{folder}/a.rs"), text);
            assert!(found.iter().any(|(line, rule)| (*line, *rule) == (2, PURITY)), "{text} gave {found:?}");
        }
        assert_eq!(broken("src/ownership/a.rs", text), [], "{text} outside the core");
    }
    assert_eq!(broken("src/events/codec.rs", "use std::io::Cursor;"), [(2, PURITY)]);
    assert_eq!(broken("src/events/codec.rs", "use std::io::{Cursor, Write};"), [(2, PURITY)]);
}

#[test]
fn leftovers_are_found() {
    for (text, rule) in [
        ("fn f() { g().unwrap(); }", "no unwrap"),
        ("fn f() { todo!() }", "nothing is left for later"),
        ("fn f() { unimplemented!() }", "nothing is left for later"),
        ("fn f() { dbg!(1); }", "nothing is left for later"),
        (
            "#[cfg(test)]\nmod tests {\n    #[test]\n    #[ignore]\n    fn f() {}\n}",
            "nothing is left for later",
        ),
    ] {
        let found = broken("src/domain/a.rs", text);
        assert!(found.iter().any(|(_, broken)| *broken == rule), "{text} gave {found:?}");
    }
    assert_eq!(broken("src/domain/a.rs", "#[cfg(test)]\nmod tests { fn f() { g().unwrap(); } }"), []);
    let long = "fn f() {}\n".repeat(LINES_MAX);
    assert_eq!(broken("src/domain/a.rs", &long), [(LINES_MAX + 1, "files are short")]);
    let undocumented = check(&[Source::new("src/domain/a.rs", "fn f() {}")]);
    assert_eq!(undocumented.first().map(|violation| violation.rule), Some("every file says what it is"));
}

/// A module of tests in a file of its own may do what tests may.
#[test]
fn test_modules_in_other_files_are_known() {
    let parent = Source::new("src/journal/mod.rs", "//! Made up.\n#[cfg(test)]\nmod tests;\n");
    let child = Source::new("src/journal/tests/power.rs", "//! Made up.\nfn f() { g().unwrap(); }");
    assert_eq!(check(&[parent, child.clone()]), []);
    assert_eq!(check(&[child]).len(), 1);
}

#[test]
fn wildcards_are_found() {
    const RULE: &str = "matches are exhaustive";
    for text in [
        "fn f(e: &Event) { match e {\n    Event::Stream(_) => {}\n    _ => {}\n} }",
        "fn f(e: &Event) { match e {\n    Event::Flush(FlushEvent::Flushed { .. }) => { g(); }\n    other => h(other),\n} }",
        "fn f(e: Effect) -> u8 { match e {\n    Effect::Exit if true => match 1 { 1 => 2, _ => 3 },\n    _ if false => 1,\n} }",
        "fn f(i: Input) { match (i, 1) {\n    (Input::Tick, 1) => {}\n    _ => {}\n} }",
    ] {
        assert_eq!(broken("src/engine/decide/a.rs", text), [(4, RULE)], "{text}");
        assert!(broken("src/state/a.rs", text).contains(&(4, RULE)), "{text}");
        assert!(!broken("src/cli/a.rs", text).iter().any(|(_, rule)| *rule == RULE), "{text}");
    }
    for text in [
        "fn f(n: u8) -> u8 { match n { 1 => 2, _ => 3 } }",
        "fn f(e: &Event) { let Event::Shape(event) = e else { return }; }",
        "fn f(e: &Event) -> bool { matches!(e, Event::Shape(_)) }",
        "fn f(e: &Event) { match e { Event::Shape(_) => match 1 { _ => {} }, Event::Flush(_) => {} } }",
    ] {
        assert_eq!(broken("src/engine/decide/a.rs", text), [], "{text}");
    }
}

#[test]
fn a_second_translator_is_found() {
    let text = "fn f(effect: &Effect) {}";
    assert_eq!(broken("src/runtime/stream.rs", text), [(2, "one translator")]);
    assert_eq!(broken("src/journal/a.rs", text), [(2, "one translator")]);
    assert_eq!(broken("src/runtime/executor.rs", text), []);
}

#[test]
fn destruction_in_passing_is_found() {
    const RULE: &str = "nothing is destroyed in passing";
    let text = "fn f() { std::fs::remove_dir_all(p); }";
    assert_eq!(broken("src/runtime/boot.rs", text), [(2, RULE)]);
    assert_eq!(broken("src/shape_log/writer.rs", "fn f() { fs::rename(a, b); }"), [(2, RULE)]);
    assert_eq!(broken("src/cli/serve.rs", "fn f() { File::options().truncate(true); }"), [(2, RULE)]);
    assert_eq!(broken("src/shape_log/disk.rs", text), []);
    assert_eq!(broken("src/journal/archive/mod.rs", text), []);
    assert_eq!(broken("src/runtime/boot.rs", "fn f() { rustix::fs::unlinkat(d, n, f); }"), [(2, RULE)]);
}

#[test]
fn a_waiting_instance_that_could_write_is_found() {
    const RULE: &str = "who waits only reads";
    let text = "fn f() { File::create(p); }";
    assert_eq!(broken("src/runtime/standby/catalog.rs", text), [(2, RULE)]);
    assert_eq!(broken("src/shape_log/follow.rs", "fn f() { RealDisk::new(p); }"), [(2, RULE)]);
    assert_eq!(broken("src/runtime/layout.rs", text), []);
}
