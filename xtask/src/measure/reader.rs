//! A client that reads a shape as fast as it can: it looks for a text in the bodies and counts, and parses nothing.

use std::net::SocketAddr;

use crate::Outcome;
use crate::http::{HttpClient, encode};

/// Text that the message of every inserted row contains once, and nothing else does.
const INSERT_MARK: &[u8] = b"\"operation\":\"insert\"";

/// Reads a shape from its beginning.
#[derive(Debug)]
pub struct Reader {
    http: HttpClient,
    query: String,
    handle: String,
    offset: String,
    cursor: String,
    /// Rows and bytes of all bodies so far.
    pub rows: u64,
    pub bytes: u64,
}

impl Reader {
    #[must_use]
    pub fn new(address: SocketAddr, query: &str) -> Reader {
        Reader {
            http: HttpClient::new(address),
            query: query.to_owned(),
            handle: String::new(),
            offset: "-1".to_owned(),
            cursor: String::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Reads up to the end of the log.
    ///
    /// # Errors
    /// Any answer but 200, or none.
    pub async fn read_to_tail(&mut self) -> Outcome<()> {
        while !self.read_once().await? {}
        Ok(())
    }

    /// One request and its answer; whether that reached the end of the log.
    ///
    /// # Errors
    /// Any answer but 200, or none.
    pub async fn read_once(&mut self) -> Outcome<bool> {
        let (mut marks, mut bytes) = (Marks::of(INSERT_MARK), 0);
        let at_end = self
            .read_parts(false, |part| {
                marks.look_at(part);
                bytes += part.len() as u64;
            })
            .await?;
        self.rows += marks.found;
        self.bytes += bytes;
        Ok(at_end)
    }

    /// Follows the shape until an answer contains that text.
    ///
    /// # Errors
    /// Any answer but 200, or none.
    pub async fn follow_until(&mut self, text: &[u8]) -> Outcome<()> {
        loop {
            let mut marks = Marks::of(text);
            self.read_parts(true, |part| marks.look_at(part)).await?;
            if marks.found > 0 {
                return Ok(());
            }
        }
    }

    /// As [`Reader::read_once`], with the body in pieces for somebody else to look at.
    ///
    /// # Errors
    /// Any answer but 200, or none.
    pub async fn read_body(&mut self, visit: impl FnMut(&[u8])) -> Outcome<bool> {
        self.read_parts(false, visit).await
    }

    /// One request, its body in pieces; whether the answer reached the end of the log.
    async fn read_parts(&mut self, live: bool, visit: impl FnMut(&[u8])) -> Outcome<bool> {
        let mut path = format!("/v1/shape?{}&offset={}", self.query, self.offset);
        if !self.handle.is_empty() {
            path += &format!("&handle={}", encode(&self.handle));
        }
        if live {
            path += &format!("&live=true&cursor={}", self.cursor);
        }
        let head = self.http.request_streaming("GET", &path, &[], b"", visit).await?;
        if head.status != 200 {
            return Err(format!("status {} for {path}", head.status).into());
        }
        let header = |name: &str| head.header(name).unwrap_or_default().to_owned();
        (self.handle, self.cursor) = (header("electric-handle"), header("electric-cursor"));
        self.offset = head.header("electric-offset").ok_or("an answer without electric-offset")?.to_owned();
        Ok(head.header("electric-up-to-date").is_some())
    }
}

/// Counts a text in a body that comes in pieces; it may lie across two of them.
#[derive(Debug)]
pub struct Marks<'t> {
    text: &'t [u8],
    carried: Vec<u8>,
    pub found: u64,
}

impl<'t> Marks<'t> {
    /// `text` has at least two bytes.
    #[must_use]
    pub fn of(text: &'t [u8]) -> Marks<'t> {
        Marks { text, carried: Vec::with_capacity(2 * text.len()), found: 0 }
    }

    /// The marks of rows that were inserted.
    #[must_use]
    pub fn of_inserts() -> Marks<'static> {
        Marks::of(INSERT_MARK)
    }

    pub fn look_at(&mut self, part: &[u8]) {
        let count = |bytes: &[u8]| memchr::memmem::find_iter(bytes, self.text).count() as u64;
        let border = self.text.len() - 1;
        self.carried.extend_from_slice(&part[..part.len().min(border)]);
        let found = count(&self.carried) + count(part);
        if part.len() < border {
            let excess = self.carried.len().saturating_sub(border);
            self.carried.drain(..excess);
        } else {
            self.carried.clear();
            self.carried.extend_from_slice(&part[part.len() - border..]);
        }
        self.found += found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_across_pieces_counts_once_however_it_is_cut() {
        let body = b"xxMARKyyMARKMARK-MAR";
        for size in 1..=body.len() {
            let mut marks = Marks::of(b"MARK");
            body.chunks(size).for_each(|part| marks.look_at(part));
            assert_eq!(marks.found, 3, "in pieces of {size}");
        }
    }
}
