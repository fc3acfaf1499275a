//! What reads the inputs, and well-formed ones to begin with.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shapefold::domain::{EventId, Handle, Lsn, Offset, Relation};
use shapefold::events;
use shapefold::journal::{ExportFile, Reading};
use shapefold::replication::{Assembler, Frame, SPILL_BYTES_DEFAULT, StreamItem};
use shapefold::server::read_request;
use shapefold::shape_log::{Read, RealDisk, ShapeFiles, ShapeReader, Verify, open_read_only};
use shapefold::state::State;

/// Something that reads bytes of others.
pub struct Target {
    pub name: &'static str,
    /// Well-formed inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input to its end, and tells whether it was good.
    pub read: fn(&[u8]) -> bool,
}

pub const PARAMETERS: Target =
    Target { name: "parameters", seeds: queries, read: |input| request(input, b"") };
pub const POST_BODIES: Target =
    Target { name: "post bodies", seeds: bodies, read: |input| request(b"table=items&offset=-1", input) };
pub const PGOUTPUT: Target = Target { name: "pgoutput", seeds: streams, read: stream };
pub const EVENTS: Target = Target { name: "events", seeds: event_bytes, read: event };
pub const JOURNAL_FILES: Target = Target { name: "journal files", seeds: exports, read: export };
pub const SHAPE_LOGS: Target = Target { name: "shape logs", seeds: shape_files, read: shape_log };

