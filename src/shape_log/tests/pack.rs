//! Shapes that share files: what was synced is there, whatever happens to the machine or to a byte, and
//! damage concerns one shape.

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;

use super::*;
use crate::domain::{PgSnapshot, Timestamp};
use crate::shape_log::{
    FaultClass, Followed, Follower, PACKED_LOG_BYTES_MAX, RealDisk, SimFault, SnapshotState, SnapshotWriter,
    StorageFault, flush_all, followed_disk, list_quarantined, list_shapes, settle_all,
};

const SEGMENT: u32 = 1 << 20;

fn handle(number: u64) -> Handle {
    Handle { hash: number, micros: 5 }
}

fn data() -> &'static Path {
    Path::new(DATA)
}

fn open(disk: &SimDisk, segment: u32) -> PackedDisk {
    PackedDisk::with_segments_of(Arc::new(disk.clone()), data(), segment).expect("it opens")
}

fn log_of(disk: &dyn Disk, number: u64) -> io::Result<Vec<u8>> {
    let shared: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let path = ShapeFiles::open(shared, data(), handle(number)).path("log");
    let file = disk.open(&path)?;
    let mut content = vec![0; file.size()? as usize];
    let mut read = 0;
    while read < content.len() {
        match file.read_at(&mut content[read..], read as u64)? {
            0 => break,
            count => read += count,
        }
    }
    content.truncate(read);
    Ok(content)
}

fn visible() -> PgSnapshot {
    PgSnapshot { xmin: 7, xmax: 9, xip: vec![8] }
}

/// Its snapshot written and not durable.
fn sealed(disk: &Arc<dyn Disk>, number: u64) -> (Arc<ShapeReader>, crate::shape_log::SealedSnapshot) {
    let (files, unsynced) =
        ShapeFiles::lay_out(Arc::clone(disk), data(), handle(number), &definition()).expect("made");
    let reader = ShapeReader::new(&files);
    let mut writer =
        SnapshotWriter::create(&files, &definition(), Arc::clone(&reader), CHUNK).expect("begins");
    writer.push_row(&[Value::Text(b"a"), Value::Text(b"f"), Value::Text(b"1")]).expect("a row");
    (reader, writer.seal(&visible(), Some(unsynced)).expect("sealed"))
}

#[test]
fn many_shapes_are_durable_with_one_sync_and_have_no_directories() {
    let disk = SimDisk::new();
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    let (readers, waiting): (Vec<_>, Vec<_>) = (0..100).map(|number| sealed(&packed, number)).unzip();
    let before = disk.calls();
    let settled = settle_all(packed.as_ref(), waiting);
    assert!(settled.iter().all(Result::is_ok));
    assert_eq!(disk.calls() - before, 1, "one sync");
    assert!(readers.iter().all(|reader| reader.view().snapshot_state() == SnapshotState::Complete));
    assert_eq!(disk.list(&data().join("shapes")).expect("a directory"), ["pack"]);
    disk.crash(3);
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    assert_eq!(
        list_shapes(packed.as_ref(), data()).expect("listed"),
        (0..100).map(handle).collect::<Vec<_>>()
    );
    for number in 0..100 {
        let files = ShapeFiles::open(Arc::clone(&packed), data(), handle(number));
        assert_eq!(files.read_definition().expect("durable"), definition());
        let view = ShapeReader::open(&files).expect("durable").view();
        assert_eq!(view.snapshot_state(), SnapshotState::Complete);
    }
}

