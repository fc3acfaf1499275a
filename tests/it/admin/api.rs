//! The API over the golden journals, against the command line on the same files.

use serde_json::Value;

use super::{GOLDEN, Opened, TOKEN, ask, golden, journal, printed, send};
use crate::support::HttpClient;

/// Commands that are asked over the network, behind the journal's place, and what they say then.
const COMMANDS: [&[&str]; 25] = [
    &["tail", "-n", "50"],
    &["tail", "--json", "--kind", "ConsumerExited"],
    &["tail", "--plain", "--from", "3", "--to", "9"],
    &["tail", "--cause", "Nonsense"],
    &["step", "--count", "3"],
    &["stats"],
    &["state"],
    &["state", "--brief", "--at", "40"],
    &["state", "--json"],
    &["holding"],
    &["holding", "--all", "--json"],
    &["holding", "--at", "60"],
    &["consumers"],
    &["consumers", "--dead"],
    &["diff", "10", "end", "--limit", "20GB"],
    &["acks"],
    &["acks", "--broken"],
    &["plot"],
    &["owners"],
    &["incident"],
    &["verify"],
    &["whatif", "--stall-grace", "30s"],
    &["bisect", "gap > 1"],
    &["why", "ack"],
    &["shape", "1"],
];

fn at(place: &str, command: &[&str]) -> (Option<i32>, String, String) {
    let mut arguments = vec![command[0], place];
    arguments.extend(&command[1..]);
    let output = journal(&arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").replace(place, "PLACE");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn every_command_says_over_the_network_what_it_says_of_the_file() {
    for name in GOLDEN {
        let file = golden(name);
        let opened = Opened::over(&file);
        for command in COMMANDS {
            let here = at(file.to_str().expect("a path of text"), command);
            let there = at(&opened.url(), command);
            assert_eq!(here, there, "{name}: {command:?}");
        }
    }
}

#[tokio::test]
async fn what_writes_files_is_fetched_and_answered_here() {
    let file = golden("edison");
    let opened = Opened::over(&file);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let (copy, svg) = (path("copy.sfx"), path("edison.svg"));
    printed(&["export", &opened.url(), &copy]);
    let file = file.to_str().expect("text");
    assert_eq!(printed(&["holding", &copy, "--all"]), printed(&["holding", file, "--all"]));
    printed(&["plot", &opened.url(), "--svg", &svg]);
    assert!(std::fs::read_to_string(svg).expect("written").starts_with("<svg"));
    // The dashboard itself is not opened twice.
    let output = journal(&["open", &opened.url()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("in the browser"), "{output:?}");
}

/// Every figure of an answer stands in what the command line prints.
fn all_shown(answer: &Value, keys: &[&str], shown: &str) {
    for key in keys {
        let value = key.split('.').fold(answer, |value, part| &value[part]);
        let text = match value {
            Value::Number(number) => commas(number.as_u64().expect("a whole number")),
            Value::String(text) => text.clone(),
            other => panic!("{key} is {other}"),
        };
        // Numbers of events are printed without commas.
        let found = shown.contains(&text) || shown.contains(&text.replace(',', ""));
        assert!(found, "{key}: {text} is not in\n{shown}");
    }
}

fn commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).expect("digits")).collect();
    groups.join(",")
}

