//! Answers about the past, for people on call and for the checkers.
