//! What the tests of the server stand on.

use crate::domain::{Column, Oid, Relation, RelationName};

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
    }
}
