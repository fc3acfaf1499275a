//! What the tests of the server stand on: the real service handle and the real shape log, on a simulated
//! disk and without a driver.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request as HttpRequest};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::domain::{
    Change, Column, Handle, Incarnation, LogMode, Lsn, Oid, PgSnapshot, Relation, RelationName, Replica,
    ShapeDefinition, Tuple, Value, WireColumn, WireRelation, Xid,
};
use crate::runtime::handle::{
    CreateError, LiveShape, Phase, Request, Service, SnapshotProblem, Status, testing,
};
use crate::shape_log::{Disk, LogWriter, Op, ShapeFiles, ShapeReader, SimDisk, SnapshotWriter, Verify};

use super::router::dispatch;
use super::{App, Settings};

/// Small, so that chunks end early.
pub(super) const CHUNK_BYTES: u64 = 600;

pub(super) fn column(name: &str, type_name: &str, pk_position: Option<u16>) -> Column {
    let type_oid = match type_name {
        "int4" => Oid(23),
        _ => Oid(25),
    };
    Column {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: pk_position.is_some(),
        pk_position,
        generated: false,
        type_kind: 'b',
        base: None,
    }
}

/// `items (id int4, k int4, value text, primary key (k, id))`.
pub(super) fn relation() -> Relation {
    Relation {
        oid: Oid(16_400),
        name: RelationName { schema: "public".to_owned(), table: "items".to_owned() },
        columns: vec![
            column("id", "int4", Some(1)),
            column("k", "int4", Some(0)),
            column("value", "text", None),
        ],
        partitioned: false,
        storage: None,
    }
}

/// All of `items`.
pub(super) fn definition() -> ShapeDefinition {
    ShapeDefinition {
        columns: ["id", "k", "value"].map(str::to_owned).to_vec(),
        relation: Arc::new(relation()),
        where_sql: None,
        columns_named: false,
        replica: Replica::Default,
        log: LogMode::Full,
        dependencies: Vec::new(),
        selects: Vec::new(),
    }
}

/// What happens to a shape when it is made.
#[derive(Clone, Debug)]
pub(super) enum Birth {
    /// Its snapshot is complete, with this many rows.
    Complete(usize),
    /// It can be read, but not a row is written yet.
    Readable,
    /// Nothing has happened yet.
    Opening,
    Failed(SnapshotProblem),
    /// It is not made.
    Refused,
}

/// A server, and the hand of its driver.
pub(super) struct World {
    pub app: Arc<App>,
    pub service: Service,
    inner: Arc<Inner>,
}

struct Inner {
    disk: SimDisk,
    birth: Mutex<Birth>,
    made: Mutex<Vec<Arc<Made>>>,
}

/// A shape, from the writer's side.
pub(super) struct Made {
    pub live: Arc<LiveShape>,
    files: ShapeFiles,
    mark: Arc<AtomicU64>,
    log: Mutex<LogWriter>,
}

impl World {
    pub(super) fn new(settings: Settings, birth: Birth) -> World {
        let (requests, mut inbox) = mpsc::channel(16);
        let service = testing::service(requests, &tables());
        service.set_status(Status::Active);
        let inner =
            Arc::new(Inner { disk: SimDisk::new(), birth: Mutex::new(birth), made: Mutex::default() });
        let app = Arc::new(App::new(service.clone(), settings));
        let (driver, shapes) = (Arc::clone(&inner), service.clone());
        tokio::spawn(async move {
            while let Some(request) = inbox.recv().await {
                driver.perform(&shapes, request);
            }
        });
        World { app, service, inner }
    }

    pub(super) fn set_birth(&self, birth: Birth) {
        *self.inner.birth.lock().expect("no panic") = birth;
    }

    /// The newest shape.
    pub(super) fn made(&self) -> Arc<Made> {
        self.inner.made.lock().expect("no panic").last().expect("a shape was made").clone()
    }

    pub(super) fn made_count(&self) -> usize {
        self.inner.made.lock().expect("no panic").len()
    }

    /// Makes a shape as if a request had asked for it.
    pub(super) fn make(&self, definition: ShapeDefinition) -> Arc<Made> {
        let birth = self.inner.birth.lock().expect("no panic").clone();
        self.inner.make(&self.service, Arc::new(definition), &birth)
    }

    pub(super) fn end(&self, made: &Made) {
        testing::remove(&self.service, made.live.handle);
        testing::set_phase(&made.live, Phase::Ended);
    }

    pub(super) async fn send(&self, request: HttpRequest<Body>) -> Response {
        dispatch(&self.app, request).await
    }

    pub(super) async fn get(&self, target: &str) -> Response {
        self.send(request(Method::GET, target)).await
    }

    /// Status and body.
    pub(super) async fn body(&self, method: Method, target: &str) -> String {
        let response = self.send(request(method, target)).await;
        let status = response.status().as_u16();
        format!("{status} {}", collect(response).await.expect("a whole body"))
    }
}

