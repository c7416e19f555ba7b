//! A flow's buffer: a ring of bytes that takes memory only while there is something in it.

use std::convert::Infallible;
use std::io::IoSliceMut;
use std::ops::Range;

use crate::sys;

/// Most bytes that a ring keeps: a stream keeps going while the guest, ourselves and the host's peer
/// take turns on one CPU. With less, each waits for the others' wake-ups.
pub const MOST: usize = 1 << 20;
/// The sizes of a ring.
pub const SIZES: [usize; 5] = [SMALL, 64 << 10, MIDDLE, MOST / 2, MOST];
/// Enough for a request and its answer.
pub const SMALL: usize = 8 << 10;
const MIDDLE: usize = 256 << 10;
/// It is not worth looking for less.
const SLACK: usize = 1 << 20;
/// Free pieces of each size that are kept for the next flow.
const KEPT: [usize; 5] = [8, 4, 4, 1, 1];

/// The memory of all rings.
#[derive(Debug)]
pub struct Pool {
    free: [Vec<Box<[u8]>>; 5],
    /// What rings beyond the smallest may take for what sockets have to read; those of the largest
    /// size take no more than half of it, so that many flows have some each.
    budget: usize,
    in_use: usize,
    /// Bytes that went back to the heap, and may still be this process's.
    returned: usize,
    /// A piece was taken or given back since somebody asked.
    used: bool,
}

impl Pool {
    /// An empty one that takes `budget` bytes at most for what sockets have to read.
    pub fn new(budget: usize) -> Self {
        Self {
            free: Default::default(),
            budget,
            in_use: 0,
            // Whatever was done before there was a network.
            returned: SLACK,
            used: false,
        }
    }

    /// Whether there may be much memory that nobody uses: pieces kept for the next flow, or the heap's.
    pub fn has_slack(&self) -> bool {
        self.returned >= SLACK || self.free.iter().skip(1).any(|kept| !kept.is_empty())
    }

    /// Whether it was of use since this was asked last.
    pub fn was_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Gives the kernel what nobody uses: of a thousand flows that opened at once a piece of the heap is
    /// left between the flows themselves, which malloc alone keeps for ever.
    pub fn trim(&mut self) {
        self.free = Default::default();
        self.returned = 0;
        sys::trim_heap();
    }

    /// The free pieces of one of [`SIZES`], and how many are kept.
    fn kept(&mut self, size: usize) -> Option<(&mut Vec<Box<[u8]>>, usize)> {
        let index = SIZES.iter().position(|known| *known == size)?;
        Some((self.free.get_mut(index)?, *KEPT.get(index)?))
    }

    /// A piece of one of [`SIZES`].
    fn take(&mut self, size: usize) -> Box<[u8]> {
        self.used = true;
        let kept = self.kept(size).and_then(|(free, _)| free.pop());
        kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
    }

    fn give(&mut self, bytes: Box<[u8]>) {
        self.used = true;
        if let Some((free, most)) = self.kept(bytes.len())
            && free.len() < most
        {
            free.push(bytes);
        } else {
            self.returned = self.returned.saturating_add(bytes.len());
        }
    }

    /// Whether a socket's bytes may have a piece of `size`.
    fn affords(&self, size: usize) -> bool {
        let budget = if size < MOST {
            self.budget
        } else {
            self.budget / 2
        };
        self.in_use + cost(size) <= budget
    }
}

/// What a piece of `size` costs of the budget.
fn cost(size: usize) -> usize {
    if size > SMALL { size } else { 0 }
}

/// A ring of at most [`MOST`] bytes.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
    /// It holds what a socket had to read, and is paid of the budget. What the guest was told that it
    /// may send has to have room in any case.
    is_paid: bool,
}

impl Ring {
    /// Bytes that are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for more of what a socket has to read, where memory allows it: a full ring grows
    /// while few have. Returns how much there is.
    pub fn make_room(&mut self, pool: &mut Pool) -> usize {
        if self.len == self.bytes.len() {
            let next = [SMALL, MIDDLE, MOST].into_iter().find(|s| *s > self.len);
            if let Some(size) = next.filter(|size| pool.affords(*size)) {
                pool.in_use += cost(size);
                self.grow(size, pool);
                self.is_paid = true;
            }
        }
        self.bytes.len() - self.len
    }

    fn grow(&mut self, size: usize, pool: &mut Pool) {
        let mut bytes = pool.take(size);
        let mut at = 0;
        for part in self.parts(0..self.len) {
            if let Some(place) = bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
            at += part.len();
        }
        self.give_back(pool);
        self.bytes = bytes;
    }

    fn give_back(&mut self, pool: &mut Pool) {
        if std::mem::take(&mut self.is_paid) {
            pool.in_use -= cost(self.bytes.len());
        }
        pool.give(std::mem::take(&mut self.bytes));
        self.start = 0;
    }

    /// Room as [`Ring::make_room`] left it, `most` bytes of it, as its two pieces.
    pub fn spare(&mut self, most: usize) -> [IoSliceMut<'_>; 2] {
        let size = self.bytes.len();
        let (start, end) = (self.start, self.start + self.len);
        let (first, second): (&mut [u8], &mut [u8]) = if end < size {
            let (head, tail) = self.bytes.split_at_mut(end);
            (tail, head.get_mut(..start).unwrap_or_default())
        } else {
            let room = self.bytes.get_mut(end - size..start);
            (room.unwrap_or_default(), &mut [])
        };
        let now = most.min(first.len());
        let later = (most - now).min(second.len());
        [
            IoSliceMut::new(first.get_mut(..now).unwrap_or_default()),
            IoSliceMut::new(second.get_mut(..later).unwrap_or_default()),
        ]
    }

