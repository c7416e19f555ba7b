//! Bytes that are known: whoever gets them sees whether each is the one that was sent.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub const MIB: usize = 1 << 20;
/// What is written or compared at once.
const PIECE: usize = 256 << 10;
/// The bytes come again after so many: no power of two, as buffers are.
const PERIOD: usize = MIB + 7;

/// Marsaglia's xorshift64: another number each time, the same in each run.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// A stream of bytes that looks like no other.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    start: usize,
}

impl Content {
    pub fn new(number: usize) -> Self {
        let start = number.wrapping_mul(0x9e37_79b9) % PERIOD;
        Self { start }
    }

    /// What every stream is a piece of: a period, and a piece's length of the next.
    pub fn all() -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        BYTES.get_or_init(|| {
            let mut chance = Chance(1);
            let mut bytes: Vec<u8> = (0..PERIOD).map(|_| chance.below(256) as u8).collect();
            bytes.extend_from_within(..PIECE);
            bytes
        })
    }

    /// The bytes from the stream's `at` on, no more than a piece.
    pub fn bytes(self, at: usize, len: usize) -> &'static [u8] {
        let from = (self.start + at) % PERIOD;
        &Self::all()[from..from + len.min(PIECE)]
    }

    /// Sends the first `len` bytes.
    pub fn send(self, mut to: &TcpStream, len: usize) {
        let mut at = 0;
        while at < len {
            let piece = self.bytes(at, len - at);
            if let Err(error) = to.write_all(piece) {
                panic!("after {at} bytes of {len}: {error}");
            }
            at += piece.len();
        }
    }

    /// Expects the first `len` bytes.
    pub fn expect(self, from: &TcpStream, len: usize) {
        self.expect_slowly(from, len, PIECE, || {});
    }

    /// Expects them with reads of at most `most` bytes and a `pause` before each.
    pub fn expect_slowly(
        self,
        mut from: &TcpStream,
        len: usize,
        most: usize,
        mut pause: impl FnMut(),
    ) {
        let (mut buffer, mut at) = (vec![0; most.min(PIECE)], 0);
        while at < len {
            pause();
            let room = buffer.len().min(len - at);
            match from.read(&mut buffer[..room]) {
                Ok(0) => panic!("ended after {at} bytes of {len}"),
                Ok(n) => {
                    let wanted = self.bytes(at, n);
                    if buffer[..n] != *wanted {
                        let same = buffer.iter().zip(wanted).take_while(|(a, b)| a == b);
                        panic!("byte {} of {len} is another", at + same.count());
                    }
                    at += n;
                }
                // As by a machine that was suspended.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("after {at} bytes of {len}: {error}"),
            }
        }
    }
}

/// Expects that there is nothing more to come.
pub fn expect_end(mut from: &TcpStream) {
    assert_eq!(from.read(&mut [0]).expect("the end"), 0, "more than wanted");
}

/// Passes `len` bytes from one end to the other, other ones each time.
pub fn pass(from: &TcpStream, to: &TcpStream, len: usize) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let content = Content::new(NUMBER.fetch_add(1, Ordering::Relaxed));
    thread::scope(|scope| {
        scope.spawn(|| content.send(from, len));
        content.expect(to, len);
    });
}
