//! How fast the journal takes events and gives them back, beside raw sled and a plain file, in one run:
//! `cargo run --release --example journal_rates -- DIRECTORY EVENTS GROUP`. Prints one line of JSON for each.
//!
//! Every contestant is handed the same records in groups of the same size, and has to make each group durable
//! before the next. They do not promise the same: sled's own flush leaves the disk's cache alone, and the plain
//! file finds no event without reading all before it.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use shapefold::domain::{Epoch, EventId, Generation, Lsn, Seq, Sid, Timestamp, Xid};
use shapefold::events::{AckCause, Event, FlushEvent, Recorded, StreamEvent, encode};
use shapefold::journal::{Entry, Journal, SledJournal};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const FAN_OUT: u32 = 10;
const SHAPES: u32 = 1_000;
/// As `SledJournal` opens it, or the comparison would be of settings.
const SLED_SEGMENT_BYTES: usize = 512 * 1024;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "journal_rates DIRECTORY EVENTS GROUP";
    let directory: std::path::PathBuf = arguments.next().ok_or(usage)?.into();
    let events: u64 = arguments.next().ok_or(usage)?.parse()?;
    let group: usize = arguments.next().ok_or(usage)?.parse()?;
    fs::create_dir_all(&directory)?;
    let entries: Vec<Entry> = (1..=events).map(entry).collect();
    let groups: Vec<&[Entry]> = entries.chunks(group.max(1)).collect();
    type Contestant = fn(&Path, &[&[Entry]]) -> Outcome<(Duration, Duration, u64)>;
    let contestants: [(&str, Contestant); 3] =
        [("journal", journal), ("raw sled", raw_sled), ("plain file, fdatasync", plain_file)];
    let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
    for (name, contestant) in contestants {
        let place = directory.join(name.split(',').next().unwrap_or(name).replace(' ', "-"));
        let (append, replay, read) = contestant(&place, &groups)?;
        assert_eq!(read, events, "{name} gave back what it was handed");
        let rate = |time: Duration| events as f64 / time.as_secs_f64();
        println!(
            r#"{{"store":"{name}","events":{events},"bytes":{bytes},"group":{group},"append_events_per_s":{:.0},"replay_events_per_s":{:.0}}}"#,
            rate(append),
            rate(replay)
        );
    }
    Ok(())
}

/// Two transactions of ten shapes, a flush, an acknowledgement, and so on.
fn entry(id: u64) -> Entry {
    let seq = Seq(id);
    let event: Event = match id % 4 {
        1 | 2 => StreamEvent::TxnRouted {
            seq,
            generation: Generation(1),
            lsn: Lsn(1_000 * id),
            xid: Xid((id % 4_000_000_000) as u32),
            committed_at: Timestamp(id as i64),
            changes: 3,
            bytes: 600,
            set: (0..FAN_OUT)
                .map(|n| Sid(1 + (id as u32).wrapping_mul(7).wrapping_add(n * 97) % SHAPES))
                .collect(),
        }
        .into(),
        3 => FlushEvent::Watermark { upto: seq, except: Vec::new() }.into(),
        _ => StreamEvent::AckSent { lsn: Lsn(1_000 * id), cause: AckCause::Commit }.into(),
    };
    let (id, at) = (EventId(id), Timestamp(id as i64 * 500));
    let recorded = Recorded { id, at, epoch: Epoch(1), because: None, event };
    Entry { id, bytes: encode(&recorded) }
}

fn journal(place: &Path, groups: &[&[Entry]]) -> Outcome<(Duration, Duration, u64)> {
    let (mut journal, _) = SledJournal::open(place, EventId(0))?;
    let begun = Instant::now();
    for group in groups {
        journal.append(group)?;
        journal.sync()?;
    }
    let append = begun.elapsed();
    drop(journal);
    let begun = Instant::now();
    let (journal, _) = SledJournal::open(place, EventId(0))?;
    let mut read = 0;
    for entry in journal.read(EventId(1)) {
        entry?;
        read += 1;
    }
    Ok((append, begun.elapsed(), read))
}

fn raw_sled(place: &Path, groups: &[&[Entry]]) -> Outcome<(Duration, Duration, u64)> {
    let open = || sled::Config::default().path(place).segment_size(SLED_SEGMENT_BYTES).open();
    let store = open()?;
    let begun = Instant::now();
    for group in groups {
        let mut batch = sled::Batch::default();
        for entry in *group {
            batch.insert(&entry.id.0.to_be_bytes(), entry.bytes.as_slice());
        }
        store.apply_batch(batch)?;
        store.flush()?;
    }
    let append = begun.elapsed();
    drop(store);
    let begun = Instant::now();
    let store = open()?;
    let mut read = 0;
    for item in store.iter() {
        item?;
        read += 1;
    }
    Ok((append, begun.elapsed(), read))
}

fn plain_file(place: &Path, groups: &[&[Entry]]) -> Outcome<(Duration, Duration, u64)> {
    let mut file = File::create(place)?;
    let begun = Instant::now();
    for group in groups {
        let mut bytes = Vec::new();
        for entry in *group {
            bytes.extend((entry.bytes.len() as u32).to_le_bytes());
            bytes.extend(crc32c::crc32c(&entry.bytes).to_le_bytes());
            bytes.extend_from_slice(&entry.bytes);
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    let append = begun.elapsed();
    let begun = Instant::now();
    let mut reader = BufReader::new(File::open(place)?);
    let (mut read, mut head, mut record) = (0, [0; 8], Vec::new());
    while reader.read_exact(&mut head).is_ok() {
        let [a, b, c, d, e, f, g, h] = head;
        record.resize(u32::from_le_bytes([a, b, c, d]) as usize, 0);
        reader.read_exact(&mut record)?;
        assert_eq!(crc32c::crc32c(&record), u32::from_le_bytes([e, f, g, h]), "the file is sound");
        read += 1;
    }
    Ok((append, begun.elapsed(), read))
}