    /// `count` bytes were written to [`Ring::spare`].
    pub fn filled(&mut self, count: usize) {
        self.len = (self.len + count).min(self.bytes.len());
    }

    /// Has `fill` write what comes next of `count` bytes to each place that there is for them, behind what
    /// there is, and returns how many had room: all, up to [`MOST`] together, for whoever was told that
    /// it may send must not find that it may not. Where `fill` fails there is nothing new.
    pub fn put<E>(
        &mut self,
        count: usize,
        pool: &mut Pool,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let all = self.len.saturating_add(count);
        if all > self.bytes.len() && self.bytes.len() < MOST {
            let size = SIZES.into_iter().find(|size| *size >= all);
            self.grow(size.unwrap_or(MOST), pool);
        }
        let mut put = 0;
        for mut place in self.spare(count) {
            fill(&mut place)?;
            put += place.len();
        }
        self.filled(put);
        Ok(put)
    }

    /// Puts `bytes` behind what there is, by [`Ring::put`].
    pub fn push(&mut self, mut bytes: &[u8], pool: &mut Pool) -> usize {
        let put = self.put(bytes.len(), pool, |place| {
            let (now, later) = bytes.split_at(place.len());
            place.copy_from_slice(now);
            bytes = later;
            Ok::<_, Infallible>(())
        });
        let Ok(pushed) = put;
        pushed
    }

    /// A range of it, as its two pieces; what is beyond its end is left out.
    pub fn parts(&self, range: Range<usize>) -> [&[u8]; 2] {
        let size = self.bytes.len();
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        let (from, to) = (self.start + start, self.start + end);
        let piece = |range: Range<usize>| self.bytes.get(range).unwrap_or_default();
        if to <= size {
            [piece(from..to), &[]]
        } else if from >= size {
            [piece(from - size..to - size), &[]]
        } else {
            [piece(from..size), piece(0..to - size)]
        }
    }

    /// Drops the first `count` bytes; an empty ring gives its memory back.
    pub fn consume(&mut self, count: usize, pool: &mut Pool) {
        let count = count.min(self.len);
        self.len -= count;
        self.start += count;
        if self.start >= self.bytes.len() {
            self.start -= self.bytes.len();
        }
        if self.len == 0 {
            self.clear(pool);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.give_back(pool);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const BUDGET: usize = 64 << 20;

    proptest! {
        #[test]
        fn it_is_a_queue_of_bytes(
            steps in prop::collection::vec((any::<bool>(), 0..60_000_usize), 0..80),
        ) {
            let (mut ring, mut pool) = (Ring::default(), Pool::new(BUDGET));
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0_u8;
            for (push, count) in steps {
                if push {
                    let bytes: Vec<u8> = (0..count)
                        .map(|_| { next = next.wrapping_add(1); next })
                        .collect();
                    let taken = ring.push(&bytes, &mut pool);
                    prop_assert_eq!(taken, count.min(MOST - model.len()));
                    model.extend(&bytes[..taken]);
                } else {
                    ring.consume(count, &mut pool);
                    model.drain(..count.min(model.len()));
                }
                prop_assert_eq!(ring.len(), model.len());
                let from = count / 2;
                let parts = ring.parts(from..count).concat();
                let want: Vec<u8> = model.iter().copied().take(count).skip(from).collect();
                prop_assert_eq!(parts, want);
            }
        }
    }

    #[test]
    fn an_empty_ring_holds_no_memory_and_the_pool_s_is_bounded() {
        let mut pool = Pool::new(BUDGET);
        let mut rings: Vec<Ring> = (0..BUDGET / MIDDLE).map(|_| Ring::default()).collect();
        for ring in &mut rings {
            loop {
                let room = ring.make_room(&mut pool);
                if room == 0 {
                    break;
                }
                ring.filled(room);
            }
        }
        let of = |size| rings.iter().filter(|ring| ring.len() == size).count();
        assert_eq!([SMALL, MIDDLE, MOST].map(of), [93, 132, 31]);
        assert!(pool.in_use <= BUDGET);
        for ring in &mut rings {
            ring.consume(MOST, &mut pool);
            assert!(ring.bytes.is_empty());
        }
        assert_eq!(pool.in_use, 0);
        let kept = pool.free.each_ref().map(Vec::len);
        assert_eq!(kept, [8, 0, 4, 0, 1]);
    }

    #[test]
    fn what_is_kept_for_the_next_flow_goes_when_there_is_none_for_long() {
        let mut pool = Pool::new(BUDGET);
        pool.trim();
        for (count, slack) in [(SMALL, false), (SMALL + 1, true)] {
            let mut ring = Ring::default();
            ring.push(&vec![7; count], &mut pool);
            ring.clear(&mut pool);
            assert_eq!(pool.has_slack(), slack, "{count}");
        }
        pool.trim();
        assert!(!pool.has_slack() && pool.free.iter().all(Vec::is_empty));
    }

    #[test]
    fn what_a_guest_may_send_has_room_in_any_case_and_takes_none_from_what_sockets_have() {
        let mut pool = Pool::new(BUDGET);
        for (count, size) in [(1, SMALL), (SMALL + 1, 64 << 10), (300 << 10, MOST / 2)] {
            let mut ring = Ring::default();
            assert_eq!(ring.push(&vec![7; count], &mut pool), count);
            assert_eq!((ring.bytes.len(), pool.in_use), (size, 0));
            ring.clear(&mut pool);
        }
        let mut other = Ring::default();
        while other.len() < MOST {
            let room = other.make_room(&mut pool);
            other.filled(room);
        }
        assert_eq!(pool.in_use, MOST);
        other.clear(&mut pool);
        assert_eq!(pool.in_use, 0);
    }
}
