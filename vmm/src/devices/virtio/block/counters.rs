//! What a disk's guest has had done.

use netdev::counters::Counter;

/// Requests by kind, and their bytes. Those that failed are counted as errors besides.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads.
    pub reads: Counter,
    /// Writes.
    pub writes: Counter,
    /// Flushes.
    pub flushes: Counter,
    /// Discards, and zeros written.
    pub discards: Counter,
    /// Bytes that were read.
    pub read_bytes: Counter,
    /// Bytes that were written.
    pub written_bytes: Counter,
    /// Bytes that were discarded or zeroed.
    pub discarded_bytes: Counter,
    /// Requests that failed, by the host's storage or by what they asked for.
    pub errors: Counter,
}

impl Counters {
    /// Bytes that went to the disk or came from it.
    pub fn moved(&self) -> u64 {
        self.read_bytes.get() + self.written_bytes.get()
    }
}
