//! Frames that stay in the guest's memory while the batch that they came in is dealt with: a socket takes
//! their bytes from there, and nothing is copied on the way.
//!
//! No frame is kept beyond its batch. A driver has its buffers back at once, whatever a socket does not
//! take: Linux counts the bytes that its card has (byte queue limits, since 6.11 for virtio-net), and sends
//! nothing for any other flow either while there are too many.

use std::io;
use std::ops::Range;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::gather::Gather;

/// Bytes from which on a frame is lent: fewer are sooner copied than kept account of.
pub const LEAST: usize = 4 << 10;
/// Bytes at a frame's start that are copied in any case: all headers, and what an error of ICMP quotes.
pub const HEAD: usize = 1536;
/// Buffers of a frame that is lent, at most; Linux makes some 18 unless it is told otherwise.
const MOST_BUFFERS: usize = 32;

/// A buffer of the driver's, and its length.
pub type Buffer = (GuestAddress, usize);

/// A frame that was lent, good for as long as its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan(usize);

/// The frames of a batch that were lent.
pub struct Loans {
    memory: GuestMemoryMmap,
    /// Of all frames, one behind the other.
    buffers: Vec<Buffer>,
    /// Which are each frame's.
    frames: Vec<Range<usize>>,
}

impl Loans {
    /// None yet.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self {
            memory,
            buffers: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Lends a frame, all of which lies in `buffers`; none where it has too many of them, or one outside
    /// the guest's memory.
    pub fn lend(&mut self, buffers: &[Buffer]) -> Option<Loan> {
        let is_whole = |(at, len): &Buffer| self.memory.get_slice(*at, *len).is_ok();
        if buffers.len() > MOST_BUFFERS || !buffers.iter().all(is_whole) {
            return None;
        }
        let start = self.buffers.len();
        self.buffers.extend_from_slice(buffers);
        self.frames.push(start..self.buffers.len());
        Some(Loan(self.frames.len() - 1))
    }

    /// Whether a frame is lent.
    pub(super) fn any(&self) -> bool {
        !self.frames.is_empty()
    }

    /// The batch is dealt with: nothing is lent any longer.
    pub fn end(&mut self) {
        self.buffers.clear();
        self.frames.clear();
    }

    /// Where bytes of a frame lie, one behind the other.
    fn places(&self, loan: Loan, range: Range<usize>) -> impl Iterator<Item = Buffer> {
        let frame = self.frames.get(loan.0).cloned().unwrap_or_default();
        let buffers = self.buffers.get(frame).unwrap_or_default();
        let (mut skip, mut left) = (range.start, range.len());
        buffers.iter().filter_map(move |(at, len)| {
            let before = skip.min(*len);
            let n = (len - before).min(left);
            (skip, left) = (skip - before, left - n);
            (n > 0).then(|| (at.unchecked_add(before as u64), n))
        })
    }

    /// Adds bytes of a frame to what is to be written, as far as there is room.
    pub fn gather<'a>(
        &'a self,
        loan: Loan,
        range: Range<usize>,
        to: &mut Gather<'a>,
    ) -> io::Result<()> {
        for (at, len) in self.places(loan, range) {
            let slice = self.memory.get_slice(at, len).map_err(io::Error::other)?;
            if !to.push_guest(&slice) {
                break;
            }
        }
        Ok(())
    }

    /// Copies bytes of a frame, from `from` on, to all of `place`; an error where it is shorter.
    pub fn copy(&self, loan: Loan, from: usize, place: &mut [u8]) -> io::Result<()> {
        let places = self.places(loan, from..from + place.len());
        copy(&self.memory, places, place)
    }
}

/// Copies what lies in `buffers`, one behind the other, to all of `place`; an error where that is less.
pub(super) fn copy(
    memory: &GuestMemoryMmap,
    buffers: impl Iterator<Item = Buffer>,
    place: &mut [u8],
) -> io::Result<()> {
    let mut rest = place;
    for (at, len) in buffers {
        let (now, later) = rest.split_at_mut(len.min(rest.len()));
        memory.read_slice(now, at).map_err(io::Error::other)?;
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Loans of a megabyte of memory.
    fn loans() -> (GuestMemoryMmap, Loans) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let loans = Loans::new(memory.clone());
        (memory, loans)
    }

    proptest! {
        #[test]
        fn a_frame_s_bytes_are_found_wherever_they_lie(
            lens in prop::collection::vec(0..3000_usize, 1..MOST_BUFFERS),
            (from, to) in (0..70_000_usize, 0..70_000_usize),
        ) {
            let (memory, mut loans) = loans();
            // Backwards, with holes between them.
            let (mut at, mut frame) = (1 << 20, Vec::new());
            let mut buffers = Vec::new();
            for len in lens {
                at -= len as u64 + 7;
                let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 ^ at as u8).collect();
                memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                buffers.push((GuestAddress(at), len));
                frame.extend(bytes);
            }
            let other = loans.lend(&[(GuestAddress(0), 2)]).unwrap();
            let loan = loans.lend(&buffers).unwrap();
            let to = to.min(frame.len());
            let from = from.min(to);
            let mut place = vec![0; to - from];
            loans.copy(loan, from, &mut place).unwrap();
            prop_assert!(place == frame[from..to]);
            let mut gather = Gather::default();
            loans.gather(loan, from..to, &mut gather).unwrap();
            prop_assert_eq!(gather.len(), to - from);
            drop(gather);
            prop_assert!(loans.copy(loan, from, &mut vec![0; frame.len() - from + 1]).is_err());
            prop_assert!(loans.copy(other, 0, &mut [0; 3]).is_err());
            loans.end();
            prop_assert!(loans.copy(other, 0, &mut [0; 1]).is_err());
        }
    }

    #[test]
    fn a_frame_of_which_a_part_lies_outside_memory_is_not_lent() {
        let (_, mut loans) = loans();
        let outside = [(GuestAddress(0), 10), (GuestAddress((1 << 20) - 5), 10)];
        assert_eq!(loans.lend(&outside), None);
        assert_eq!(loans.lend(&[(GuestAddress(u64::MAX), 10)]), None);
        assert_eq!(loans.lend(&[(GuestAddress(0), 1); 33]), None);
        assert!(loans.lend(&[(GuestAddress(0), 1); 32]).is_some());
    }
}
