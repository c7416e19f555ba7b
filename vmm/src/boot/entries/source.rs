//! A disk's bytes, and windows on parts of them in the forms in which the readers of file systems
//! want them.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

/// What is read at once, and kept: readers of file systems ask for a block at a time.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept: a file's next part and the table that says where it lies are read in turns.
const PIECES: usize = 8;

/// Bytes that can be read at any place.
pub trait ReadAt {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `to` from `at`; the caller stays within [`ReadAt::size`].
    fn read_at(&mut self, to: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, to: &mut [u8], at: u64) -> io::Result<()> {
        let mut from = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..))
            .unwrap_or_default();
        from.read_exact(to)
    }
}

struct Cached {
    bytes: Box<dyn ReadAt>,
    /// Pieces and where they begin, the one that was wanted last at the end.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Cached {
    /// Bytes from `at`, not many at once.
    fn some(&mut self, to: &mut [u8], at: u64) -> io::Result<usize> {
        let start = at / PIECE * PIECE;
        let held = self.pieces.iter().position(|(of, _)| *of == start);
        let piece = match held {
            Some(index) => self.pieces.remove(index),
            None => self.piece(start)?,
        };
        let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
        let mut from = piece.1.get(skip..).unwrap_or_default();
        let read = from.read(to);
        self.pieces.push(piece);
        read
    }

    /// Reads the piece from `start`, in the place of the one that was wanted longest ago.
    fn piece(&mut self, start: u64) -> io::Result<(u64, Vec<u8>)> {
        let mut piece = match self.pieces.len() {
            PIECES => self.pieces.remove(0).1,
            _ => Vec::new(),
        };
        let left = self.bytes.size().saturating_sub(start);
        piece.resize(left.min(PIECE) as usize, 0);
        self.bytes.read_at(&mut piece, start)?;
        Ok((start, piece))
    }
}

/// A part of a disk.
#[derive(Clone)]
pub(super) struct Window {
    disk: Rc<RefCell<Cached>>,
    start: u64,
    len: u64,
    at: u64,
}

impl Window {
    /// All of a disk.
    pub(super) fn whole(bytes: Box<dyn ReadAt>) -> Self {
        let len = bytes.size();
        let disk = Cached {
            bytes,
            pieces: Vec::new(),
        };
        Self {
            disk: Rc::new(RefCell::new(disk)),
            start: 0,
            len,
            at: 0,
        }
    }

    /// `len` bytes from `start`, or what of them there is.
    pub(super) fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self {
            disk: self.disk.clone(),
            start: self.start + start,
            len: len.min(self.len - start),
            at: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes at a place; zeros behind the end or where they cannot be read.
    pub(super) fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let mut window = self.clone();
        window.at = at;
        // What could be read is what a magic number is looked for in.
        let _ = window.read_exact(&mut bytes);
        bytes
    }
}

impl Read for Window {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = to.len().min(left);
        let to = to.get_mut(..len).unwrap_or_default();
        if to.is_empty() {
            return Ok(0);
        }
        let n = self.disk.borrow_mut().some(to, self.start + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The reader of vfat could write as well, and must not.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(
        &mut self,
        at: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.at = at;
        Ok(self.read_exact(to)?)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Bytes that tell their place, and how often they were read.
    struct Counted(u64, Rc<Cell<usize>>);

    impl ReadAt for Counted {
        fn size(&self) -> u64 {
            self.0
        }

        fn read_at(&mut self, to: &mut [u8], at: u64) -> io::Result<()> {
            self.1.set(self.1.get() + 1);
            (at..)
                .zip(to)
                .for_each(|(at, byte)| *byte = (at >> 16) as u8);
            Ok(())
        }
    }

    #[test]
    fn places_that_are_read_in_turns_are_read_once() {
        let count = Rc::new(Cell::new(0));
        let window = Window::whole(Box::new(Counted(40 * PIECE + 7, count.clone())));
        for round in 0..100 {
            assert_eq!(window.peek::<1>(round), [0]);
            assert_eq!(window.peek::<1>(39 * PIECE + round), [39]);
        }
        assert_eq!(count.get(), 2);
        for piece in 0..=40 {
            assert_eq!(window.peek::<2>(piece * PIECE), [piece as u8; 2]);
        }
        assert_eq!(count.get(), 42);
        // Of what is behind the end there is nothing.
        assert_eq!(window.peek::<8>(40 * PIECE + 5), [40, 40, 0, 0, 0, 0, 0, 0]);
    }
}
