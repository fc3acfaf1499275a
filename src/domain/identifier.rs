//! Identifiers in request parameters: contract, sections 1.7 and 3.6.

use crate::domain::RelationName;

/// Longest identifier, in characters. (Postgres counts bytes; the contract counts characters.)
pub const IDENTIFIER_LEN_MAX: usize = 63;

/// Why an identifier was refused; the texts are those of the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    #[error("Invalid unquoted identifier contains special characters: {0}")]
    SpecialCharacters(String),
    #[error("Invalid identifier with unescaped quote: {0}")]
    UnescapedQuote(String),
    #[error("Invalid zero-length delimited identifier")]
    Empty,
    #[error("Identifier is too long (max length is 63)")]
    TooLong,
    #[error("Invalid relation identifier, too many delimiters: {0}")]
    TooManyDelimiters(String),
}

/// Parses `table` or `schema.table`; the schema defaults to `public`.
///
/// # Errors
/// The first rule of contract 1.7 that the text breaks.
pub fn parse_relation_name(text: &str) -> Result<RelationName, IdentifierError> {
    let parts = split_outside_quotes(text, '.');
    match parts.as_slice() {
        [table] => Ok(RelationName { schema: "public".to_owned(), table: parse_identifier(table)? }),
        [schema, table] => {
            Ok(RelationName { schema: parse_identifier(schema)?, table: parse_identifier(table)? })
        }
        _ => Err(IdentifierError::TooManyDelimiters(text.to_owned())),
    }
}

/// Parses a comma list of identifiers. Spaces around commas are part of the identifiers.
///
/// # Errors
/// The first rule of contract 1.7 that an entry breaks.
pub fn parse_column_list(text: &str) -> Result<Vec<String>, IdentifierError> {
    split_outside_quotes(text, ',').into_iter().map(parse_identifier).collect()
}

/// Parses one identifier: unquoted ones fold ASCII capitals, quoted ones are literal.
///
/// # Errors
/// The rule of contract 1.7 that the text breaks.
pub fn parse_identifier(text: &str) -> Result<String, IdentifierError> {
    let name = match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => unquote(inner)?,
        None => fold(text)?,
    };
    if name.chars().count() > IDENTIFIER_LEN_MAX {
        return Err(IdentifierError::TooLong);
    }
    Ok(name)
}

fn unquote(inner: &str) -> Result<String, IdentifierError> {
    if inner.is_empty() {
        return Err(IdentifierError::Empty);
    }
    let unescaped = inner.replace("\"\"", "");
    if unescaped.contains('"') {
        return Err(IdentifierError::UnescapedQuote(inner.to_owned()));
    }
    Ok(inner.replace("\"\"", "\""))
}

fn fold(text: &str) -> Result<String, IdentifierError> {
    let starts = text.chars().next().is_some_and(|c| c == '_' || c.is_alphabetic());
    let plain = text.chars().all(|c| matches!(c, '_' | '$') || c.is_alphanumeric() || is_mark(c));
    if starts && plain {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(IdentifierError::SpecialCharacters(text.to_owned()))
    }
}

/// Combining marks, which `char::is_alphanumeric` leaves out: the blocks that Unicode reserves for
/// them.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{0300}'..='\u{036F}' | '\u{1AB0}'..='\u{1AFF}' | '\u{1DC0}'..='\u{1DFF}' | '\u{20D0}'..='\u{20FF}' | '\u{FE20}'..='\u{FE2F}')
}

fn split_outside_quotes(text: &str, delimiter: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (index, c) in text.char_indices() {
        if c == '"' {
            quoted = !quoted;
        } else if c == delimiter && !quoted {
            parts.push(&text[start..index]);
            start = index + c.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(text: &str) -> String {
        match parse_relation_name(text) {
            Ok(name) => format!("{}|{}", name.schema, name.table),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_relation_names_as_the_contract_says() {
        for (text, expected) in [
            ("items", "public|items"),
            ("Items", "public|items"),
            ("\"Items\"", "public|Items"),
            ("s.t", "s|t"),
            ("\"a.b\".\"c\"\"d\"", "a.b|c\"d"),
            ("é$1", "public|é$1"),
            ("a b", "Invalid unquoted identifier contains special characters: a b"),
            ("", "Invalid unquoted identifier contains special characters: "),
            ("1a", "Invalid unquoted identifier contains special characters: 1a"),
            ("\"\"", "Invalid zero-length delimited identifier"),
            ("\"a\"b\"", "Invalid identifier with unescaped quote: a\"b"),
            ("a.b.c", "Invalid relation identifier, too many delimiters: a.b.c"),
        ] {
            assert_eq!(relation(text), expected, "{text}");
        }
        assert_eq!(relation(&"x".repeat(64)), "Identifier is too long (max length is 63)");
        assert_eq!(relation(&"é".repeat(63)), format!("public|{}", "é".repeat(63)));
    }

    #[test]
    fn splits_column_lists_outside_quotes() {
        assert_eq!(
            parse_column_list("id,\"a,b\",C"),
            Ok(vec!["id".to_owned(), "a,b".to_owned(), "c".to_owned()])
        );
        assert_eq!(parse_column_list("id, a"), Err(IdentifierError::SpecialCharacters(" a".to_owned())));
    }
}
