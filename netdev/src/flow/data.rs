//! What a guest sent over a connection, wherever it lies.

use std::io;
use std::ops::Range;

use super::ring::{Pool, Ring};
use crate::gather::Gather;
use crate::link::loans::{Loan, Loans};

/// Bytes that the guest sent.
pub enum Data<'a> {
    /// They are ours.
    Copied(&'a [u8]),
    /// A range of a frame that was lent.
    Lent(&'a Loans, Loan, Range<usize>),
}

impl<'a> Data<'a> {
    /// How many.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Copied(bytes) => bytes.len(),
            Self::Lent(_, _, range) => range.len(),
        }
    }

    /// Adds them to what is to be written, as far as there is room.
    pub fn gather(&self, to: &mut Gather<'a>) -> io::Result<()> {
        match self {
            Self::Copied(bytes) => {
                to.push(bytes);
                Ok(())
            }
            Self::Lent(loans, loan, range) => loans.gather(*loan, range.clone(), to),
        }
    }

    /// Puts them behind what is in `ring`, from their byte `from` on.
    pub fn push_to(&self, ring: &mut Ring, from: usize, pool: &mut Pool) -> io::Result<()> {
        match self {
            Self::Copied(bytes) => {
                ring.push(bytes.get(from..).unwrap_or_default(), pool);
            }
            Self::Lent(loans, loan, range) => {
                let mut at = range.start.saturating_add(from);
                ring.put(range.end.saturating_sub(at), pool, |place| {
                    loans.copy(*loan, at, place)?;
                    at += place.len();
                    Ok::<_, io::Error>(())
                })?;
            }
        }
        Ok(())
    }

    /// A copy of them.
    pub fn to_box(&self) -> io::Result<Box<[u8]>> {
        match self {
            Self::Copied(bytes) => Ok(Box::from(*bytes)),
            Self::Lent(loans, loan, range) => {
                let mut bytes = vec![0; range.len()].into_boxed_slice();
                loans.copy(*loan, range.start, &mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn bytes_that_were_lent_go_where_those_that_were_copied_go() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let bytes: Vec<u8> = (0..60_000).map(|at| (at % 251) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(3)).unwrap();
        let mut loans = Loans::new(memory);
        let halves = [(GuestAddress(3), 20_000), (GuestAddress(20_003), 40_000)];
        let loan = loans.lend(&halves).unwrap();
        let mut pool = Pool::new(64 << 20);
        let mut rings = [Ring::default(), Ring::default()];
        // Over the end of a ring of 64 KiB, and into one that has to grow.
        for (from, consumed) in [
            (10_000, 0),
            (100, 40_000),
            (59_999, 7000),
            (0, 1),
            (60_000, 0),
        ] {
            let both = [
                Data::Copied(&bytes[5..]),
                Data::Lent(&loans, loan, 5..60_000),
            ];
            for (data, ring) in both.iter().zip(&mut rings) {
                data.push_to(ring, from, &mut pool).unwrap();
                ring.consume(consumed, &mut pool);
            }
            let [copied, lent] = rings.each_ref().map(|ring| ring.parts(0..ring.len()));
            assert!(copied.concat() == lent.concat(), "{from}");
            let [copied, lent] = both.map(|data| data.to_box().unwrap());
            assert!(copied == lent);
        }
    }
}
