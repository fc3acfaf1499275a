//! The messages of the contract, 1.10 and 3.4, to the byte.

use super::*;
use crate::shape_log::{EncodeError, Encoded, Encoder, SharedEncoder, TransactionHeaders, snapshot_columns};

fn encode(definition: &ShapeDefinition, change: &Change, op: Op) -> String {
    let mut out = Encoded::default();
    match Encoder::new(definition).encode(change, op, &TransactionHeaders::new(Lsn(456), Xid(12)), &mut out) {
        Ok(()) => out
            .messages()
            .map(|(op, open)| format!("{op}: {}}}}}\n", String::from_utf8_lossy(open)))
            .collect(),
        Err(error) => error.to_string(),
    }
}

fn update(definition: &ShapeDefinition, old: Option<&[&str]>, new: &[&str]) -> Change {
    Change::Update { op: 4, relation: wire(definition), old: old.map(tuple), new: tuple(new) }
}

const HEADERS: &str = r#""relation":["public","items"],"txids":[12],"lsn":"456","op_position""#;

#[test]
fn inserts_and_deletes() {
    let base = definition();
    let full = ShapeDefinition { replica: Replica::Full, ..base.clone() };
    let new = insert(0, &wire(&base), &["1", "a\"/é", "t"]);
    assert_eq!(
        encode(&base, &new, Op::Insert),
        format!(
            r#"0: {{"key":"\"public\".\"items\"/\"1\"","value":{{"a":"a\"/é","b":"true","id":"1"}},"headers":{{"operation":"insert",{HEADERS}:0}}}}"#
        ) + "\n"
    );
    let old = Change::Delete { op: 2, relation: wire(&base), old: tuple(&["1", "~", "f"]) };
    assert_eq!(
        encode(&base, &old, Op::Delete),
        format!(
            r#"2: {{"key":"\"public\".\"items\"/\"1\"","value":{{"id":"1"}},"headers":{{"operation":"delete",{HEADERS}:2}}}}"#
        ) + "\n"
    );
    assert_eq!(
        encode(&full, &old, Op::Delete),
        format!(
            r#"2: {{"key":"\"public\".\"items\"/\"1\"","value":{{"a":null,"b":"false","id":"1"}},"headers":{{"operation":"delete",{HEADERS}:2}}}}"#
        ) + "\n"
    );
}

#[test]
fn updates_carry_what_the_replica_mode_says() {
    let base = definition();
    let full = ShapeDefinition { replica: Replica::Full, ..base.clone() };
    let change = update(&base, Some(&["1", "old", "f"]), &["1", "?", "t"]);
    assert_eq!(
        encode(&base, &change, Op::Update),
        format!(
            r#"4: {{"key":"\"public\".\"items\"/\"1\"","value":{{"b":"true","id":"1"}},"headers":{{"operation":"update",{HEADERS}:4}}}}"#
        ) + "\n"
    );
    assert_eq!(
        encode(&full, &change, Op::Update),
        format!(
            r#"4: {{"key":"\"public\".\"items\"/\"1\"","value":{{"a":"old","b":"true","id":"1"}},"old_value":{{"b":"false"}},"headers":{{"operation":"update",{HEADERS}:4}}}}"#
        ) + "\n"
    );
    assert_eq!(encode(&base, &update(&base, Some(&["1", "x", "f"]), &["1", "?", "f"]), Op::Update), "");
    let narrow = ShapeDefinition { columns: vec!["b".to_owned(), "id".to_owned()], ..base.clone() };
    assert_eq!(encode(&narrow, &update(&base, Some(&["1", "x", "f"]), &["1", "y", "f"]), Op::Update), "");
}

#[test]
fn an_update_enters_and_leaves() {
    let base = definition();
    let change = update(&base, Some(&["1", "old", "f"]), &["2", "?", "t"]);
    assert_eq!(
        encode(&base, &change, Op::Insert),
        format!(
            r#"4: {{"key":"\"public\".\"items\"/\"2\"","value":{{"a":"old","b":"true","id":"2"}},"headers":{{"operation":"insert",{HEADERS}:4}}}}"#
        ) + "\n"
    );
    assert_eq!(
        encode(&base, &change, Op::Delete),
        format!(
            r#"4: {{"key":"\"public\".\"items\"/\"1\"","value":{{"id":"1"}},"headers":{{"operation":"delete",{HEADERS}:4}}}}"#
        ) + "\n"
    );
}

#[test]
fn a_key_change_is_a_delete_and_an_insert() {
    let base = definition();
    let change = update(&base, Some(&["1", "old", "f"]), &["2", "?", "f"]);
    assert_eq!(
        encode(&base, &change, Op::Update),
        format!(
            concat!(
                r#"4: {{"key":"\"public\".\"items\"/\"1\"","value":{{"id":"1"}},"headers":{{"operation":"delete",{H}:4,"key_change_to":"\"public\".\"items\"/\"2\""}}}}"#,
                "\n",
                r#"5: {{"key":"\"public\".\"items\"/\"2\"","value":{{"a":"old","b":"false","id":"2"}},"headers":{{"operation":"insert",{H}:5,"key_change_from":"\"public\".\"items\"/\"1\""}}}}"#,
                "\n"
            ),
            H = HEADERS
        )
    );
}

