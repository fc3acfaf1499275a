//! Tests of the shape log as a whole.