#[tokio::test]
async fn the_answers_have_the_command_lines_figures() {
    for name in GOLDEN {
        let path = golden(name);
        let file = path.to_str().expect("text");
        let opened = Opened::over(&path);
        let address = opened.address;
        for at in ["60", "end"] {
            let holding = ask(address, &format!("/v1/holding?at={at}")).await;
            let shown = printed(&["holding", file, "--at", at, "--all"]);
            let keys = ["event", "at", "received", "boundary", "acked", "gap_bytes"];
            all_shown(&holding, &keys, &shown);
            let line = format!(
                "{} of {} shapes, {} of them without",
                commas(holding["owing"].as_u64().expect("a number")),
                commas(holding["shapes"].as_u64().expect("a number")),
                commas(holding["nobody"].as_u64().expect("a number"))
            );
            assert!(shown.contains(&line), "{name}: {line}\n{shown}");
            for holder in holding["holders"].as_array().expect("a list") {
                all_shown(holder, &["shape", "payer", "idle"], &shown);
            }
            for cohort in holding["cohorts"].as_array().expect("a list") {
                all_shown(
                    cohort,
                    &["shapes", "oldest", "lsn", "bytes", "created_from", "flushed_nothing"],
                    &shown,
                );
            }
            let state = ask(address, &format!("/v1/state?at={at}")).await;
            let shown = printed(&["state", file, "--at", at, "--brief"]);
            all_shown(
                &state,
                &["owner.phase", "stream.phase", "stream.routed", "stream.acked", "gap_bytes"],
                &shown,
            );
            let window = format!(
                "{} transactions owed by {} of {} shapes",
                state["window"], state["owing"], state["shapes"]
            );
            assert!(shown.contains(&window), "{name}: {window}\n{shown}");
            let why = ask(address, &format!("/v1/why/ack?at={at}")).await;
            all_shown(&why, &["received", "acked", "gap_bytes"], &printed(&["why", file, "ack", "--at", at]));
        }
        let diff = ask(address, "/v1/diff?before=10").await;
        all_shown(&diff["after"], &["at", "gap_bytes", "shapes"], &printed(&["diff", file, "10", "end"]));
        let acks = ask(address, "/v1/acks").await;
        let line = format!("{} acknowledgements, {} unsafe", acks["count"], acks["unsafe"]);
        assert!(printed(&["acks", file]).contains(&line), "{name}: {line}");
        let verify = ask(address, "/v1/verify").await;
        let shown = String::from_utf8(journal(&["verify", file]).stdout).expect("text");
        let line = format!("{} damaged places, {} broken invariants", verify["damaged"], verify["broken"]);
        assert!(shown.contains(&line), "{name}: {line}\n{shown}");
        let stats = ask(address, "/v1/stats").await;
        all_shown(
            &stats,
            &["events", "bytes", "transactions", "changes", "deliveries"],
            &printed(&["stats", file]),
        );
        let owners = ask(address, "/v1/owners").await;
        let shown = printed(&["owners", file]);
        assert!(shown.contains(&format!("{} owners, ", owners["count"])), "{name}\n{shown}");
        owners["owners"]
            .as_array()
            .expect("a list")
            .iter()
            .for_each(|one| all_shown(one, &["from", "end"], &shown));
        let incident = ask(address, "/v1/incident").await;
        let shown = printed(&["incident", file]);
        let stories = incident["stories"].as_array().expect("a list");
        stories.iter().for_each(|one| all_shown(one, &["from", "until", "first.text"], &shown));
        let timeline = ask(address, "/v1/timeline").await;
        assert_eq!(timeline["stories"].as_array().map(Vec::len), Some(stories.len()), "{name}");
        let highest = timeline["series"]["gap_bytes"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_u64)
            .max();
        let shown = printed(&["plot", file]);
        assert!(shown.contains(&format!("highest {}", commas(highest.unwrap_or(0)))), "{name}\n{shown}");
    }
}

#[tokio::test]
async fn a_shape_and_its_reasons_are_told() {
    let path = golden("edison");
    let file = path.to_str().expect("text");
    let opened = Opened::over(&path);
    let shape = "94359551-1773923988150221";
    let life = ask(opened.address, &format!("/v1/shape/{shape}")).await;
    let shown = printed(&["shape", file, shape]);
    let lines = life["lines"].as_array().expect("a list");
    assert_eq!(lines.len() + 1, shown.lines().count(), "all of them, and today\n{shown}");
    lines.iter().for_each(|line| all_shown(line, &["at", "text"], &shown));
    let why = ask(opened.address, &format!("/v1/why/{shape}")).await;
    assert_eq!(why["is"], "owing");
    let shown = printed(&["why", file, shape]);
    all_shown(&why["owing"], &["shape", "idle", "routed.text"], &shown);
    let links = why["owing"]["exit"]["links"].as_array().expect("a list");
    links.iter().for_each(|link| all_shown(link, &["event", "text"], &shown));
    let chain = ask(opened.address, "/v1/chain/427").await;
    assert_eq!(&chain, &why["owing"]["exit"]);
    let found = ask(opened.address, "/v1/events?after=400&limit=2&kind=ConsumerExited").await;
    assert_eq!(found["events"][0]["id"], 424);
    assert_eq!((&found["events"][1]["id"], &found["next"]), (&Value::from(425), &Value::from(425)));
    assert_eq!(ask(opened.address, "/v1/events?after=477").await["events"], Value::Array(Vec::new()));
    // Fewer than asked for, the last of them included.
    let rest = ask(opened.address, "/v1/shapes?after=38").await;
    assert_eq!((rest["shapes"].as_array().map(Vec::len), &rest["next"]), (Some(2), &Value::Null));
    let dead = ask(opened.address, "/v1/consumers?dead=true&limit=3").await;
    assert_eq!((&dead["count"], dead["consumers"].as_array().map(Vec::len)), (&Value::from(33), Some(3)));
}

