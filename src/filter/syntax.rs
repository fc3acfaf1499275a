//! From the text of a clause to the tree of Postgres' grammar.

use rupg_sql::nodes::{Node, SelectStmt, SetOperation};
use rupg_sql::{Tokens, parse, token};

use super::error::{PREFIX, WhereError};

/// Longest statement that is parsed, prefix included, in bytes: contract 2.1.
pub(super) const STATEMENT_BYTES_MAX: usize = 65_536;

/// How deep a clause of a client may nest. The tree is walked and dropped by recursion, on threads
/// with stacks of 2 MiB; a stack overflow would end the process.
pub(super) const DEPTH_MAX: usize = 256;

/// The same for canonical SQL: every level of the tree is printed with parentheses of its own.
pub(super) const CANONICAL_DEPTH_MAX: usize = 8 * DEPTH_MAX;

/// Parses a clause and gives its expression.
///
/// # Errors
/// Anything but one expression: a syntax error, a second statement, a clause after the expression.
pub(super) fn parse_expression(text: &str, bytes_max: usize, depth_max: usize) -> Result<Node, WhereError> {
    let statement = format!("{PREFIX}{text}");
    check_statement(&statement, bytes_max, depth_max)?;
    let (statements, _notices) = parse(&statement).map_err(|error| syntax_error(&statement, &error))?;
    let mut statements = statements.into_iter().flatten();
    let (first, second) = (statements.next(), statements.next());
    let (Some(Node::RawStmt(raw)), None) = (first, second) else {
        return Err(WhereError::SecondStatement);
    };
    match raw.stmt {
        Some(Node::SelectStmt(select)) => only_where(*select),
        _ => Err(WhereError::SecondStatement),
    }
}

/// Refuses what the parser should not be given: too long, too deep, or with a zero byte.
pub(super) fn check_statement(statement: &str, bytes_max: usize, depth_max: usize) -> Result<(), WhereError> {
    if statement.len() > bytes_max {
        return Err(WhereError::TooLong { max: bytes_max });
    }
    // The lexer takes a zero byte for the end of the text, as C does.
    if let Some(location) = statement.chars().position(|c| c == '\0') {
        let message = "invalid byte sequence for encoding \"UTF8\": 0x00".to_owned();
        return Err(WhereError::Located { location, message });
    }
    check_depth(statement, depth_max)
}

fn only_where(mut select: SelectStmt) -> Result<Node, WhereError> {
    let expression = select.whereClause.take();
    let bare = select.op == SetOperation::SETOP_NONE
        && select.larg.is_none()
        && select.rarg.is_none()
        && select.distinctClause.is_empty()
        && select.intoClause.is_none()
        && select.fromClause.is_empty()
        && select.groupClause.is_empty()
        && select.havingClause.is_none()
        && select.windowClause.is_empty()
        && select.valuesLists.is_empty()
        && select.sortClause.is_empty()
        && select.limitOffset.is_none()
        && select.limitCount.is_none()
        && select.lockingClause.is_empty()
        && select.withClause.is_none();
    match expression {
        Some(expression) if bare => Ok(expression),
        _ => Err(WhereError::TrailingClauses),
    }
}

pub(super) fn syntax_error(statement: &str, error: &rupg_sql::Error) -> WhereError {
    // `position` counts characters from 1, the contract from 0.
    let location = error.position(statement).map_or(0, |position| position.saturating_sub(1));
    WhereError::Located { location, message: error.message.clone() }
}

/// Refuses a statement whose tree might be deeper than `depth_max`, before it is built.
///
/// The bound is generous: within one pair of brackets every token since the last separator could
/// nest, and brackets add up. AND and OR chains are flat lists in the grammar, as are commas; the
/// AND of a BETWEEN is no separator, since its right side may hold the next BETWEEN.
fn check_depth(statement: &str, depth_max: usize) -> Result<(), WhereError> {
    struct Level {
        tokens: usize,
        betweens: usize,
    }
    let mut outer: Vec<Level> = Vec::new();
    let mut outer_tokens = 0;
    let mut level = Level { tokens: 0, betweens: 0 };
    let mut tokens = Tokens::new(statement);
    loop {
        // An error of the lexer is reported by the parser, in its own order.
        let Ok(next) = tokens.next_token() else { return Ok(()) };
        if next.kind == 0 {
            return Ok(());
        }
        level.tokens += 1;
        let text = &statement[next.start..next.end];
        match next.kind {
            token::AND if level.betweens > 0 => level.betweens -= 1,
            token::AND | token::OR => level.tokens = 0,
            token::BETWEEN => level.betweens += 1,
            _ if text == "," => level.tokens = 0,
            _ if matches!(text, "(" | "[") || next.kind == token::CASE => {
                outer_tokens += level.tokens;
                outer.push(std::mem::replace(&mut level, Level { tokens: 0, betweens: 0 }));
            }
            _ if matches!(text, ")" | "]") || next.kind == token::END_P => {
                if let Some(before) = outer.pop() {
                    outer_tokens -= before.tokens;
                    level = before;
                }
            }
            _ => {}
        }
        if outer_tokens + level.tokens > depth_max {
            let offset = i32::try_from(next.start).unwrap_or(i32::MAX);
            return Err(WhereError::at(offset, "the expression is nested too deeply"));
        }
    }
}
