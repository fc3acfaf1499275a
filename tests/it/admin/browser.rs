//! The dashboard in headless Chromium: both views clicked through, at a desk's and at a phone's width, by
//! mouse and by keyboard, in light and dark; what it shows is what the command line prints. Screenshots go
//! to `target/dashboard`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{GOLDEN, Opened, TOKEN, ask, golden, many, printed, send};
use crate::support::{Service, ShapeRequest, database};

/// Lines of the Node process that may wait to be looked at.
const LINES_MAX: usize = 64;
/// Elements of the whole page, whatever the journal.
const ELEMENTS_MAX: u64 = 5_000;
/// Questions that the page may have under way at a time, whatever is done to it: the service lets no more wait.
const QUESTIONS_MAX: u64 = 18;

fn screenshots() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../dashboard");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder.canonicalize().expect("it is there")
}

/// The browser: as Debian calls it, or as `CHROMIUM` says.
fn program() -> String {
    std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned())
}

/// Goes through the page; what was shown, by step. `ready` is called where the page waits for something to
/// happen.
async fn go_through(what: Value, ready: impl AsyncFnOnce()) -> BTreeMap<String, Value> {
    let mut wanted = json!({ "program": program(), "token": TOKEN, "screenshots": screenshots() });
    wanted.as_object_mut().expect("an object").extend(what.as_object().expect("an object").clone());
    let mut child = Command::new("node")
        .arg("dashboard.mjs")
        .arg(wanted.to_string())
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed");
    let stdout = child.stdout.take().expect("piped");
    let (sender, mut lines) = tokio::sync::mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            sender.blocking_send(line).expect("the test reads");
        }
    });
    let (mut shown, mut ready) = (BTreeMap::new(), Some(ready));
    while let Some(line) = lines.recv().await {
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if said["step"] == "ready" {
            if let Some(ready) = ready.take() {
                ready().await;
            }
            continue;
        }
        shown.insert(said["step"].as_str().expect("a step").to_owned(), said["value"].clone());
    }
    assert!(child.wait().expect("node ends").success(), "{wanted}: up to {:?}", shown.keys());
    assert_eq!(shown["refused"], "The token is not the right one.");
    assert_eq!(shown["problems"], json!([]), "{wanted}");
    assert_eq!(shown["width"][0], shown["width"][1], "nothing is wider than the window: {wanted}");
    shown
}

