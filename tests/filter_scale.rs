//! What an idle shape costs in the index, counted by an allocator of its own: hence a test binary of
//! its own. `SHAPEFOLD_FILTER_SHAPES` sets another number of shapes and prints how long routing takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shapefold::domain::{
    Change, Column, Oid, Relation, RelationName, Sid, Tuple, Value, WireColumn, WireRelation,
};
use shapefold::filter::{Predicate, RowMove, ShapeIndex};

/// Held by a test while it allocates: the count is one for all threads.
static ALONE: Mutex<()> = Mutex::new(());

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const COLUMNS: [(&str, u32, &str, u32); 4] = [
    ("user_id", 20, "int8", 0),
    ("name", 25, "text", 0),
    ("tags", 1007, "int4", 23),
    ("doc", 3802, "jsonb", 0),
];

fn relation() -> Relation {
    let column = |(name, oid, ty, element): &(&str, u32, &str, u32)| Column {
        name: (*name).to_owned(),
        type_oid: Oid(*oid),
        type_name: (*ty).to_owned(),
        element_oid: Oid(*element),
        type_modifier: -1,
        dimensions: 0,
        not_null: false,
        pk_position: None,
        generated: false,
        type_kind: 'b',
        base: None,
    };
    let name = RelationName { schema: "public".to_owned(), table: "items".to_owned() };
    Relation {
        oid: Oid(1),
        name,
        columns: COLUMNS.iter().map(column).collect(),
        partitioned: false,
        storage: None,
    }
}

fn wire() -> Arc<WireRelation> {
    let column = |(name, oid, ..): &(&str, u32, &str, u32)| WireColumn {
        name: (*name).to_owned(),
        type_oid: Oid(*oid),
        type_modifier: -1,
        in_identity: true,
    };
    let name = RelationName { schema: "public".to_owned(), table: "items".to_owned() };
    let columns = COLUMNS.iter().map(column).collect();
    Arc::new(WireRelation { oid: Oid(1), name, replica_identity: 'f', columns })
}

fn index(shapes: u32, clause: impl Fn(u32) -> String) -> ShapeIndex {
    let (relation, params) = (relation(), BTreeMap::new());
    let mut index = ShapeIndex::new();
    index.announce(&wire());
    for number in 0..shapes {
        let predicate = Predicate::parse(&clause(number), &params, &relation).expect("a supported clause");
        index.insert(Sid(number), Oid(1), Some(predicate));
    }
    index
}

fn change(number: u32) -> Change {
    let (id, name) = (number.to_string(), format!("K{number}x"));
    let (tags, doc) = (format!("{{{number},-1}}"), format!("{{\"k\": {number}, \"z\": true}}"));
    let cells = [&id, &name, &tags, &doc].map(|text| Value::Text(text.as_bytes()));
    Change::Insert { op: 0, relation: wire(), new: Tuple::from_values(&cells) }
}

fn shapes(default: u32) -> u32 {
    std::env::var("SHAPEFOLD_FILTER_SHAPES").map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn an_idle_shape_costs_little() {
    let _alone = ALONE.lock();
    let shapes = shapes(10_000);
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut index = index(shapes, |number| format!("user_id = {number}"));
    let used = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("{shapes} shapes `user_id = k`: {used} bytes, {} a shape", used / shapes as usize);
    // 300,000 of them fit into 100 MB.
    assert!(used <= shapes as usize * 333, "{used} bytes for {shapes} shapes");
    (0..shapes).for_each(|number| assert!(index.remove(Sid(number))));
    assert!(index.is_empty());
    let left = ALLOCATED.load(Ordering::Relaxed) - before;
    assert!(left < 16_384, "{left} bytes are left of an empty index");
}

#[test]
fn each_form_finds_its_shapes_among_many() {
    let _alone = ALONE.lock();
    type Clause = fn(u32) -> String;
    let forms: [(&str, Clause); 12] = [
        ("=", |k| format!("user_id = {k}")),
        ("IN", |k| format!("user_id IN ({k}, -{k})")),
        ("= ANY", |k| format!("user_id = ANY ('{{{k},-1}}')")),
        ("BETWEEN", |k| format!("user_id BETWEEN {k} AND {k}")),
        ("range", |k| format!("user_id >= {k} AND user_id < {k} + 1 AND name IS NOT NULL")),
        ("ILIKE", |k| format!("name ILIKE 'k{k}x%'")),
        ("= ANY (array)", |k| format!("{k} = ANY (tags)")),
        ("array @>", |k| format!("tags @> '{{{k},-1}}'")),
        ("array <@", |k| format!("tags <@ '{{{k},-1,-2}}'")),
        ("array =", |k| format!("tags = '{{{k},-1}}'")),
        ("IS NULL OR", |k| format!("user_id IS NULL OR name IS NULL OR user_id = {k}")),
        ("jsonb @>", |k| format!("doc @> '{{\"k\": {k}}}' OR doc->>'k' = '{k}'")),
    ];
    let many = shapes(300);
    for (name, clause) in forms {
        let mut line = format!("{name}:");
        for shapes in [10, many] {
            let index = index(shapes, clause);
            let changes: Vec<Change> = (0..shapes.min(1_000)).map(change).collect();
            let mut moves = Vec::new();
            let begin = Instant::now();
            for (number, change) in (0..).zip(&changes) {
                moves.clear();
                index.route(change, &mut moves).expect("the relation is known");
                assert_eq!(moves, [(Sid(number), RowMove::Insert)], "{name}");
            }
            let each = begin.elapsed().as_nanos() as f64 / changes.len() as f64;
            line.push_str(&format!(" {shapes} shapes {:.2} us", each / 1e3));
        }
        println!("{line}");
    }
}

/// Work is counted in allocations: the same on every machine.
#[test]
fn shapes_come_and_go_at_a_cost_that_does_not_grow() {
    let _alone = ALONE.lock();
    type Clause = fn(u32) -> String;
    let forms: [(&str, Clause); 4] = [
        ("=", |k| format!("user_id = {k}")),
        ("range", |k| format!("user_id >= {k} AND user_id < {k} + 5")),
        ("array <@", |k| format!("tags <@ '{{{k},-1}}'")),
        ("AND", |k| format!("name ILIKE 'k{k}%' AND user_id IN ({k}, -{k})")),
    ];
    let (relation, params) = (relation(), BTreeMap::new());
    for (name, clause) in forms {
        let mut costs = Vec::new();
        for shapes in [100, 10_000] {
            let mut index = index(shapes, clause);
            let predicates: Vec<Predicate> = (shapes..shapes + 100)
                .map(|number| Predicate::parse(&clause(number), &params, &relation).expect("a clause"))
                .collect();
            let (calls, begin) = (CALLS.load(Ordering::Relaxed), Instant::now());
            for (sid, predicate) in (shapes..).zip(predicates) {
                index.insert(Sid(sid), Oid(1), Some(predicate));
            }
            (shapes..shapes + 100).for_each(|sid| assert!(index.remove(Sid(sid))));
            costs.push(CALLS.load(Ordering::Relaxed) - calls);
            println!("{name}: {:.1} us a shape among {shapes}", begin.elapsed().as_nanos() as f64 / 1e5);
        }
        assert!(costs[1] <= costs[0] * 3 / 2, "{name}: {costs:?} allocations for 100 shapes");
    }
}
