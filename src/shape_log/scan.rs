//! Reading all that a shape has, in order: for who folds it, not for clients.

use crate::domain::Lsn;

use super::error::{FileKind, ShapeLogError, StorageFault};
use super::frame::{Found, FrameReader, HEADER_LEN};
use super::reader::Body;
use super::view::ShapeView;

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
        self.scan_log(&mut |_, _| {})
    }

    /// Hands the messages of the log to `visit`, with the LSN that they stand at.
    ///
    /// # Errors
    /// A [`StorageFault`].
    pub fn scan_log(&self, visit: &mut dyn FnMut(Lsn, &[u8])) -> Result<(), ShapeLogError> {
        if self.log.file_end > 0 {
            let mut frames = FrameReader::new(self.log.file.open()?, 0, self.log.file_end);
            loop {
                let at = frames.at;
                match frames.next()? {
                    Found::Frame(header, frame) => {
                        visit(header.tx, &frame[HEADER_LEN..HEADER_LEN + header.payload_len as usize]);
                    }
                    Found::End => break,
                    Found::Bad => return Err(StorageFault::corrupt(FileKind::Log, at).into()),
                }
            }
            self.log.file.release();
        }
        let tail: Vec<_> = self.log.tail.iter().collect();
        for frame in tail.into_iter().rev() {
            visit(frame.header.tx, &frame.bytes[HEADER_LEN..HEADER_LEN + frame.header.payload_len as usize]);
        }
        Ok(())
    }
}