async fn nothing() {}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn commas(number: &Value) -> String {
    let digits = number.as_u64().expect("a whole number").to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

/// What was printed when it was first asked for: nothing that is asked about here changes.
fn printed_once(arguments: &[&str]) -> String {
    static PRINTED: Mutex<BTreeMap<Vec<String>, String>> = Mutex::new(BTreeMap::new());
    let key: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    if let Some(before) = PRINTED.lock().expect("no panic").get(&key) {
        return before.clone();
    }
    let answer = printed(arguments);
    PRINTED.lock().expect("no panic").insert(key, answer.clone());
    answer
}

/// What the page shows of a moment stands in what the command line prints of it, and the other way round.
fn is_the_moment(shown: &Value, file: &str, at: &str) {
    let holding: Value =
        serde_json::from_str(&printed_once(&["holding", file, "--at", at, "--json"])).expect("JSON");
    let bytes = if holding["gap_bytes"] == 1 { "byte" } else { "bytes" };
    let gap = format!("WAL gap, {} {bytes}", commas(&holding["gap_bytes"]));
    assert_eq!(text(&shown["gap"]), gap, "{file} at {at}");
    let time = text(&holding["at"])[..19].replace('T', " ");
    assert_eq!(text(&shown["moment"]), format!("After event {}, {time} UTC", commas(&holding["event"])));
    let state = text(&shown["state"]);
    for key in ["received", "boundary", "acked"] {
        assert!(state.contains(&text(&holding[key])), "{file} at {at}: {key} in {state}");
    }
    let holders = text(&shown["holders"]);
    let owing = holding["holders"].as_array().expect("a list");
    if owing.is_empty() {
        assert!(holders.contains("owes anything"), "{file} at {at}: {holders}");
    } else {
        let owe = format!("{} of {} shapes owe", commas(&owing.len().into()), commas(&holding["shapes"]));
        assert!(holders.contains(&owe), "{file} at {at}: {holders}");
    }
    let why = printed_once(&["why", file, "ack", "--at", at]);
    let shown_why = text(&shown["why"]);
    for line in why.lines().filter(|line| line.starts_with("     ")) {
        // An event of the chain: its number, its time, its sentence.
        let Some((number, sentence)) = line.trim().split_once(' ') else { continue };
        if number.parse::<u64>().is_ok() {
            let sentence = sentence.split_once(' ').expect("a time").1.trim_start_matches("because ");
            assert!(shown_why.contains(sentence), "{file} at {at}: {sentence} in {shown_why}");
        }
    }
}

async fn time_machine(name: &str, width: u32, scheme: &str, keyboard: bool) {
    let path = golden(name);
    let file = path.to_str().expect("text");
    let opened = Opened::over(&path);
    let timeline = ask(opened.address, "/v1/timeline").await;
    let anomaly = timeline["stories"][0]["first"]["event"].clone();
    let (before, last) = (30, timeline["last"].clone());
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("handed-in.sfx");
    std::fs::copy(golden("deploy"), &other).expect("copies");
    let other_last = ask(Opened::over(&other).address, "/v1/state").await["event"].clone();
    let what = json!({
        "url": opened.url(), "view": "machine", "name": name, "width": width, "scheme": scheme,
        "keyboard": keyboard, "anomaly": anomaly, "before": before, "last": last, "first": timeline["first"],
        "file": other, "fileLast": other_last,
    });
    let shown = go_through(what, nothing).await;
    is_the_moment(&shown["end"], file, "end");
    is_the_moment(&shown["handed in"], golden("deploy").to_str().expect("text"), "end");
    if !anomaly.is_null() {
        is_the_moment(&shown["anomaly"], file, &anomaly.to_string());
        assert!(text(&shown["current"]).starts_with(&commas(&anomaly)), "{}", shown["current"]);
    }
    let incident = printed(&["incident", file]);
    let stories = timeline["stories"].as_array().expect("a list");
    for story in stories {
        let line = text(&story["from"])[..19].replace('T', " ");
        assert!(text(&shown["stories"]).contains(&line), "{name}: {line}");
        assert!(incident.contains(&text(&story["from"])), "{name}");
    }
    let diff = ask(opened.address, &format!("/v1/diff?before={before}")).await;
    let compared = text(&shown["compare"]);
    for key in ["shapes", "owing", "epoch"] {
        assert!(compared.contains(&commas(&diff["after"][key])), "{name}: {key} in {compared}");
    }
    assert!(compared.contains(&text(&diff["after"]["acked"])), "{name}: {compared}");
    let verify = ask(opened.address, "/v1/verify").await;
    let verdict = format!("{} broken invariant", commas(&verify["broken"]));
    assert!(text(&shown["verify"]).contains(&verdict), "{name}: {}", shown["verify"]);
    let overlap = printed(&["owners", file]).contains("two owners were at work at once");
    assert_eq!(text(&shown["owners"]).contains("two owners were at work at once"), overlap, "{name}");
    if let Some(shape) = shown.get("shape") {
        assert!(text(shape).contains("created as number"), "{name}: {shape}");
    }
}

#[tokio::test]
async fn the_time_machine_shows_the_incidents_at_a_desk() {
    for name in GOLDEN {
        time_machine(name, 1280, "light", false).await;
    }
}

#[tokio::test]
async fn the_time_machine_shows_the_incidents_on_a_phone_in_the_dark() {
    for name in ["faraday", "ampere"] {
        time_machine(name, 390, "dark", false).await;
    }
}

#[tokio::test]
async fn the_time_machine_is_used_by_keyboard() {
    time_machine("edison", 1280, "dark", true).await;
    time_machine("edison", 390, "light", true).await;
}

/// 300,000 shapes and a million events: dragged through, scrolled through and paged through, at a desk and on
/// a phone. What would freeze a page is bounded: elements, questions under way, and what it does at once.
#[tokio::test]
async fn a_million_events_and_very_many_shapes_do_not_freeze_the_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = many::long_file(&folder);
    {
        // Who asks over the network is told how far it is, too.
        let opened = Opened::over(&path);
        let asked = json!({"arguments": ["stats", "own"], "progress": true}).to_string();
        let answer = send(opened.address, "POST", "/v1/ask", asked.as_bytes()).await.text();
        assert!(answer.lines().any(|line| line.starts_with("{\"progress\":\"event ")), "{answer}");
        assert!(answer.trim_end().ends_with("{\"code\":0}"), "{answer}");
    }
    // The first page waits for the journal to be read, and says how far that is; the second one finds it read.
    let opened = Opened::over(&path);
    let file = path.to_str().expect("text");
    let first = u64::from(many::SHAPES) * 2 + 1;
    for (width, scheme, reads) in [(1280, "light", true), (390, "dark", false)] {
        let what = json!({
            "url": opened.url(), "view": "many", "name": "many", "width": width, "scheme": scheme,
            "first": first, "last": first + many::EVENTS - 1, "reads": reads,
        });
        let shown = go_through(what, nothing).await;
        assert!(shown["elements"].as_u64().is_some_and(|most| most < ELEMENTS_MAX), "{}", shown["elements"]);
        let asked = shown["under way"].as_u64().expect("a number");
        assert!((1..=QUESTIONS_MAX).contains(&asked), "{asked} questions at once");
        if reads {
            assert!(text(&shown["reading"]).contains("Reading the journal: event"), "{}", shown["reading"]);
        }
        println!("{width} pixels: longest task {} ms, {} at most under way", shown["longest task"], asked);
        let holders = text(&shown["many"]["holders"]);
        assert!(holders.contains("300,000 of 300,000 shapes owe"), "{holders}");
        is_the_moment(&shown["many"], file, "end");
        is_the_moment(&shown["middle"], file, &text(&shown["middle"]["event"]));
    }
}

