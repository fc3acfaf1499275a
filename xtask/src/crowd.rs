//! Thousands of live clients of one shape on one thread: a load generator that costs less than what it
//! measures.
//!
//! One loop over epoll, one read and one write for an answer, no allocation. A client sends its next
//! request in the same turn in which it was answered, as the official one does.

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::event::{Timespec, epoll};

use crate::Outcome;
use crate::http::encode;

/// One read; an answer of one row is far below.
const READ_BYTES: usize = 64 << 10;
/// Connections whose turn has come that are taken at once.
const TURNS_MAX: usize = 256;
/// How often the loop looks whether it is to stop.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long a connection may take to be opened.
const OPEN_DURATION_MAX: Duration = Duration::from_secs(30);

/// How clients follow a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    LongPoll,
    Events,
}

/// Whom the crowd asks for what.
#[derive(Clone, Debug)]
pub struct Asked {
    pub address: SocketAddr,
    pub handle: String,
    /// Where the log ends as the clients come.
    pub offset: String,
    pub way: Way,
    pub clients: usize,
}

/// What the crowd's thread tells while it runs.
#[derive(Debug, Default)]
pub struct Told {
    pub connected: AtomicUsize,
    /// Numbers of writes seen, over all clients.
    pub received: AtomicUsize,
    pub stop: AtomicBool,
}

/// A write that has reached a client.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    pub write: u32,
    pub at: Instant,
}

/// Opens all connections and serves them until told to stop. Blocks.
///
/// # Errors
/// A connection cannot be opened, breaks, or is answered with anything but rows.
pub fn follow(asked: &Asked, told: &Arc<Told>) -> Outcome<Vec<Receipt>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::with_capacity(asked.clients);
    let mut crowd = Crowd { asked, told, receipts: Vec::new(), request: Vec::new() };
    for number in 0..asked.clients {
        let stream = TcpStream::connect_timeout(&asked.address, OPEN_DURATION_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
        let mut client = Client { stream, begun: Vec::new() };
        crowd.ask(&mut client, &asked.offset, None)?;
        clients.push(client);
        told.connected.fetch_add(1, Ordering::Relaxed);
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut turns = [const { MaybeUninit::uninit() }; TURNS_MAX];
    while !told.stop.load(Ordering::Relaxed) {
        let ready = match epoll::wait(&epoll, &mut turns, Some(&LOOK_INTERVAL)) {
            Ok((ready, _rest)) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            let number = usize::try_from(event.data.u64())?;
            crowd.turn(&mut clients[number], &mut buffer)?;
        }
    }
    Ok(crowd.receipts)
}

struct Client {
    stream: TcpStream,
    /// The beginning of an answer that is not there as a whole.
    begun: Vec<u8>,
}

struct Crowd<'a> {
    asked: &'a Asked,
    told: &'a Told,
    receipts: Vec<Receipt>,
    /// The request that is written, in a buffer that stays.
    request: Vec<u8>,
}

