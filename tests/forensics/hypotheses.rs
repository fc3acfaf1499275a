//! One journal for each of the five hypotheses about how shapes come to owe for ever: a cohort of its own
//! size, of one transaction, while others go on.

use shapefold::domain::{Incarnation, Seq, Sid};
use shapefold::events::{ConsumerEvent, ExitCause};

use crate::figures::{run, says, text, verify};
use crate::golden::Story;

/// Before anything goes wrong everything up to here is flushed and acknowledged.
const FLUSHED: u64 = 700_000_000;
const INCARNATION: Incarnation = Incarnation(1);

/// Shapes with writers of which everything is well; the first `stuck` of them are to owe for ever.
fn ward(host: &str, shapes: u64, stuck: usize) -> (Story, Vec<Sid>, Vec<Sid>) {
    let mut story = Story::new("2026-03-26T08:00:00Z");
    story.own(3, shapefold::events::PreviousEnd::Released, host, 12, "1.7.12");
    story.stream(7, 600_000_000);
    let mut sids: Vec<Sid> = (0..shapes)
        .map(|n| {
            story.later(1_000_000);
            let micros = 1_774_512_001_000_000 + n;
            let sid = story.shape(810_000_007 + n * 31, micros, 16_701 + (n as u32 % 2), 600_000_000);
            story.start_writer(sid, 1);
            sid
        })
        .collect();
    let seq = story.route(7, FLUSHED - 1, 5, &sids);
    story.later(100_000);
    story.flushed(&sids, seq);
    story.ack(FLUSHED);
    story.later(60_000_000);
    let healthy = sids.split_off(stuck);
    (story, sids, healthy)
}

/// The others flush what they are sent until the gap is so wide.
fn the_rest_of_the_day(mut story: Story, healthy: &[Sid], gap: u64) -> Story {
    for step in 1..=4 {
        story.later(900_000_000);
        let seq = story.route(7, FLUSHED + step * (gap - 1_000_000) / 4, 25, healthy);
        story.later(200_000);
        story.flushed(healthy, seq);
    }
    story.later(60_000_000);
    story.nothing(7, FLUSHED + gap, 40);
    story
}

/// Put to sleep with a transaction on its way: the suspension looks at the clock only.
pub fn suspended() -> Story {
    let (mut story, stuck, healthy) = ward("hertz-1", 12, 5);
    let seq = story.route(7, FLUSHED + 10, 60, &stuck);
    for sid in &stuck {
        story.later(1_000);
        let (sid, incarnation, cause) = (*sid, INCARNATION, ExitCause::Suspended);
        let asked = story.put(None, ConsumerEvent::Stopping { sid, incarnation, cause });
        let (pending_oldest, pending) = (Some(seq), 1);
        story.put(Some(asked), ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending });
    }
    the_rest_of_the_day(story, &healthy, 401_000_003)
}

/// Ends in order, in the middle of a transaction, and nobody counts what it had not flushed.
pub fn shut_down() -> Story {
    let (mut story, stuck, healthy) = ward("hertz-2", 10, 4);
    let seq = story.route(7, FLUSHED + 10, 900, &stuck);
    for sid in &stuck {
        story.later(1_000);
        story.exit(*sid, 1, ExitCause::Drained, Some(seq));
    }
    the_rest_of_the_day(story, &healthy, 502_000_009)
}

/// Panics over the transaction, and is not started again.
pub fn crashed() -> Story {
    let (mut story, stuck, healthy) = ward("hertz-3", 9, 3);
    let seq = story.route(7, FLUSHED + 10, 3, &stuck);
    for sid in &stuck {
        story.later(1_000);
        story.exit(*sid, 1, ExitCause::Panicked, Some(seq));
    }
    the_rest_of_the_day(story, &healthy, 603_000_001)
}

/// A suspension, legal when it was asked for, and a delivery cross each other.
pub fn crossed() -> Story {
    let (mut story, stuck, healthy) = ward("hertz-4", 14, 6);
    let asked: Vec<_> = stuck
        .iter()
        .map(|sid| {
            let (sid, incarnation, cause) = (*sid, INCARNATION, ExitCause::Suspended);
            story.put(None, ConsumerEvent::Stopping { sid, incarnation, cause })
        })
        .collect();
    let seq = story.route(7, FLUSHED + 10, 4, &stuck);
    for (sid, asked) in stuck.iter().zip(asked) {
        story.later(1_000);
        let (sid, incarnation, cause) = (*sid, INCARNATION, ExitCause::Suspended);
        let (pending_oldest, pending) = (Some(seq), 1);
        story.put(Some(asked), ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending });
    }
    the_rest_of_the_day(story, &healthy, 704_000_023)
}

/// A writer that went to sleep in order is still handed out: what is sent to it is sent to nobody.
pub fn stale() -> Story {
    let (mut story, stuck, healthy) = ward("hertz-5", 11, 2);
    for sid in &stuck {
        story.later(1_000);
        story.exit(*sid, 1, ExitCause::Suspended, None);
    }
    story.later(30_000_000);
    story.route(7, FLUSHED + 10, 4, &stuck);
    the_rest_of_the_day(story, &healthy, 805_000_027)
}

pub fn all() -> Vec<(&'static str, Story)> {
    vec![
        ("h1-suspended", suspended()),
        ("h2-shut-down", shut_down()),
        ("h3-crashed", crashed()),
        ("h4-crossed", crossed()),
        ("h5-stale", stale()),
    ]
}