fn data(name: &str) -> PathBuf {
    // This file is also part of the crate in fuzz/.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if package.ends_with("fuzz") { package.parent().unwrap_or(package) } else { package };
    root.join("tests/data").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(data(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

// ---- requests --------------------------------------------------------------------------------

fn queries() -> Vec<Vec<u8>> {
    [
        "table=items&offset=-1&where=id+%3E+$1+AND+a+LIKE+'x%25'&params[1]=5&columns=id,a&replica=full",
        "table=public.items&offset=123_4&handle=12-34&live=true&live_sse=true&cursor=5&log=changes_only",
        "table=%22items%22&offset=now&subset__where=id+IN+(1,2)+OR+b+IS+NULL&subset__order_by=id+DESC+NULLS+LAST&subset__limit=5&subset__offset=2",
        "table=items&offset=0_inf&handle=1-1&where=a+ILIKE+$1+OR+(id+BETWEEN+1+AND+5)&params[1]=%C3%BC&queryable_columns=id,a,b",
        "table=items&offset=-1&where=id+%2B+2*3+%3D+ANY(ARRAY[1,2])+AND+NOT+b&subset__params=%7B%221%22:%22a%22%7D&subset__where=a=$1",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn bodies() -> Vec<Vec<u8>> {
    [
        r#"{"subset":{"where":"id > $1","params":{"1":"5"},"order_by":"id ASC, a DESC","limit":5,"offset":1}}"#,
        r#"{"where":"a = 'ü\u00e9\\'","order_by":"id","limit":"7"}"#,
        r#"{"where_expr":{"a":[1,{"b":null}]},"columns":"id,a","live":false}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn request(query: &[u8], body: &[u8]) -> bool {
    thread_local!(static ITEMS: OnceCell<Relation> = const { OnceCell::new() });
    ITEMS.with(|items| {
        let items = items.get_or_init(|| {
            let shape = ShapeFolder::new();
            Relation::clone(&shape.files.read_definition().expect("the fixture").relation)
        });
        read_request(&String::from_utf8_lossy(query), body, items)
    })
}

// ---- the replication stream ------------------------------------------------------------------

/// Messages with their lengths before them.
fn join(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        out.extend_from_slice(&u16::try_from(message.len()).expect("short").to_be_bytes());
        out.extend_from_slice(message);
    }
    out
}

fn streams() -> Vec<Vec<u8>> {
    let numbered = |tag: u8, rest: &[&[u8]]| [&[tag], &rest.concat()[..]].concat();
    let begin = numbered(b'B', &[&900_u64.to_be_bytes(), &[0; 8], &7_u32.to_be_bytes()]);
    let commit = numbered(b'C', &[&[0], &900_u64.to_be_bytes(), &908_u64.to_be_bytes(), &[0; 8]]);
    let column = |name: &[u8], key: u8| [&[key], name, b"\0", &25_u32.to_be_bytes()[..], &[255; 4]].concat();
    let relation = numbered(
        b'R',
        &[
            &5_u32.to_be_bytes(),
            b"public\0items\0f",
            &2_u16.to_be_bytes(),
            &column(b"id", 1),
            &column(b"v", 0),
        ],
    );
    let tuple = |marker: u8, id: &[u8]| {
        let len = u32::try_from(id.len()).expect("short").to_be_bytes();
        [&[marker], &2_u16.to_be_bytes()[..], b"t", &len, id, b"n"].concat()
    };
    let oid = 5_u32.to_be_bytes();
    let insert = numbered(b'I', &[&oid, &tuple(b'N', b"1")]);
    let update = numbered(b'U', &[&oid, &tuple(b'O', b"1"), &tuple(b'N', b"22")]);
    let delete = numbered(b'D', &[&oid, &tuple(b'O', b"22")]);
    let truncate = numbered(b'T', &[&1_u32.to_be_bytes(), &[0], &oid]);
    vec![
        join(&[begin.clone(), relation.clone(), insert.clone(), update, delete, commit.clone()]),
        join(&[relation, begin.clone(), insert, commit.clone(), begin, truncate, commit]),
    ]
}

fn stream(mut input: &[u8]) -> bool {
    // Nothing is spilled: inputs are far smaller than that.
    let mut assembler = Assembler::new(std::env::temp_dir(), SPILL_BYTES_DEFAULT);
    let mut items = Vec::new();
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let (data, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        let frame = Frame::XLogData { wal_start: Lsn(0), wal_end: Lsn(0), data };
        if assembler.accept(frame, &mut items).is_err() {
            return false;
        }
        input = rest;
    }
    items.iter().all(|item| match item {
        StreamItem::Transaction(transaction) => {
            let visit = &mut |changes: &[shapefold::domain::Change]| {
                std::hint::black_box(format!("{changes:?}"));
            };
            transaction.for_each_chunk(visit).is_ok()
        }
        StreamItem::Relation(_) | StreamItem::Keepalive { .. } => true,
    })
}

// ---- the journal -----------------------------------------------------------------------------

fn event_bytes() -> Vec<Vec<u8>> {
    let text = String::from_utf8(file("events/v1.hex")).expect("text");
    let unhex = |digits: &str| {
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        (0..digits.len()).step_by(2).map(byte).collect::<Vec<u8>>()
    };
    let events = text.lines().map(|line| unhex(line.split_once(' ').expect("a name and bytes").1));
    events.chain([file("state/v1.bin")]).collect()
}

/// An event, or the state at a checkpoint.
fn event(input: &[u8]) -> bool {
    let recorded = events::decode(input);
    let state = State::from_bytes(input);
    if let Ok(recorded) = &recorded {
        // What can be read can be written, and applied to any state.
        std::hint::black_box(events::encode(recorded));
        let mut state = State::default();
        state.apply(recorded);
    }
    recorded.is_ok() || state.is_some()
}

fn exports() -> Vec<Vec<u8>> {
    ["ampere", "deploy", "edison", "hypotheses"].map(|name| file(&format!("forensics/{name}.sfx"))).to_vec()
}

fn export(input: &[u8]) -> bool {
    thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder"));
    FOLDER.with(|folder| {
        let path = folder.path().join("journal.sfx");
        std::fs::write(&path, input).expect("the input is written");
        let Ok(export) = ExportFile::open(&path) else { return false };
        let sound = export.findings().is_empty();
        export.read(EventId(0)).all(|reading| matches!(reading, Reading::Entry(_))) && sound
    })
}

// ---- shape logs ------------------------------------------------------------------------------

const FILES: [&str; 4] = ["definition", "snapshot", "log", "log.idx"];

/// A shape on disk, as the fixture has it.
struct ShapeFolder {
    files: ShapeFiles,
    folder: PathBuf,
    _data: tempfile::TempDir,
}

impl ShapeFolder {
    fn new() -> ShapeFolder {
        let data_dir = tempfile::tempdir().expect("a folder");
        let handle: Handle = "258-1".parse().expect("a handle");
        // Under whatever two digits it is looked for.
        let shapes = data_dir.path().join("shapes");
        let folder = shapes.join("all").join(handle.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        for shard in 0..=u8::MAX {
            std::os::unix::fs::symlink("all", shapes.join(format!("{shard:02x}"))).expect("a link");
        }
        for name in FILES {
            std::fs::copy(data("shape_log/v1").join(name), folder.join(name)).expect("the fixture is copied");
        }
        let disk = Arc::new(RealDisk::new(data_dir.path()).expect("a disk"));
        ShapeFolder { files: ShapeFiles::open(disk, data_dir.path(), handle), folder, _data: data_dir }
    }
}

/// Which of the files is changed, then its bytes.
fn shape_files() -> Vec<Vec<u8>> {
    let numbered = FILES.iter().zip(b'0'..);
    numbered.map(|(name, number)| [vec![number], file(&format!("shape_log/v1/{name}"))].concat()).collect()
}

fn shape_log(input: &[u8]) -> bool {
    thread_local!(static SHAPE: ShapeFolder = ShapeFolder::new());
    SHAPE.with(|shape| {
        let Some((number, bytes)) = input.split_first() else { return false };
        let name = FILES[usize::from(*number) % FILES.len()];
        std::fs::write(shape.folder.join(name), bytes).expect("the input is written");
        let good = read_shape(&shape.files);
        std::fs::copy(data("shape_log/v1").join(name), shape.folder.join(name))
            .expect("the fixture is copied");
        good
    })
}

fn read_shape(files: &ShapeFiles) -> bool {
    let definition = files.read_definition();
    let Ok(reader) = ShapeReader::open(files) else { return false };
    if open_read_only(files, &reader, Verify::Everything).is_err() {
        return false;
    }
    let view = reader.view();
    let mut from = Offset::BeforeAll;
    loop {
        match view.read(from) {
            Ok(Read::Range(range)) => {
                let (end, last) = (range.end, range.up_to_date);
                if range.body.into_iter().any(|piece| piece.is_err()) {
                    return false;
                }
                if last {
                    return definition.is_ok();
                }
                assert!(end > from, "{end} after {from}: a client would ask for ever");
                from = end;
            }
            Ok(Read::Pending { .. } | Read::Beyond) | Err(_) => return false,
        }
    }
}
