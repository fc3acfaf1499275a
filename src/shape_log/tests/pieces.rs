//! Bodies in small pieces, as they are sent while much is held.

use super::reading::offset;
use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::{Body, SnapshotFollow, SnapshotWriter};

/// All of a body, in pieces of at most so many bytes; what they are made of is checked on the way.
fn joined(body: Body, max: usize) -> String {
    joined_of(body, max, max)
}

/// The same, where pieces of up to `longest` bytes may come from others who read.
fn joined_of(mut body: Body, max: usize, longest: usize) -> String {
    let mut all = Vec::new();
    while let Some(piece) = body.next_of(max) {
        let piece = piece.expect("a piece");
        // The comma that ended the piece before is part of that one.
        assert!(piece.starts_with(b"{"), "pieces begin with a message");
        let one = messages(&piece).count() == 1;
        assert!(piece.len() <= longest || one, "{} bytes", piece.len());
        for message in messages(&piece) {
            serde_json::from_slice::<serde_json::Value>(message).expect("whole messages");
        }
        all.extend_from_slice(&piece);
    }
    String::from_utf8(all).expect("text")
}

#[test]
fn a_log_in_small_pieces_is_the_same_log() {
    let mut shape = Shape::new(CHUNK);
    shape.transaction(10, &[text(10), text(20_000), text(90_000), text(5)]);
    shape.transaction(20, &vec![text(700); 300]);
    shape.flush();
    let shape = shape.reopen();
    let view = shape.reader.view();
    for from in [Offset::SNAPSHOT_END, offset("10_2"), offset("20_0"), offset("20_300"), offset("20_596")] {
        let whole = body(&view, from).1;
        for max in [1, 5_000, 16 << 10, 100_000, 1 << 30] {
            assert_eq!(joined(range(&view, from).body, max), whole, "{from} by {max}");
        }
    }
}

#[test]
fn a_snapshot_in_small_pieces_is_the_same_snapshot() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let shape = Shape::new(CHUNK);
    let mut writer = SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 1 << 20)
        .expect("begins");
    for row in 0..8_000 {
        let id = format!("{row:05}");
        writer.push_row(&[Value::Text(b"text"), Value::Null, Value::Text(id.as_bytes())]).expect("a row");
    }
    writer.finish(&PgSnapshot { xmin: 1, xmax: 2, xip: Vec::new() }).expect("done");
    let view = shape.reader.view();
    for (chunk, from) in [(0, Offset::BeforeAll), (1, Offset::snapshot_chunk(0))] {
        let whole = body(&view, from).1;
        // Somebody else reads in large pieces: parts of them are shared, whatever their size.
        let mut other = range(&view, from).body;
        let held = other.next_of(1 << 30);
        for max in [1, 16 << 10, 100_000] {
            assert_eq!(joined_of(range(&view, from).body, max, 1 << 30), whole, "chunk {chunk} by {max}");
        }
        drop(held);
        for max in [1_000, 16 << 10, 1 << 30] {
            assert_eq!(joined(range(&view, from).body, max), whole, "chunk {chunk} by {max}");
            let mut follow = SnapshotFollow::new(Arc::clone(&shape.reader), chunk);
            let mut followed = Vec::new();
            while let Some(piece) = runtime.block_on(follow.next_of(max)).expect("a piece") {
                assert!(piece.len() <= max, "{} bytes", piece.len());
                followed.extend_from_slice(&piece);
            }
            assert_eq!(String::from_utf8(followed).expect("text"), whole, "followed by {max}");
        }
    }
}