impl Crowd<'_> {
    fn turn(&mut self, client: &mut Client, buffer: &mut [u8]) -> Outcome<()> {
        let len = match client.stream.read(buffer) {
            Ok(0) => return Err("the service closed a connection".into()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let at = Instant::now();
        if client.begun.is_empty() {
            let rest = self.accept(client, &buffer[..len], at)?;
            client.begun.extend_from_slice(&buffer[len - rest..len]);
        } else {
            let mut all = std::mem::take(&mut client.begun);
            all.extend_from_slice(&buffer[..len]);
            let rest = self.accept(client, &all, at)?;
            client.begun.extend_from_slice(&all[all.len() - rest..]);
        }
        Ok(())
    }

    /// Takes in what came, and tells how much of its end has to come again with what follows.
    fn accept(&mut self, client: &mut Client, read: &[u8], at: Instant) -> Outcome<usize> {
        match self.asked.way {
            Way::LongPoll => self.accept_answer(client, read, at),
            Way::Events => self.accept_events(read, at),
        }
    }

    fn accept_answer(&mut self, client: &mut Client, read: &[u8], at: Instant) -> Outcome<usize> {
        let Some(end) = memmem::find(read, b"\r\n\r\n") else { return Ok(read.len()) };
        let (head, body) = (&read[..end + 2], &read[end + 4..]);
        let header = |name| value_of(head, name, b'\r');
        let shown = || String::from_utf8_lossy(read).into_owned();
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return Err(shown().into());
        }
        let length = header(b"\ncontent-length: ").ok_or_else(shown)?.parse::<usize>()?;
        if body.len() < length {
            return Ok(read.len());
        }
        let offset = header(b"\nelectric-offset: ").ok_or_else(shown)?;
        self.ask(client, offset, header(b"\nelectric-cursor: "))?;
        self.note(body, at);
        Ok(0)
    }

    fn accept_events(&mut self, read: &[u8], at: Instant) -> Outcome<usize> {
        // Whole chunks; those of other streams would have to be counted.
        if !read.ends_with(b"\r\n") {
            return Ok(read.len());
        }
        if read.starts_with(b"HTTP/1.1 ") && !read.starts_with(b"HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(read).into_owned().into());
        }
        self.note(read, at);
        if read.ends_with(b"\r\n0\r\n\r\n") || read == b"0\r\n\r\n" {
            // After a minute. To go on from there is not what is measured.
            return Err("the streams ended before the measurement did: fewer writes, please".into());
        }
        Ok(0)
    }

    /// The writes in a body.
    fn note(&mut self, body: &[u8], at: Instant) {
        const COLUMN: &[u8] = b"\"write\":\"";
        let mut rest = body;
        while let Some(found) = memmem::find(rest, COLUMN) {
            rest = &rest[found + COLUMN.len()..];
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
            let write = digits
                .fold(0, |number: u32, digit| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')));
            self.receipts.push(Receipt { write, at });
            self.told.received.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn ask(&mut self, client: &mut Client, offset: &str, cursor: Option<&str>) -> io::Result<()> {
        let Asked { address, handle, way, .. } = self.asked;
        self.request.clear();
        let handle = encode(handle);
        write!(self.request, "GET /v1/shape?table=bench&handle={handle}&offset={offset}&live=true")?;
        if *way == Way::Events {
            self.request.extend_from_slice(b"&live_sse=true");
        }
        if let Some(cursor) = cursor {
            write!(self.request, "&cursor={cursor}")?;
        }
        write!(self.request, " HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\n\r\n")?;
        // Some hundred bytes, and nothing else is on the way.
        client.stream.write_all(&self.request)
    }
}

/// What follows `name` in a head, up to `end`.
fn value_of<'a>(head: &'a [u8], name: &[u8], end: u8) -> Option<&'a str> {
    let rest = &head[memmem::find(head, name)? + name.len()..];
    std::str::from_utf8(&rest[..memchr::memchr(end, rest)?]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_two_parts_is_taken_in_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let asked = Asked {
            address,
            handle: "1-2".to_owned(),
            offset: "0_0".to_owned(),
            way: Way::LongPoll,
            clients: 1,
        };
        let told = Told::default();
        let mut crowd = Crowd { asked: &asked, told: &told, receipts: Vec::new(), request: Vec::new() };
        let mut client = Client { stream, begun: Vec::new() };
        let body = r#"[{"value":{"write":"17"}},{"value":{"write":"18"}}]"#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nelectric-offset: 5_1\r\nelectric-cursor: 9\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut buffer = vec![0; READ_BYTES];
        for part in [&answer[..40], &answer[40..]] {
            assert_eq!(told.received.load(Ordering::Relaxed), 0);
            server.write_all(part.as_bytes()).unwrap();
            crowd.turn(&mut client, &mut buffer).unwrap();
        }
        let writes: Vec<u32> = crowd.receipts.iter().map(|receipt| receipt.write).collect();
        assert_eq!(writes, [17, 18]);
        let len = server.read(&mut buffer).unwrap();
        let request = String::from_utf8_lossy(&buffer[..len]);
        assert!(request.starts_with("GET /v1/shape?table=bench&handle=1-2&offset=5_1&live=true&cursor=9 "));
        server.write_all(b"HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n").unwrap();
        assert!(crowd.turn(&mut client, &mut buffer).is_err());
    }
}