#[test]
fn a_flush_of_many_small_logs_is_one_sync() {
    let disk = SimDisk::new();
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    let relation = wire(&definition());
    let mut writers: Vec<LogWriter> = (0..200)
        .map(|number| {
            let files =
                ShapeFiles::create(Arc::clone(&packed), data(), handle(number), &definition()).expect("made");
            let reader = ShapeReader::new(&files);
            let recovered =
                LogWriter::recover(&files, &definition(), reader, Incarnation(1), CHUNK, Verify::Tail);
            let (mut writer, _) = recovered.expect("an empty log opens");
            writer.begin(Lsn(10), Xid(3)).expect("begins");
            writer.push(&insert(0, &relation, &["1", "row", "t"]), Op::Insert).expect("a row");
            writer.commit().expect("committed");
            writer
        })
        .collect();
    let before = disk.calls();
    let flushed = flush_all(packed.as_ref(), &mut writers);
    assert!(flushed.iter().all(|last| *last == Ok(Offset::new(Lsn(10), 0))));
    assert_eq!(disk.calls() - before, 201, "a write for each, and one sync");
    assert!(writers.iter().all(|writer| !writer.holds_file()));
}

#[test]
fn a_shape_that_grows_gets_files_of_its_own_and_goes_on() {
    let mut shape = Shape::new_in(CHUNK, Some(SEGMENT));
    let mut alone = Shape::new(CHUNK);
    let mut held = Vec::new();
    for tx in 1..=40 {
        for shape in [&mut shape, &mut alone] {
            shape.transaction(tx * 8, &[text(4_000)]);
            shape.flush();
        }
        held.push((shape.reader.view(), walk(&shape.reader.view(), Offset::SNAPSHOT_END)));
    }
    assert!(shape.reader.view().log_size() > 2 * PACKED_LOG_BYTES_MAX);
    assert!(shape.disk.content(&shape.files.path("log")).is_ok(), "its own file");
    assert!(shape.files.disk.packed_shapes().is_empty());
    for (view, expected) in held {
        assert_eq!(walk(&view, Offset::SNAPSHOT_END), expected);
    }
    shape.disk.crash(1);
    let reopened = shape.reopen();
    assert_eq!(
        walk(&reopened.reader.view(), Offset::SNAPSHOT_END),
        walk(&alone.reader.view(), Offset::SNAPSHOT_END)
    );
}

#[test]
fn what_is_trashed_is_gone_after_a_start_and_what_is_set_aside_is_all_there() {
    let disk = SimDisk::new();
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    let waiting: Vec<_> = (0..3).map(|number| sealed(&packed, number).1).collect();
    assert!(settle_all(packed.as_ref(), waiting).iter().all(Result::is_ok));
    let files = |number| ShapeFiles::open(Arc::clone(&packed), data(), handle(number));
    let held = packed.open(&files(0).path("snapshot")).expect("it opens");
    files(0).trash(data()).expect("trashed");
    let mut rows = [0; 8];
    assert_eq!(held.read_at(&mut rows, 0).ok(), Some(8));
    assert_eq!(&rows, b"{\"key\":\"", "who has it open goes on");
    files(1).quarantine(data(), Timestamp(7)).expect("set aside");
    packed.barrier().expect("synced");
    disk.crash(9);
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    assert_eq!(list_shapes(packed.as_ref(), data()).expect("listed"), [handle(2)]);
    let aside = list_quarantined(packed.as_ref(), data()).expect("listed");
    assert_eq!(aside.iter().map(|entry| entry.handle).collect::<Vec<_>>(), [handle(1)]);
    let dir = data().join("quarantine").join("7-1-5");
    assert_eq!(packed.list(&dir).expect("a directory"), ["definition", "snapshot"]);
    assert!(!disk.content(&dir.join("snapshot")).expect("a file").is_empty());
}

