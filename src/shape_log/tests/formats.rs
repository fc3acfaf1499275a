//! The files of each version, as they were written once: they are read for ever, and the current
//! version is written to the byte. `SHAPEFOLD_WRITE_FIXTURES=1` writes those of a new version.

use std::path::PathBuf;

use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::SnapshotWriter;

const NAMES: [&str; 4] = ["definition", "snapshot", "log", "log.idx"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shape_log/v1").join(name)
}

/// Written by this build, where `packed` says into a segment that it could share.
fn current_in(packed: Packed) -> Shape {
    let mut shape = Shape::new_in(400, packed);
    let mut writer =
        SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 200).expect("begins");
    for id in ["1", "2"] {
        writer
            .push_row(&[Value::Text("é\"/".as_bytes()), Value::Text(b"f"), Value::Text(id.as_bytes())])
            .expect("a row");
    }
    writer.finish(&PgSnapshot { xmin: 7, xmax: 9, xip: vec![8] }).expect("done");
    shape.transaction(1 << 40, &[text(5), text(6), text(7)]);
    shape.flush();
    shape.transaction((1 << 40) + 9, &[text(8)]);
    shape.flush();
    shape
}

fn current() -> Shape {
    current_in(None)
}

fn is_as_fixed(name: &str, content: &[u8]) {
    if std::env::var_os("SHAPEFOLD_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture("").as_path()).expect("made");
        std::fs::write(fixture(name), content).expect("written");
    }
    assert_eq!(content, std::fs::read(fixture(name)).expect("a fixture"), "{name}");
}

#[test]
fn version_1_is_written_to_the_byte() {
    let shape = current();
    for name in NAMES {
        is_as_fixed(name, &shape.disk.content(&shape.files.path(name)).expect("a file"));
    }
    let packed = current_in(Some(SEGMENT));
    is_as_fixed("pack", &packed.disk.content(&segment()).expect("a segment"));
}

const SEGMENT: u32 = 1 << 20;

/// The first that is made.
fn segment() -> PathBuf {
    Path::new(DATA).join("shapes/pack/00000001")
}

#[test]
fn a_segment_of_version_1_is_read() {
    let disk = SimDisk::new();
    Disk::create_dir(&disk, segment().parent().expect("a directory")).expect("made");
    let content = std::fs::read(fixture("pack")).expect("a fixture");
    Disk::create(&disk, &segment()).expect("made").write_at(&content, 0).expect("written");
    let shared = started(&disk, Some(SEGMENT));
    let shape =
        Shape::open_in(disk, shared, (400, Some(SEGMENT)), Verify::Everything).expect("a segment is read");
    assert_eq!(shape.files.read_definition(), Ok(definition()));
    assert_eq!(
        walk(&shape.reader.view(), Offset::BeforeAll),
        walk(&current().reader.view(), Offset::BeforeAll)
    );
}

#[test]
fn version_1_is_read() {
    let disk = SimDisk::new();
    let files = ShapeFiles::open(Arc::new(disk.clone()), Path::new(DATA), HANDLE);
    Disk::create_dir(&disk, &files.dir).expect("made");
    for name in NAMES {
        let content = std::fs::read(fixture(name)).expect("a fixture");
        Disk::create(&disk, &files.path(name)).expect("made").write_at(&content, 0).expect("written");
    }
    assert_eq!(files.read_definition(), Ok(definition()));
    let shape = Shape::open(disk, 400, Verify::Everything).expect("opens");
    assert_eq!(shape.recovered, Recovered { last: Offset::new(Lsn((1 << 40) + 9), 0), trimmed_bytes: 0 });
    assert_eq!(
        walk(&shape.reader.view(), Offset::BeforeAll),
        walk(&current().reader.view(), Offset::BeforeAll)
    );
    assert_eq!(
        walk(&shape.reader.view(), Offset::BeforeAll).0,
        [
            "insert",
            "insert",
            "snapshot-end",
            "1099511627776_0",
            "1099511627776_2",
            "1099511627776_4",
            "1099511627785_0",
        ]
    );
}

/// The real file system gives the same files as the simulated one.
#[test]
fn the_real_disk_holds_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(crate::shape_log::RealDisk::new(dir.path()).expect("opens"));
    let files = ShapeFiles::create(Arc::clone(&disk), dir.path(), HANDLE, &definition()).expect("made");
    assert!(
        ShapeFiles::create(Arc::clone(&disk), dir.path(), HANDLE, &definition()).is_err(),
        "a handle is used once"
    );
    let reader = ShapeReader::new(&files);
    let open = || {
        LogWriter::recover(&files, &definition(), Arc::clone(&reader), Incarnation(1), 400, Verify::Tail)
            .expect("opens")
    };
    let mut simulated = Shape::new(400);
    let (mut writer, _) = open();
    for tx in 1..=9 {
        simulated.transaction(tx, &[text(30)]);
        writer.begin(Lsn(tx), Xid(tx as u32)).expect("begins");
        writer.push(&insert(0, &simulated.relation, &["0", &text(30), "t"]), Op::Insert).expect("a row");
        writer.commit().expect("commits");
        writer.release();
    }
    let flushed = super::super::flush_all(disk.as_ref(), [&mut writer]);
    assert_eq!(flushed, [Ok(simulated.flush())]);
    disk.barrier().expect("syncfs works");
    for name in ["definition", "log", "log.idx"] {
        assert_eq!(
            std::fs::read(files.path(name)).expect("a file"),
            simulated.disk.content(&simulated.files.path(name)).expect("a file"),
            "{name}"
        );
    }
    let expected = walk(&simulated.reader.view(), Offset::SNAPSHOT_END);
    assert_eq!(walk(&reader.view(), Offset::SNAPSHOT_END), expected);
    assert_eq!(open().1.last, simulated.reader.view().last());
    assert_eq!(walk(&reader.view(), Offset::SNAPSHOT_END), expected);
    files.trash(dir.path()).expect("moved");
    crate::shape_log::purge(disk.as_ref(), dir.path(), &HANDLE.to_string()).expect("purged");
    assert_eq!(crate::shape_log::list_shapes(disk.as_ref(), dir.path()), Ok(vec![]));
}
