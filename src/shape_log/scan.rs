//! Reading all that a shape has, in order: for who folds it, not for clients.

use crate::domain::Lsn;

use super::error::{FileKind, ShapeLogError, StorageFault};
use super::frame::{Found, FrameHeader, FrameReader, HEADER_LEN};
use super::reader::Body;
use super::view::ShapeView;

/// Some of the messages of one commit.
#[derive(Clone, Copy, Debug)]
pub struct LogPiece<'f> {
    /// The LSN that they stand at.
    pub tx: Lsn,
    /// Whether they are the last of their commit.
    pub commit: bool,
    /// Each followed by a comma.
    pub messages: &'f [u8],
    /// See [`super::Unit::note`].
    pub note: &'f [u8],
}

impl<'f> LogPiece<'f> {
    fn of(header: &FrameHeader, frame: &'f [u8]) -> LogPiece<'f> {
        LogPiece {
            tx: header.tx,
            commit: header.commit,
            messages: &frame[HEADER_LEN..HEADER_LEN + header.payload_len as usize],
            note: header.note(frame),
        }
    }
}

impl ShapeView {
    /// Hands the messages of the snapshot to `visit`, in pieces of whole messages; those of its complete
    /// chunks only.
    ///
    /// # Errors
    /// A [`StorageFault`].
    pub fn scan_snapshot(&self, visit: &mut dyn FnMut(&[u8])) -> Result<(), ShapeLogError> {
        let mut chunk = 0;
        while let Some(blocks) = self.snapshot.chunk(chunk) {
            for piece in Body::snapshot(&self.snapshot, blocks)? {
                visit(&piece?);
            }
            chunk += 1;
        }
        self.snapshot.file.release();
        Ok(())
    }

    /// Reads everything that it has, and finds it as it was written.
    ///
    /// # Errors
    /// A [`StorageFault`].
    pub fn verify(&self) -> Result<(), ShapeLogError> {
        self.scan_snapshot(&mut |_| {})?;
        self.scan_log(&mut |_| {})
    }

    /// Hands the messages of the log to `visit`, frame by frame.
    ///
    /// # Errors
    /// A [`StorageFault`].
    pub fn scan_log(&self, visit: &mut dyn FnMut(&LogPiece<'_>)) -> Result<(), ShapeLogError> {
        if self.log.file_end > 0 {
            let mut frames = FrameReader::new(self.log.file.open()?, 0, self.log.file_end);
            loop {
                let at = frames.at;
                match frames.next()? {
                    Found::Frame(header, frame) => {
                        visit(&LogPiece::of(&header, frame));
                    }
                    Found::End => break,
                    Found::Bad => return Err(StorageFault::corrupt(FileKind::Log, at).into()),
                }
            }
            self.log.file.release();
        }
        let tail: Vec<_> = self.log.tail.iter().collect();
        for frame in tail.into_iter().rev() {
            visit(&LogPiece::of(&frame.header, &frame.bytes));
        }
        Ok(())
    }
}
