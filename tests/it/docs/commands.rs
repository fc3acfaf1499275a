//! Commands that the documentation shows, run; and the help texts.

use std::path::Path;
use std::process::Command;

use super::{DOCUMENTS, document};
use crate::support::{Service, ShapeRequest, database};

/// Their commands are run by `tests/forensics`, on journals of their own.
const ELSEWHERE: [&str; 2] = ["docs/forensics.md", "docs/runbook.md"];

const BINARY: &str = env!("CARGO_BIN_EXE_shapefold");

fn shapefold(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // Help texts show the values of environment variables.
    command.args(arguments).env_clear();
    command
}

fn help(arguments: &[&str]) -> String {
    let output = shapefold(arguments).arg("--help").output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("help is text")
}

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", help(&[]));
    insta::assert_snapshot!("help_serve", help(&["serve"]));
    insta::assert_snapshot!("help_demo", help(&["demo"]));
    insta::assert_snapshot!("help_journal", help(&["journal"]));
    insta::assert_snapshot!("help_journal_tail", help(&["journal", "tail"]));
    insta::assert_snapshot!("help_journal_state", help(&["journal", "state"]));
    insta::assert_snapshot!("help_journal_verify", help(&["journal", "verify"]));
}

/// A command and the output that is shown for it. Lines of `…` stand for any number of lines.
#[derive(Debug)]
struct Example {
    document: &'static str,
    command: String,
    shown: Vec<String>,
}

/// What stands in blocks of `console`: `$ command`, then its output.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for name in DOCUMENTS.iter().filter(|name| !ELSEWHERE.contains(name)) {
        for block in document(name).split("```console\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let first = examples.len();
            for line in block.lines() {
                if let Some(command) = line.strip_prefix("$ ") {
                    let command = command.to_owned();
                    examples.push(Example { document: name, command, shown: Vec::new() });
                } else {
                    assert!(examples.len() > first, "{name}: a block of console begins with $");
                    examples.last_mut().expect("a command").shown.push(line.to_owned());
                }
            }
        }
    }
    examples
}

/// The text with what differs from run to run taken out: numbers, and the name of the host.
fn general(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.trim_end();
    while let Some(c) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        // The second half of an LSN may begin with a letter, once a server has written 160 MB.
        let number = c.is_ascii_digit()
            || (digits > 0 && text.ends_with("#/"))
            || (digits >= 8 && rest[..digits].contains(|c: char| c.is_ascii_digit()));
        // An hour stands behind the T of its day; digits of a name are kept.
        if number && (!text.ends_with(|c: char| c.is_alphabetic()) || text.ends_with("#T")) {
            text.push('#');
            rest = &rest[digits..];
        } else {
            text.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    let text = match text.split_once(" on ") {
        Some((before, after)) => {
            format!("{before} on {}", after.find(',').map_or("", |at| &after[at..]))
        }
        None => text,
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check(example: &Example, data_dir: &Path) {
    let words: Vec<&str> = example.command.split_whitespace().collect();
    assert_eq!(words.first(), Some(&"shapefold"), "{}: {}", example.document, example.command);
    let data_dir = data_dir.to_str().expect("a temporary folder has a plain name");
    let arguments: Vec<&str> =
        words[1..].iter().map(|word| if *word == "./data" { data_dir } else { *word }).collect();
    let output = shapefold(&arguments).output().expect("the binary runs");
    let printed = String::from_utf8(output.stdout).expect("output is text");
    assert!(output.status.success(), "{}: {}\n{printed}", example.command, output.status);
    let printed: Vec<String> = printed.lines().map(general).collect();
    let mut from = 0;
    let mut anywhere = false;
    for line in &example.shown {
        if line.trim() == "…" {
            anywhere = true;
            continue;
        }
        let wanted = general(line);
        let found = printed[from..].iter().position(|printed| *printed == wanted);
        let found = found.filter(|skipped| anywhere || *skipped == 0);
        let what = format!(
            "{}: {} does not print\n  {wanted}\nbut\n{:#?}",
            example.document,
            example.command,
            &printed[from..]
        );
        from += found.unwrap_or_else(|| panic!("{what}")) + 1;
        anywhere = false;
    }
    assert!(anywhere || from == printed.len(), "{} prints more:\n{:#?}", example.command, &printed[from..]);
}

/// The history behind the examples: a shape, a row, kill -9, another row, an orderly end.
#[tokio::test]
async fn commands_in_the_documentation_print_what_is_shown() {
    let database = database("docs").await;
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, status text)").await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("orders"));
    client.sync().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("INSERT INTO orders VALUES (1, 'open')").await;
    let until = std::time::Instant::now() + crate::support::WAIT_DURATION_MAX;
    while client.rows().is_empty() {
        assert!(std::time::Instant::now() < until, "the first row does not come");
        client.step().await.unwrap_or_else(|error| panic!("{error}"));
    }
    service.kill9();
    service.restart().await.unwrap_or_else(|error| panic!("{error}"));
    database.execute("INSERT INTO orders VALUES (2, 'open')").await;
    while client.rows().len() < 2 {
        assert!(std::time::Instant::now() < until, "the second row does not come");
        client.step().await.unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(service.terminate().await, "the service stops by itself:\n{}", service.output());
    let examples = examples();
    assert!(examples.len() >= 3, "only {} examples were found", examples.len());
    for example in &examples {
        if std::env::var_os("SHAPEFOLD_SHOW_EXAMPLES").is_some() {
            let words: Vec<&str> = example.command.split_whitespace().skip(1).collect();
            let data_dir = service.data_dir().to_str().expect("plain");
            let arguments: Vec<&str> =
                words.iter().map(|word| if *word == "./data" { data_dir } else { *word }).collect();
            let output = shapefold(&arguments).output().expect("the binary runs");
            println!("$ {}\n{}", example.command, String::from_utf8_lossy(&output.stdout));
        }
    }
    for example in &examples {
        check(example, service.data_dir());
    }
}

#[test]
fn what_differs_from_run_to_run_is_taken_out() {
    assert_eq!(
        general("      12 2026-07-01T10:00:00Z epoch 2  A"),
        general("  7 2025-01-02T11:22:33Z epoch 1 A")
    );
    assert_eq!(general("2026-07-01T09:59:59.1Z"), general("2026-07-01T21:00:00.123456Z"));
    assert_eq!(general("shape 1 3833821-1"), general("shape 2 1-2"));
    assert_eq!(general("acknowledged 0/19A4AB8, gap"), general("acknowledged 0/A4B8, gap"));
    assert_eq!(general("lsn: 0/C0FFEE, seq: 1"), general("lsn: 1A/19A4A88, seq: 2"));
    assert_ne!(general("ShapeCreated"), general("ShapeRouted"));
    assert_eq!(general("process 1 on a-b, version 0.1.0"), general("process 22 on c, version 0.2.0"));
}
