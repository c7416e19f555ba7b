//! How much of the host's memory the process holds, its guest's included.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Pages as the kernel counts them, on every machine that we run on.
const PAGE: u64 = 4096;

/// The kernel's account of the process, opened before the sandbox closes /proc.
pub struct Resident(File);

impl Resident {
    /// The account of this process.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/statm").map(Self)
    }

    /// Bytes that are in memory now; 0 where the kernel does not say.
    pub fn bytes(&self) -> u64 {
        let mut text = [0; 128];
        let read = self.0.read_at(&mut text, 0).unwrap_or(0);
        let text = text
            .get(..read)
            .and_then(|text| std::str::from_utf8(text).ok());
        // proc_pid_statm(5): the second number.
        let pages = text.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        pages.unwrap_or(0) * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_counted() {
        let resident = Resident::open().unwrap();
        let before = resident.bytes();
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident.bytes();
        assert!(
            before > 0 && after >= before + (32 << 20),
            "{before} {after}"
        );
        drop(touched);
    }
}
