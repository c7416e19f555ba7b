//! Gives the engine a guest's frames, and lends them as a card does whose driver has them in the guest's
//! memory.

use netdev::link::Received;
use netdev::link::loans::{Loan, Loans};
use netdev::link::metered::content;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Frames at once.
const FRAMES: u64 = 16;
/// Memory for each.
const SLOT: u64 = 68 << 10;
/// All headers of a frame.
const HEADERS: usize = 134;

/// A card's memory.
pub struct Lender {
    memory: GuestMemoryMmap,
    /// What was lent.
    pub loans: Loans,
    lends: bool,
    lent: u64,
}

impl Lender {
    /// One that has lent nothing, or that never does.
    pub fn new(lends: bool) -> Self {
        let size = (FRAMES * SLOT) as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        Self {
            loans: Loans::new(memory.clone()),
            memory,
            lends,
            lent: 0,
        }
    }

    /// Lends a frame, or copies it to `place`.
    pub fn receive(&mut self, frame: &[u8], datagrams: Option<u16>, place: &mut [u8]) -> Received {
        let loan = self.lend(frame, place);
        if loan.is_none() {
            place[..frame.len()].copy_from_slice(frame);
        }
        Received {
            len: frame.len(),
            datagrams,
            loan,
        }
    }

    /// Lends a frame of TCP while there is memory, and copies its headers to `place`; of the rest
    /// nothing is there.
    fn lend(&mut self, frame: &[u8], place: &mut [u8]) -> Option<Loan> {
        if !self.lends
            || content(&[frame]) != netdev::counters::Content::Tcp
            || frame.len() <= HEADERS
            || self.lent == FRAMES
        {
            return None;
        }
        let at = GuestAddress(self.lent * SLOT);
        self.lent += 1;
        self.memory.write_slice(frame, at).unwrap();
        let loan = self.loans.lend(&[(at, frame.len())]);
        place[..HEADERS].copy_from_slice(&frame[..HEADERS]);
        place[HEADERS..frame.len()].fill(0xee);
        loan
    }

    /// The batch is over, and its memory is free; it is overwritten, for nobody may read it now.
    pub fn end_batch(&mut self) {
        self.loans.end();
        for index in 0..std::mem::take(&mut self.lent) {
            let bytes = [0xdd; SLOT as usize];
            let at = GuestAddress(index * SLOT);
            self.memory.write_slice(&bytes, at).unwrap();
        }
    }
}
