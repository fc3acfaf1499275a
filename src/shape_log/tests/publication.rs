//! The order of publication under a model checker: every interleaving of a writer and a reader.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::sync::Mutex;

use crate::domain::Offset;
use crate::shape_log::view::{Place, ShapeView, replace};

/// What a view promises: rows `0..file_end` are in the file, the rest in the tail.
#[derive(Clone, Debug, Default)]
struct View {
    file_end: usize,
    tail: Arc<Vec<usize>>,
}

/// The place of the checker: its lock is a point where threads may be switched.
struct Modelled(Mutex<Arc<View>>);

impl Place<View> for Modelled {
    fn load(&self) -> Arc<View> {
        Arc::clone(&self.0.lock().expect("no panic"))
    }

    fn swap(&self, current: &Arc<View>, next: Arc<View>) -> bool {
        let mut place = self.0.lock().expect("no panic");
        let same = Arc::ptr_eq(&place, current);
        if same {
            *place = next;
        }
        same
    }
}

/// The file, and beside it what the service before this one had: a watermark and a table of rows
/// in memory, each with a lock of its own.
struct World {
    place: Modelled,
    file: Mutex<Vec<usize>>,
    watermark: Mutex<usize>,
    table: Mutex<Vec<usize>>,
}

fn world() -> loom::sync::Arc<World> {
    loom::sync::Arc::new(World {
        place: Modelled(Mutex::new(Arc::default())),
        file: Mutex::new(Vec::new()),
        watermark: Mutex::new(0),
        table: Mutex::new(Vec::new()),
    })
}

const ROWS: usize = 2;

fn writer(world: &World) {
    for row in 0..ROWS {
        drop(replace(&world.place, |view| {
            let mut tail = view.tail.to_vec();
            tail.push(row);
            View { file_end: view.file_end, tail: Arc::new(tail) }
        }));
        world.table.lock().expect("no panic").push(row);
        world.file.lock().expect("no panic").push(row);
        // Publish, then drop the old view.
        drop(replace(&world.place, |_| View { file_end: row + 1, tail: Arc::default() }));
        *world.watermark.lock().expect("no panic") = row + 1;
        world.table.lock().expect("no panic").clear();
    }
}

fn in_file(world: &World, end: usize) -> Vec<usize> {
    world.file.lock().expect("no panic")[..end].to_vec()
}

#[test]
fn one_load_reads_every_row_once() {
    loom::model(|| {
        let world = world();
        let theirs = loom::sync::Arc::clone(&world);
        let thread = loom::thread::spawn(move || writer(&theirs));
        let view = world.place.load();
        let mut rows = in_file(&world, view.file_end);
        rows.extend_from_slice(&view.tail);
        assert!(rows.iter().copied().eq(0..rows.len()), "a hole or a row twice: {rows:?}");
        assert!(rows.len() <= ROWS);
        thread.join().expect("no panic");
    });
}

/// Two writers, of the log and of the snapshot, replace each their own part: none is lost.
#[test]
fn no_publication_is_lost() {
    loom::model(|| {
        let world = world();
        let theirs = loom::sync::Arc::clone(&world);
        let add = |view: &View| View { file_end: view.file_end + 1, tail: Arc::clone(&view.tail) };
        let thread = loom::thread::spawn(move || drop(replace(&theirs.place, add)));
        drop(replace(&world.place, add));
        thread.join().expect("no panic");
        assert_eq!(world.place.load().file_end, 2);
    });
}

/// The negative control: check the watermark, then read the table. The model has to find the hole,
/// or it proves nothing above.
#[test]
#[should_panic(expected = "a hole or a row twice")]
fn check_then_read_loses_rows() {
    loom::model(|| {
        let world = world();
        let theirs = loom::sync::Arc::clone(&world);
        let thread = loom::thread::spawn(move || writer(&theirs));
        let watermark = *world.watermark.lock().expect("no panic");
        let table = world.table.lock().expect("no panic").clone();
        let mut rows = in_file(&world, watermark);
        rows.extend_from_slice(&table);
        assert!(rows.iter().copied().eq(0..rows.len()), "a hole or a row twice: {rows:?}");
        thread.join().expect("no panic");
    });
}

/// The places of the models are not the one of the service: this looks at real views, far more often
/// than they change, for the seam of file and memory. A view that is put together of two loads fails.
#[test]
fn every_view_is_one_state_of_the_writer() {
    const VIEWS: u64 = 300_000;
    let mut shape = super::Shape::new(super::CHUNK);
    let reader = Arc::clone(&shape.reader);
    let looked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&looked);
    let looking = std::thread::spawn(move || {
        for _ in 0..VIEWS {
            check_seam(&reader.view());
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut transactions = 0;
    while looked.load(Ordering::Relaxed) < VIEWS && !looking.is_finished() {
        transactions += 1;
        shape.transaction(transactions << 32, &["row".to_owned()]);
        if transactions % 2 == 0 {
            shape.flush();
        }
    }
    if let Err(panic) = looking.join() {
        std::panic::resume_unwind(panic);
    }
    assert!(transactions > 100, "the writer changed the view {transactions} times only");
}

fn check_seam(view: &ShapeView) {
    let log = &view.log;
    let mut from = log.end;
    for frame in log.tail.iter() {
        assert_eq!(frame.at + frame.bytes.len() as u64, from, "a hole in the tail");
        from = frame.at;
    }
    assert_eq!(from, log.file_end, "a hole, or rows twice, between file and memory");
    let newest = log.tail.iter().next().map(|frame| Offset::new(frame.header.tx, frame.header.last_op));
    assert_eq!(newest.unwrap_or(log.file_last), log.last);
}
