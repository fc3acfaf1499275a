//! The whole stack but Postgres, the clock, HTTP and threads, driven by one sequence of choices.
//!
//! Real are the core (`runtime::core`), the engine under it, the writer pools, the router and its
//! filters, the assembler of the stream, the shape logs, the codec of the events, the fold of the
//! journal at a start, and the views that clients read from. The loop around the core is the driver's,
//! taken apart into its turns. Models are Postgres, the disks (`SimDisk`, `MemoryJournal`), the
//! snapshot tasks and the clients.
//!
//! A process can die at every point between two things that it does, and inside every call of the disk;
//! alone (its memory and what sled had not written are lost) or with the machine (and so is what was
//! not synced, in part).

mod acting;
mod checks;
mod clients;
mod compaction;
mod disk;
mod driver;
mod histories;
mod journal_thread;
mod mutations;
mod performing;
mod postgres;
mod tasks;
mod world;
