//! The server as its clients see it: requests in, answers out, over the real shape log.

mod connections;
mod gates;
mod reading;
mod waiting;