#[tokio::test]
async fn nothing_but_the_page_is_open_to_everybody() {
    let opened = Opened::over(&golden("edison"));
    let questions = [
        "/v1/now",
        "/v1/journals",
        "/v1/moment",
        "/v1/state",
        "/v1/holding",
        "/v1/consumers",
        "/v1/shapes",
        "/v1/shape/1",
        "/v1/why/ack",
        "/v1/chain/1",
        "/v1/owners",
        "/v1/acks",
        "/v1/diff",
        "/v1/events",
        "/v1/events/live",
        "/v1/timeline",
        "/v1/progress",
        "/v1/incident",
        "/v1/verify",
        "/v1/stats",
        "/v1/export",
        "/v1/ask",
        "/v1/check",
        "/v1/nothing",
    ];
    for path in questions {
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", TOKEN)]] {
            for method in ["GET", "POST"] {
                let answer = HttpClient::new(opened.address)
                    .request(method, path, headers, b"")
                    .await
                    .expect("an answer");
                assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
        let known = send(opened.address, "GET", &format!("{path}?journal=own"), b"").await;
        assert_ne!(known.status, 401, "{path}");
        assert!(known.header("access-control-allow-origin").is_none(), "{path}: no other page may read it");
        assert_eq!(known.header("cache-control"), Some("no-store"), "{path}");
    }
    for file in ["/", "/main.js", "/admin.css"] {
        let page = HttpClient::new(opened.address).get(file).await.expect("an answer");
        assert_eq!(page.status, 200);
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(!page.text().contains("://") || file != "/", "nothing from elsewhere");
    }
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let opened = Opened::over(&golden("edison"));
    for (method, path, status, says) in [
        ("GET", "/v1/state?at=yesterday", 400, "expected an event"),
        ("GET", "/v1/state?att=5", 400, "att"),
        ("GET", "/v1/events?kind=Nonsense", 400, "Nonsense"),
        ("GET", "/v1/shape/9-9", 404, "9-9"),
        ("GET", "/v1/why/nobody", 404, "nobody"),
        ("GET", "/v1/state?journal=7", 404, "7"),
        ("GET", "/v1/nothing", 404, "nothing"),
        ("POST", "/v1/state", 405, "method"),
        ("GET", "/v1/now", 404, "not a running service"),
        ("POST", "/v1/check", 404, "not a running service"),
        ("GET", "/v1/export?from=never", 400, "never"),
        ("POST", "/v1/ask", 400, "not a question"),
        ("POST", "/v1/journals", 400, "no journal"),
    ] {
        let answer = send(opened.address, method, path, b"").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(says), "{path}: {error}");
    }
    // A command that writes is not carried out for somebody else.
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("stolen.sfx");
    for arguments in
        [vec!["export", "own"], vec!["plot", "own", "--svg"], vec!["import", "own"], vec!["open", "own"]]
    {
        let mut arguments: Vec<&str> = arguments;
        arguments.push(target.to_str().expect("text"));
        let body = serde_json::json!({ "arguments": arguments }).to_string();
        let answer = send(opened.address, "POST", "/v1/ask", body.as_bytes()).await;
        assert!(answer.text().contains("\"error\""), "{}", answer.text());
        assert!(!target.exists(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_handed_in_can_be_asked_like_the_own_one() {
    let opened = Opened::over(&golden("edison"));
    for (number, name) in (1..).zip(["faraday", "ampere", "deploy", "hypotheses", "edison"]) {
        let file = std::fs::read(golden(name)).expect("reads");
        let answer = send(opened.address, "POST", "/v1/journals", &file).await;
        assert_eq!(answer.json()["journal"], number.to_string(), "{}", answer.text());
    }
    let path = golden("hypotheses");
    let shown = printed(&["holding", path.to_str().expect("text")]);
    all_shown(&ask(opened.address, "/v1/holding?journal=4").await, &["received", "gap_bytes"], &shown);
    // The oldest has gone.
    assert_eq!(send(opened.address, "GET", "/v1/holding?journal=1", b"").await.status, 404);
    let journals = ask(opened.address, "/v1/journals").await;
    assert_eq!(journals["journals"].as_array().map(Vec::len), Some(5), "the own one and four");
    let damaged = &std::fs::read(golden("edison")).expect("reads")[..300];
    let answer = send(opened.address, "POST", "/v1/journals", damaged).await;
    assert!([200, 400].contains(&answer.status), "shown as far as it goes, or refused: {}", answer.text());
}

#[test]
fn a_service_that_is_not_there_is_a_short_error() {
    for (url, says) in [
        ("http://127.0.0.1:1", "refused"),
        ("https://127.0.0.1:1", "only http"),
        ("http://", "expected http://HOST:PORT"),
        ("http://127.0.0.1:1/v1", "expected http://HOST:PORT"),
    ] {
        let output = journal(&["state", url]);
        assert_eq!(output.status.code(), Some(1), "{url}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(says) && error.lines().count() == 1, "{url}: {error}");
    }
}