#[tokio::test]
async fn the_running_service_is_shown() {
    let database = database("admin_page").await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'a')")
        .await;
    for (round, (width, scheme, keyboard)) in
        [(1280, "light", false), (390, "dark", true)].into_iter().enumerate()
    {
        let service = Service::start(&database, |settings| {
            settings.set("SHAPEFOLD_ADMIN_PORT", "0").set(super::TOKEN_VARIABLE, TOKEN);
        })
        .await;
        let admin = super::live::address(&service);
        let mut client = service.follow(ShapeRequest::table("items"));
        client.sync().await.expect("rows");
        service.follow(ShapeRequest::table("items").filtered("id > 5", &[])).sync().await.expect("no rows");
        let what = json!({
            "url": format!("http://{admin}"), "view": "live", "name": "live", "width": width, "scheme": scheme,
            "keyboard": keyboard,
        });
        let id = round + 2;
        let write = async || database.execute(&format!("INSERT INTO items VALUES ({id}, 'b')")).await;
        let shown = go_through(what, write).await;
        let directory = service.data_dir().to_str().expect("text");
        let state = printed(&["state", directory]);
        let owner = state.lines().find(|line| line.starts_with("owner")).expect("an owner");
        let pid = service.pid().expect("it runs").to_string();
        assert!(owner.contains(&pid) && text(&shown["owner"]).contains(&pid), "{owner}: {}", shown["owner"]);
        assert!(text(&shown["headline"]).contains("2 shapes, nobody owes anything"), "{}", shown["headline"]);
        for shape in state.lines().filter(|line| line.starts_with("shape ")) {
            let handle = shape.split_whitespace().nth(2).expect("a handle");
            assert!(text(&shown["shapes"]).contains(handle), "{handle}: {}", shown["shapes"]);
        }
        assert!(text(&shown["check"]).contains("2 shapes compared"), "{}", shown["check"]);
        assert!(text(&shown["shape"]).contains("It lives and owes nothing"), "{}", shown["shape"]);
        is_the_moment(&shown["machine"], directory, &text(&shown["machine"]["event"]));
    }
}
