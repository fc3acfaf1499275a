//! The forensics of a real service on a real Postgres: what is asked of its journal while it works, of a copy
//! that was taken meanwhile; and that nothing it leaves behind says what is in the tables.

mod commands;
mod copied;
mod redaction;