#[test]
fn without_primary_key_all_columns_are_the_key() {
    let name = RelationName { schema: "p".to_owned(), table: "t".to_owned() };
    let base = ShapeDefinition { columns: vec!["y".to_owned()], ..table(name, &[("x", 25), ("y", 25)], &[]) };
    assert_eq!(snapshot_columns(&base), ["y", "x"]);
    let change = update(&base, Some(&["~", "1"]), &["2", "1"]);
    let headers = r#""relation":["p","t"],"txids":[12],"lsn":"456","op_position""#;
    assert_eq!(
        encode(&base, &change, Op::Update),
        format!(
            concat!(
                r#"4: {{"key":"\"p\".\"t\"/_/\"1\"","value":{{"y":"1"}},"headers":{{"operation":"delete",{H}:4,"key_change_to":"\"p\".\"t\"/\"2\"/\"1\""}}}}"#,
                "\n",
                r#"5: {{"key":"\"p\".\"t\"/\"2\"/\"1\"","value":{{"y":"1"}},"headers":{{"operation":"insert",{H}:5,"key_change_from":"\"p\".\"t\"/_/\"1\""}}}}"#,
                "\n"
            ),
            H = headers
        )
    );
}

#[test]
fn keys_are_the_same_in_snapshot_and_log() {
    let name = RelationName { schema: "public".to_owned(), table: "od.d/t\"q".to_owned() };
    let base = table(name, &[("b", 16), ("s", 25)], &["s", "b"]);
    let message = encode(&base, &insert(0, &wire(&base), &["t", "test/test"]), Op::Insert);
    let key =
        r#"{"key":"\"public\".\"od..d//t\"q\"/\"test//test\"/\"true\"","value":{"b":"true","s":"test/test"}"#;
    assert!(message.contains(key), "{message}");
    let mut row = Vec::new();
    let values = [Value::Text(b"t"), Value::Text(b"test/test")];
    Encoder::new(&base).encode_row(&values, &mut row).expect("a row");
    let expected = format!(r#"{key},"headers":{{"operation":"insert","relation":["public","od.d/t\"q"]}}}}"#);
    assert_eq!(String::from_utf8_lossy(&row), expected);
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let base = definition();
    assert_eq!(
        encode(&base, &update(&base, None, &["1", "a", "t"]), Op::Update),
        EncodeError::OldRowMissing.to_string()
    );
    assert_eq!(
        encode(&base, &update(&base, None, &["1", "?", "t"]), Op::Insert),
        EncodeError::OldRowMissing.to_string()
    );
    assert_eq!(
        encode(&base, &Change::Truncate { op: 0, relations: vec![] }, Op::Delete),
        EncodeError::Truncate.to_string()
    );
    let mut other = (*wire(&base)).clone();
    other.columns.pop();
    let message = encode(&base, &insert(0, &Arc::new(other), &["1", "a"]), Op::Insert);
    assert_eq!(message, EncodeError::ColumnMissing { column: 1 }.to_string());
    let invalid = Change::Insert {
        op: 0,
        relation: wire(&base),
        new: Tuple::from_values(&[Value::Text(b"\xff"), Value::Null, Value::Null]),
    };
    assert_eq!(encode(&base, &invalid, Op::Insert), EncodeError::InvalidUtf8.to_string());
    let short = Encoder::new(&base).encode_row(&[Value::Null], &mut Vec::new());
    assert_eq!(short, Err(EncodeError::RowWidth { found: 1, expected: 3 }));
}

#[test]
fn a_class_is_what_decides_the_bytes() {
    let base = definition();
    let class = |definition: &ShapeDefinition| Encoder::new(definition).class();
    let filtered = ShapeDefinition { where_sql: Some("id = 1".to_owned()), ..base.clone() };
    assert_eq!(class(&base), class(&filtered));
    let full = ShapeDefinition { replica: Replica::Full, ..base.clone() };
    let narrow = ShapeDefinition { columns: vec!["id".to_owned()], ..base.clone() };
    assert!(class(&base) != class(&full) && class(&base) != class(&narrow));
}

/// Whoever asks first, and however often: what one of a class is given is what each would make.
#[test]
fn shapes_of_a_class_share_what_each_would_make() {
    let base = definition();
    let relation = wire(&base);
    let changes = [
        insert(0, &relation, &["1", "a", "t"]),
        update(&base, Some(&["1", "a", "t"]), &["2", "b", "t"]),
        Change::Delete { op: 6, relation, old: tuple(&["2", "b", "t"]) },
    ];
    let mut shared = SharedEncoder::new(&base);
    for (lsn, xid) in [(456, 12), (900, 13)] {
        let headers = TransactionHeaders::new(Lsn(lsn), Xid(xid));
        shared.begin(Lsn(lsn), Xid(xid));
        for _shape in 0..3 {
            for (change, op) in changes.iter().zip([Op::Insert, Op::Update, Op::Delete]) {
                let mut own = Encoded::default();
                Encoder::new(&base).encode(change, op, &headers, &mut own).expect("encodes");
                let given = shared.encode(change, op).expect("encodes");
                assert!(own.messages().eq(given.iter()), "{op:?} at {lsn}");
            }
            // The same change means something else to a shape that it enters.
            let mut own = Encoded::default();
            Encoder::new(&base).encode(&changes[1], Op::Insert, &headers, &mut own).expect("encodes");
            assert!(own.messages().eq(shared.encode(&changes[1], Op::Insert).expect("encodes").iter()));
        }
    }
    let invalid = insert(8, &wire(&base), &["1", "a", "t"]);
    let mut other = (*wire(&base)).clone();
    other.columns.pop();
    let short = insert(10, &Arc::new(other), &["1", "a"]);
    assert!(shared.encode(&invalid, Op::Insert).is_ok());
    for _shape in 0..2 {
        assert_eq!(shared.encode(&short, Op::Insert).err(), Some(EncodeError::ColumnMissing { column: 1 }));
    }
}
