//! Composite values, as far as IS NULL looks into them.

/// A composite value is null where all its fields are, and not null where none of them is.
pub(super) fn cell_is_null(cell: Option<&[u8]>, composite: bool, negated: bool) -> bool {
    match cell {
        None => !negated,
        Some(_) if !composite => negated,
        Some(text) => {
            let inner = text.strip_prefix(b"(").and_then(|text| text.strip_suffix(b")")).unwrap_or(text);
            let (mut quoted, mut empty) = (false, true);
            let (mut nulls, mut values) = (0, 0);
            for byte in inner.iter().chain(b",") {
                match byte {
                    b',' if !quoted => {
                        if empty {
                            nulls += 1;
                        } else {
                            values += 1;
                        }
                        empty = true;
                    }
                    b'"' => {
                        quoted = !quoted;
                        empty = false;
                    }
                    _ => empty = false,
                }
            }
            if negated { nulls == 0 } else { values == 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_composite_is_null_field_by_field() {
        for (cell, is_null, is_not_null) in [
            (None, true, false),
            (Some("(,)"), true, false),
            (Some("(1,)"), false, false),
            (Some("(1,2)"), false, true),
            (Some("(\"\",2)"), false, true),
            (Some("(\"a,,b\",2)"), false, true),
            (Some("(\"a\"\"\",)"), false, false),
        ] {
            let cell = cell.map(str::as_bytes);
            assert_eq!(cell_is_null(cell, true, false), is_null, "{cell:?}");
            assert_eq!(cell_is_null(cell, true, true), is_not_null, "{cell:?}");
        }
        assert!(cell_is_null(Some(b"(,)"), false, true));
    }
}