/// Any byte of what was durable may be wrong: one shape notices at most, and none is given wrong bytes.
#[test]
fn damage_to_a_byte_concerns_one_shape() {
    let disk = SimDisk::new();
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    for number in 0..3 {
        ShapeFiles::create(Arc::clone(&packed), data(), handle(number), &definition()).expect("made");
    }
    let path = data().join("shapes/pack/00000001");
    let len = disk.content(&path).expect("a segment").len();
    let mut noticed = 0;
    for at in 0..len {
        disk.damage(&path, at, 0x08).expect("a byte");
        let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
        let mut wrong = 0;
        for number in 0..3 {
            let files = ShapeFiles::open(Arc::clone(&packed), data(), handle(number));
            match files.read_definition() {
                Ok(found) => assert_eq!(found, definition(), "byte {at}"),
                // Its only record: nothing is left of it, and the last one may be torn.
                Err(ShapeLogError::Storage(StorageFault { class: FaultClass::Vanished, .. }))
                    if number == 2 =>
                {
                    wrong += 1;
                }
                Err(ShapeLogError::Storage(StorageFault { class: FaultClass::Corrupt { .. }, .. })) => {
                    wrong += 1
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(wrong <= 1, "byte {at}: {wrong} shapes");
        noticed += wrong;
        disk.damage(&path, at, 0x08).expect("a byte");
    }
    assert!(noticed > len / 2, "{noticed} of {len}");
}

#[test]
fn a_write_that_fails_is_nobody_elses_business_and_a_sync_that_fails_is_everybodys() {
    let disk = SimDisk::new();
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    let create = |number| {
        let made = ShapeFiles::create(Arc::clone(&packed), data(), handle(number), &definition());
        made.map(|_| ()).map_err(|error| match error {
            ShapeLogError::Storage(fault) => fault.class,
            other => panic!("{other}"),
        })
    };
    assert_eq!(create(0), Ok(()));
    // Its directory is looked for, then its definition is written.
    disk.fail_call(disk.calls() + 2, SimFault::Errno(28));
    assert_eq!(create(1), Err(FaultClass::NoSpace));
    assert_eq!(create(2), Ok(()));
    let segments = disk.list(&data().join("shapes/pack")).expect("a directory");
    assert_eq!(segments, ["00000001", "00000002"], "the file is left alone");
    disk.fail_call(disk.calls() + 3, SimFault::Errno(5));
    assert_eq!(create(3), Err(FaultClass::Transient { errno: 5 }), "the sync fails");
    assert_eq!(create(4), Err(FaultClass::Transient { errno: 5 }), "nothing is durable any more");
    disk.crash(4);
    let packed: Arc<dyn Disk> = Arc::new(open(&disk, SEGMENT));
    for number in [0, 2] {
        let files = ShapeFiles::open(Arc::clone(&packed), data(), handle(number));
        assert_eq!(files.read_definition(), Ok(definition()));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64, usize),
    Cut(u64, usize),
    Sync(u64),
    Remove(u64),
    Tidy,
    Crash(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..6_u64, 1..2_000_usize).prop_map(|(shape, len)| Step::Append(shape, len)),
        1 => (0..6_u64, 30_000..90_000_usize).prop_map(|(shape, len)| Step::Append(shape, len)),
        2 => (0..6_u64, 0..3_000_usize).prop_map(|(shape, len)| Step::Cut(shape, len)),
        6 => (0..6_u64).prop_map(Step::Sync),
        2 => (0..6_u64).prop_map(Step::Remove),
        3 => Just(Step::Tidy),
        3 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

/// A shape that the model knows: the number of its life, its log, and how much of that is durable for certain.
#[derive(Clone, Debug, Default)]
struct Known {
    log: Vec<u8>,
    synced: usize,
}

struct Model {
    disk: SimDisk,
    packed: PackedDisk,
    segment: u32,
    /// By the number that is in use now: a handle is never used again.
    numbers: BTreeMap<u64, u64>,
    known: BTreeMap<u64, Known>,
    bytes: u8,
    next: u64,
}

impl Model {
    fn number(&mut self, shape: u64) -> u64 {
        if let Some(number) = self.numbers.get(&shape) {
            return *number;
        }
        self.next += 1;
        let number = self.next;
        let dir = self.path(number, "log").parent().expect("a directory").to_path_buf();
        self.packed.create_dir(&dir).expect("made");
        let file = self.packed.create(&self.path(number, "definition")).expect("made");
        let body = definition_bytes();
        file.write_at(&body, 0).expect("written");
        self.packed.create(&self.path(number, "log")).expect("made");
        self.numbers.insert(shape, number);
        self.known.insert(number, Known::default());
        number
    }

    fn path(&self, number: u64, name: &str) -> std::path::PathBuf {
        let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
        ShapeFiles::open(shared, data(), handle(number)).path(name)
    }

    fn log(&self, number: u64) -> Arc<dyn crate::shape_log::DiskFile> {
        let path = self.path(number, "log");
        match self.packed.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.packed.create(&path).expect("made"),
            opened => opened.expect("opens"),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Append(shape, len) => {
                let number = self.number(*shape);
                self.bytes = self.bytes.wrapping_add(1);
                let content = vec![self.bytes; *len];
                let known = self.known.get_mut(&number).expect("known");
                let at = known.log.len();
                known.log.extend_from_slice(&content);
                let written = self.log(number).write_at(&content, at as u64).expect("written");
                assert_eq!(written, *len);
            }
            // As a recovery does: never below what was durable.
            Step::Cut(shape, less) => {
                let number = self.number(*shape);
                let log = self.log(number);
                let known = self.known.get_mut(&number).expect("known");
                let len = known.log.len().saturating_sub(*less).max(known.synced);
                known.log.truncate(len);
                log.set_len(len as u64).expect("cut");
            }
            Step::Sync(shape) => {
                let number = self.number(*shape);
                let log = self.log(number);
                log.sync_data().expect("synced");
                if log.packed_upto().is_none() {
                    self.packed.barrier().expect("synced");
                }
                let known = self.known.get_mut(&number).expect("known");
                known.synced = known.log.len();
            }
            Step::Remove(shape) => {
                if let Some(number) = self.numbers.remove(shape) {
                    let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
                    let dir = ShapeFiles::open(shared, data(), handle(number)).dir;
                    self.packed.create_dir(&data().join("trash")).expect("made");
                    let to = data().join("trash").join(handle(number).to_string());
                    self.packed.rename(&dir, &to).expect("trashed");
                }
            }
            Step::Tidy => Disk::tidy(&self.packed).expect("tidied"),
            Step::Crash(seed) => {
                self.disk.crash(*seed);
                self.start(true);
            }
            Step::Restart => self.start(false),
        }
    }

    /// Starts anew; what is found is between what was durable and what was written.
    fn start(&mut self, crashed: bool) {
        self.packed = open(&self.disk, self.segment);
        for number in self.numbers.values() {
            let known = self.known.get_mut(number).expect("known");
            let found = match log_of(&self.packed, *number) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                found => found.expect("intact"),
            };
            assert!(found.len() >= known.synced, "{number}: {} of {}", found.len(), known.synced);
            assert!(crashed || found == known.log, "{number}: nothing is lost without a crash");
            // A cut that was not synced may be undone; what it cut off was never durable.
            let same = found.len().min(known.synced);
            assert_eq!(found[..same], known.log[..same], "{number}");
            known.log = found;
        }
        // What nothing is left of was never durable.
        let packed = &self.packed;
        let there = list_shapes(packed, data()).expect("listed");
        let known = &self.known;
        self.numbers.retain(|_, number| {
            let left = there.contains(&handle(*number));
            assert!(left || known[number].synced == 0, "{number} is gone");
            left
        });
    }
}

fn definition_bytes() -> Vec<u8> {
    let disk = SimDisk::new();
    let files = ShapeFiles::create(Arc::new(disk.clone()), data(), HANDLE, &definition()).expect("made");
    disk.content(&files.path("definition")).expect("a file")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_was_synced_is_there_after_any_crash(
        segment in prop_oneof![Just(3_000_u32), Just(40_000), Just(SEGMENT)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let disk = SimDisk::new();
        let mut model = Model {
            packed: open(&disk, segment),
            disk,
            segment,
            numbers: BTreeMap::new(),
            known: BTreeMap::new(),
            bytes: 0,
            next: 0,
        };
        for step in &steps {
            model.run(step);
            for number in model.numbers.values() {
                let found = match log_of(&model.packed, *number) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                    found => found.expect("intact"),
                };
                prop_assert_eq!(&found, &model.known[number].log);
            }
        }
        model.start(false);
    }
}

#[test]
fn room_is_won_back_and_what_is_of_use_stays() {
    let disk = SimDisk::new();
    let packed = open(&disk, 10_000);
    let shared: Arc<dyn Disk> = Arc::new(packed);
    for number in 0..300 {
        ShapeFiles::create(Arc::clone(&shared), data(), handle(number), &definition()).expect("made");
    }
    for number in (0..300).filter(|number| number % 10 > 0) {
        ShapeFiles::open(Arc::clone(&shared), data(), handle(number)).trash(data()).expect("trashed");
    }
    let size = |disk: &SimDisk| {
        let names = disk.list(&data().join("shapes/pack")).expect("a directory");
        let path = |name: &String| data().join("shapes/pack").join(name);
        names.iter().map(|name| disk.content(&path(name)).expect("a file").len()).sum::<usize>()
    };
    let before = size(&disk);
    shared.tidy().expect("tidied");
    let after = size(&disk);
    assert!(after < before / 4, "{before} bytes before, {after} after");
    disk.crash(5);
    let shared: Arc<dyn Disk> = Arc::new(open(&disk, 10_000));
    let left: Vec<Handle> = (0..300).step_by(10).map(handle).collect();
    assert_eq!(list_shapes(shared.as_ref(), data()).expect("listed"), left);
    for handle in left {
        assert_eq!(ShapeFiles::open(Arc::clone(&shared), data(), handle).read_definition(), Ok(definition()));
    }
}

#[test]
fn another_process_reads_along_until_the_shape_has_files_of_its_own_and_after() {
    let data = tempfile::tempdir().expect("a directory");
    let real = Arc::new(RealDisk::new(data.path()).expect("it opens"));
    let disk: Arc<dyn Disk> = Arc::new(PackedDisk::open(real, data.path()).expect("it opens"));
    let followed = followed_disk(data.path());
    assert_eq!(Follower::exists(&followed, data.path(), HANDLE).ok(), Some(false));
    let (files, unsynced) =
        ShapeFiles::lay_out(Arc::clone(&disk), data.path(), HANDLE, &definition()).expect("made");
    let reader = ShapeReader::new(&files);
    let writer = SnapshotWriter::create(&files, &definition(), Arc::clone(&reader), CHUNK).expect("begins");
    assert!(Follower::open(&followed, data.path(), HANDLE).expect("no fault").is_none(), "not complete");
    assert_eq!(Follower::exists(&followed, data.path(), HANDLE).ok(), Some(true));
    let sealed = writer.seal(&visible(), Some(unsynced)).expect("sealed");
    assert!(settle_all(disk.as_ref(), [sealed]).iter().all(Result::is_ok));
    let (found, mut follower) =
        Follower::open(&followed, data.path(), HANDLE).expect("no fault").expect("it is complete");
    assert_eq!(found, definition());
    let recovered =
        LogWriter::recover(&files, &definition(), Arc::clone(&reader), Incarnation(1), CHUNK, Verify::Tail);
    let (mut writer, _) = recovered.expect("an empty log opens");
    let relation = wire(&definition());
    let mut own = false;
    for tx in 1..=30 {
        writer.begin(Lsn(tx * 8), Xid(3)).expect("begins");
        writer.push(&insert(0, &relation, &["1", &text(4_000), "t"]), Op::Insert).expect("a row");
        writer.commit().expect("committed");
        flush_all(disk.as_ref(), [&mut writer]).remove(0).expect("flushed");
        assert_eq!(follower.follow().expect("no fault"), Followed::Changed, "transaction {tx}");
        assert_eq!(follower.follow().expect("no fault"), Followed::Unchanged);
        let walked = |reader: &ShapeReader| walk(&reader.view(), Offset::SNAPSHOT_END);
        assert_eq!(walked(follower.reader()), walked(&reader));
        own |= files.path("log").exists();
    }
    assert!(own, "it has grown");
    files.trash(data.path()).expect("trashed");
    assert_eq!(follower.follow().expect("no fault"), Followed::Gone);
}
