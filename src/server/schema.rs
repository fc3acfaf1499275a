//! The `electric-schema` header: contract 3.5.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::{Column, ShapeDefinition};

/// What a client is told about a column. Absent facts are left out.
#[derive(Debug, Default, Serialize)]
struct ColumnSchema<'a> {
    #[serde(rename = "type")]
    type_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dims: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_null: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pk_index: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_length: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    type_mod: Option<i32>,
}

/// The header's text: a JSON object of the selected columns, in ASCII.
#[must_use]
pub(super) fn schema_header(definition: &ShapeDefinition) -> String {
    let selected = definition.columns.iter().filter_map(|name| definition.relation.column(name));
    let columns: BTreeMap<&str, ColumnSchema<'_>> =
        selected.map(|column| (column.name.as_str(), describe(column))).collect();
    to_ascii(&serde_json::to_string(&columns).expect("strings and numbers have a JSON form"))
}

fn describe(column: &Column) -> ColumnSchema<'_> {
    let mut schema = ColumnSchema {
        type_name: &column.type_name,
        dims: (column.dimensions > 0).then_some(column.dimensions),
        not_null: (column.not_null || column.pk_position.is_some()).then_some(true),
        pk_index: column.pk_position,
        ..ColumnSchema::default()
    };
    if column.type_modifier >= 0 {
        add_modifier(&mut schema, column.type_modifier);
    }
    schema
}

/// `atttypmod` in the words of the type's declaration. Lengths of varchar, bpchar and numeric carry the
/// 4 bytes of a varlena header: `anychar_typmodin`, `numerictypmodin` in Postgres.
fn add_modifier(schema: &mut ColumnSchema<'_>, modifier: i32) {
    const HEADER: i32 = 4;
    match schema.type_name {
        "varchar" => schema.max_length = Some(modifier - HEADER),
        "bpchar" => schema.length = Some(modifier - HEADER),
        "bit" | "varbit" => schema.length = Some(modifier),
        "time" | "timetz" | "timestamp" | "timestamptz" | "date" => {
            schema.precision = (modifier > 0).then_some(modifier);
        }
        "numeric" => {
            let packed = modifier - HEADER;
            schema.precision = Some((packed >> 16) & 0xFFFF);
            // Eleven bits, signed, since scales may be negative.
            schema.scale = Some(((packed & 0x7FF) ^ 0x400) - 0x400);
        }
        "interval" => {
            schema.fields = interval_fields(modifier >> 16 & 0x7FFF);
            let precision = modifier & 0xFFFF;
            schema.precision = (precision != 0xFFFF).then_some(precision);
        }
        _ => schema.type_mod = Some(modifier),
    }
}

/// The fields of an interval from its range mask; `None` where they are not restricted.
fn interval_fields(mask: i32) -> Option<&'static str> {
    const MONTH: i32 = 1 << 1;
    const YEAR: i32 = 1 << 2;
    const DAY: i32 = 1 << 3;
    const HOUR: i32 = 1 << 10;
    const MINUTE: i32 = 1 << 11;
    const SECOND: i32 = 1 << 12;
    const NAMES: [(i32, &str); 13] = [
        (YEAR, "YEAR"),
        (MONTH, "MONTH"),
        (DAY, "DAY"),
        (HOUR, "HOUR"),
        (MINUTE, "MINUTE"),
        (SECOND, "SECOND"),
        (YEAR | MONTH, "YEAR TO MONTH"),
        (DAY | HOUR, "DAY TO HOUR"),
        (DAY | HOUR | MINUTE, "DAY TO MINUTE"),
        (DAY | HOUR | MINUTE | SECOND, "DAY TO SECOND"),
        (HOUR | MINUTE, "HOUR TO MINUTE"),
        (HOUR | MINUTE | SECOND, "HOUR TO SECOND"),
        (MINUTE | SECOND, "MINUTE TO SECOND"),
    ];
    NAMES.iter().find(|(bits, _)| *bits == mask).map(|(_, name)| *name)
}

/// JSON text with everything outside ASCII escaped: header values are not UTF-8 everywhere.
fn to_ascii(json: &str) -> String {
    if json.is_ascii() {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() * 2);
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{LogMode, Oid, Relation, RelationName, Replica};

    fn column(name: &str, type_name: &str, type_modifier: i32) -> Column {
        Column {
            name: name.to_owned(),
            type_oid: Oid(1),
            type_name: type_name.to_owned(),
            element_oid: Oid(0),
            type_modifier,
            dimensions: 0,
            not_null: false,
            pk_position: None,
            generated: false,
            type_kind: 'b',
            base: None,
        }
    }

    fn check(column: Column, expected: &str) {
        let definition = ShapeDefinition {
            columns: vec![column.name.clone()],
            relation: Arc::new(Relation {
                oid: Oid(1),
                name: RelationName { schema: "public".to_owned(), table: "t".to_owned() },
                columns: vec![column, self::column("unselected", "text", -1)],
                partitioned: false,
                storage: None,
            }),
            where_sql: None,
            columns_named: true,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies: Vec::new(),
            selects: Vec::new(),
        };
        assert_eq!(schema_header(&definition), expected);
    }

    fn check_modifier(type_name: &str, modifier: i32, expected: &str) {
        check(column("c", type_name, modifier), &format!("{{\"c\":{{\"type\":\"{type_name}\"{expected}}}}}"));
    }

    #[test]
    fn key_nulls_and_dimensions() {
        check(column("c", "text", -1), r#"{"c":{"type":"text"}}"#);
        check(
            Column { pk_position: Some(1), ..column("c", "int4", -1) },
            r#"{"c":{"type":"int4","not_null":true,"pk_index":1}}"#,
        );
        check(
            Column { not_null: true, dimensions: 2, ..column("c", "int8", -1) },
            r#"{"c":{"type":"int8","dims":2,"not_null":true}}"#,
        );
    }

    #[test]
    fn type_modifiers_in_the_words_of_the_declaration() {
        check_modifier("varchar", 14, r#","max_length":10"#);
        check_modifier("bpchar", 7, r#","length":3"#);
        check_modifier("bit", 5, r#","length":5"#);
        check_modifier("varbit", 9, r#","length":9"#);
        check_modifier("timestamptz", 3, r#","precision":3"#);
        check_modifier("time", 0, "");
        check_modifier("numeric", (10 << 16 | 2) + 4, r#","precision":10,"scale":2"#);
        check_modifier("numeric", (5 << 16 | 0x7FD) + 4, r#","precision":5,"scale":-3"#);
        check_modifier("interval", (0x7FFF << 16) | 3, r#","precision":3"#);
        check_modifier("interval", (6 << 16) | 0xFFFF, r#","fields":"YEAR TO MONTH""#);
        check_modifier("interval", (8 << 16) | 0xFFFF, r#","fields":"DAY""#);
        check_modifier("interval", (0x1C08 << 16) | 2, r#","precision":2,"fields":"DAY TO SECOND""#);
        check_modifier("geometry", 77, r#","type_mod":77"#);
    }

    #[test]
    fn names_outside_ascii_are_escaped() {
        check(column("größe😀", "text", -1), r#"{"gr\u00f6\u00dfe\ud83d\ude00":{"type":"text"}}"#);
    }
}