impl Inner {
    fn perform(&self, service: &Service, request: Request) {
        match request {
            Request::FindOrCreate { definition, reply } => {
                let birth = self.birth.lock().expect("no panic").clone();
                let answer = match birth {
                    Birth::Refused => Err(CreateError::NotActive),
                    birth => Ok(Arc::clone(&self.make(service, definition, &birth).live)),
                };
                // The client may have gone.
                let _ = reply.send(answer);
            }
            Request::Delete { sid, reply } => {
                let made = self.made.lock().expect("no panic");
                let shape = made.iter().find(|made| made.live.sid == sid);
                if let Some(made) = shape {
                    testing::remove(service, made.live.handle);
                    testing::set_phase(&made.live, Phase::Ended);
                }
                let _ = reply.send(shape.is_some());
            }
            Request::Lacks { reply, .. } => {
                let _ = reply.send(false);
            }
            // Nobody here has views to compare: who asks sees that there is no answer.
            Request::Check { reply } => drop(reply),
            #[cfg(feature = "test-hooks")]
            Request::Sabotage { .. } | Request::Meddle(_) => {}
        }
    }

    fn make(&self, service: &Service, definition: Arc<ShapeDefinition>, birth: &Birth) -> Arc<Made> {
        let number = self.made.lock().expect("no panic").len() as u64 + 1;
        let handle = Handle { hash: 77, micros: number };
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let files = ShapeFiles::create(disk, Path::new("/data"), handle, &definition).expect("a directory");
        let reader = ShapeReader::new(&files);
        let mark = Arc::new(AtomicU64::new(0));
        let live = testing::live_shape(
            handle,
            Arc::clone(&definition),
            Arc::clone(&reader),
            Phase::Opening,
            Arc::clone(&mark),
        );
        let (log, _) =
            LogWriter::recover(&files, &definition, reader, Incarnation(1), CHUNK_BYTES, Verify::Tail)
                .expect("an empty log");
        let made = Arc::new(Made { live, files, mark, log: Mutex::new(log) });
        let phase = match birth {
            Birth::Complete(rows) => {
                let mut snapshot = made.snapshot();
                (0..*rows).for_each(|row| push_row(&mut snapshot, row));
                finish(snapshot);
                Phase::Readable
            }
            Birth::Readable => Phase::Readable,
            Birth::Opening | Birth::Refused => Phase::Opening,
            Birth::Failed(problem) => Phase::Failed(problem.clone()),
        };
        made.set_phase(phase);
        testing::add(service, &made.live);
        self.made.lock().expect("no panic").push(Arc::clone(&made));
        made
    }
}

impl Made {
    pub(super) fn set_phase(&self, phase: Phase) {
        testing::set_phase(&self.live, phase);
    }

    /// Everything up to here is in the view.
    pub(super) fn set_published(&self, lsn: u64) {
        self.mark.store(lsn, Ordering::Release);
    }

    pub(super) fn snapshot(&self) -> SnapshotWriter {
        let reader = Arc::clone(&self.live.reader);
        SnapshotWriter::create(&self.files, &self.live.definition, reader, CHUNK_BYTES).expect("a file")
    }

    /// A transaction of one inserted row for each id.
    pub(super) fn commit(&self, lsn: u64, ids: &[usize]) {
        let mut log = self.log.lock().expect("no panic");
        let relation = wire(&self.live.definition.relation);
        log.begin(Lsn(lsn), Xid(lsn as u32)).expect("a new transaction");
        for (index, id) in ids.iter().enumerate() {
            let id = id.to_string();
            let values = [Value::Text(id.as_bytes()), Value::Text(b"1"), Value::Text(b"new")];
            let new = Tuple::from_values(&values);
            let change = Change::Insert { op: index as u64 * 2, relation: Arc::clone(&relation), new };
            log.push(&change, Op::Insert).expect("a row");
        }
        log.commit().expect("the disk works");
    }
}

pub(super) fn push_row(snapshot: &mut SnapshotWriter, row: usize) {
    let id = row.to_string();
    let values = [Value::Text(id.as_bytes()), Value::Text(b"1"), Value::Text(b"old")];
    snapshot.push_row(&values).expect("a row");
}

pub(super) fn finish(snapshot: SnapshotWriter) {
    snapshot.finish(&PgSnapshot { xmin: 5, xmax: 7, xip: vec![6] }).expect("the disk works");
}

pub(super) fn request(method: Method, target: &str) -> HttpRequest<Body> {
    HttpRequest::builder().method(method).uri(target).body(Body::empty()).expect("a valid request")
}

/// The body; `Err` where it does not end cleanly.
pub(super) async fn collect(response: Response) -> Result<String, axum::Error> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

/// Status, headers but the request id, and body.
pub(super) async fn text(response: Response) -> String {
    let mut out = format!("{}\n", response.status().as_u16());
    for (name, value) in response.headers() {
        if name != "x-request-id" {
            out.push_str(&format!("{name}: {}\n", value.to_str().expect("ASCII")));
        }
    }
    out.push('\n');
    out.push_str(&collect(response).await.expect("a whole body"));
    out
}

/// One header, empty where it is absent.
pub(super) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("ASCII"))
}

/// `items`, and a table that has gone.
fn tables() -> [Relation; 2] {
    let name = RelationName { schema: "public".to_owned(), table: "gone".to_owned() };
    [relation(), Relation { name, columns: Vec::new(), ..relation() }]
}

fn wire(relation: &Relation) -> Arc<WireRelation> {
    let column = |column: &Column| WireColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: -1,
        in_identity: true,
    };
    Arc::new(WireRelation {
        oid: relation.oid,
        name: relation.name.clone(),
        replica_identity: 'f',
        columns: relation.columns.iter().map(column).collect(),
    })
}