/// What is to be found in one of the journals.
struct Expected {
    journal: &'static str,
    shapes: usize,
    stuck: usize,
    gap: u64,
    exit: &'static str,
    /// The first invariant that breaks, and the event that breaks it.
    first: &'static str,
    /// How `incident` counts it.
    story: &'static str,
    /// What `why` names for the first of them.
    why: &'static str,
}

fn with_commas(number: u64) -> String {
    shapefold::projections::forensics::commas(number)
}

fn check(expected: &Expected) {
    let Expected { journal, shapes, stuck, .. } = expected;
    let file = format!("{journal}.sfx");
    let (gap, owed) = (with_commas(expected.gap), Seq(2));
    says(
        &text(&["holding", &file]),
        &[
            &format!("gap           {gap} bytes"),
            &format!(
                "owing         {stuck} of {shapes} shapes, {stuck} of them without a live writer and with nobody to pay"
            ),
            &format!("COHORT: {stuck} shapes owe the same transaction {owed} (commit 0/29B9270A, xid 802)"),
            &format!("hold       {gap} bytes"),
            &format!("last exits {}: {stuck}", expected.exit),
            "flushed nothing ever: 0 of them",
        ],
    );
    let events = text(&["tail", &file]).lines().count();
    let diff = text(&["diff", &file, "08:01:00", "end", "--limit", "2GB"]);
    says(
        &diff,
        &[
            &format!("+{gap}"),
            &format!(
                "stuck at transaction 2 (0/29B9270A), no live writer: 0 -> {stuck} (0 stayed, 0 removed, 0 moved on, {stuck} joined, 0 created)"
            ),
            "the gap grows by",
            "it reaches 2,000,000,000 bytes in",
        ],
    );
    let why = text(&["why", &file, "ack"]);
    says(
        &why,
        &[
            &format!("cannot pass transaction 2 (commit 0/29B9270A), which {stuck} shapes owe"),
            &format!("{stuck} of them have no live writer and nobody will pay"),
        ],
    );
    says(&text(&["why", &file, "1"]), &["next step by nobody", expected.why]);
    let dead = text(&["consumers", &file, "--dead"]);
    says(&dead, &[&format!("{stuck} shapes owe something and have no writer")]);
    assert_eq!(dead.matches(&format!("writer 1 ended {}", expected.exit)).count(), *stuck, "{dead}");
    let story = text(&["incident", &file]);
    says(
        &story,
        &[expected.story, &format!("WAL gap up to {gap} bytes"), "\n1 incident\n", "and it goes on"],
    );
    let verdict = verify(&file, 2);
    says(&verdict, &[&format!("the first: {}", expected.first), &format!("{events} events from event 1")]);
    let orphans = text(&["sql", &file, "SELECT count(*) FROM flush WHERE stuck", "--csv"]);
    assert_eq!(orphans, format!("count(*)\n{stuck}\n"));
    assert_eq!(run(&["acks", &file, "--broken"]).status.code(), Some(0));
}

#[test]
fn put_to_sleep_while_it_owes() {
    check(&Expected {
        journal: "h1-suspended",
        shapes: 12,
        stuck: 5,
        gap: 401_000_003,
        exit: "Suspended",
        first: "R4 broken by event 107: suspended with 1 pending",
        story: "5 writers died, 5 shapes orphaned, 5 invariants broken, 1 standstill of the flushed position",
        why: "writer 1 was asked to end (Suspended)",
    });
}

#[test]
fn ended_in_order_before_it_had_flushed() {
    check(&Expected {
        journal: "h2-shut-down",
        shapes: 10,
        stuck: 4,
        gap: 502_000_009,
        exit: "Drained",
        first: "F2 broken by event 91: shape 1 owes transaction 2 and nobody is there to pay",
        story: "4 writers died, 4 shapes orphaned, 1 standstill",
        why: "writer 1 ended with the drain, still owing 1 transaction, the oldest is 2",
    });
}

#[test]
fn panicked_and_was_not_started_again() {
    check(&Expected {
        journal: "h3-crashed",
        shapes: 9,
        stuck: 3,
        gap: 603_000_001,
        exit: "Panicked",
        first: "F2 broken by event 83: shape 1 owes transaction 2 and nobody is there to pay",
        story: "3 writers died, 3 shapes orphaned, 1 standstill",
        why: "writer 1 panicked, still owing 1 transaction, the oldest is 2",
    });
}

#[test]
fn a_delivery_and_a_suspension_crossed() {
    check(&Expected {
        journal: "h4-crossed",
        shapes: 14,
        stuck: 6,
        gap: 704_000_023,
        exit: "Suspended",
        first: "F2 broken by event 129: shape 1 owes transaction 2 and nobody is there to pay",
        story: "6 writers died, 6 shapes orphaned, 1 standstill",
        why: "writer 1 was asked to end (Suspended)",
    });
}

/// Nothing is wrong with the exit, which owed nothing: the event that breaks the rule is the delivery.
#[test]
fn sent_to_a_writer_that_was_gone() {
    check(&Expected {
        journal: "h5-stale",
        shapes: 11,
        stuck: 2,
        gap: 805_000_027,
        exit: "Suspended",
        first: "F2 broken by event 100: shape 1 owes transaction 2 and nobody is there to pay",
        story: "2 shapes orphaned, 1 standstill",
        why: "transaction 2 (xid 802, commit 0/29B9270A, 4 changes) went to 2 shapes",
    });
}
