//! A file with holes: what is all zeros is not kept, and not read to memory that is fresh.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom, Write};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};
use vmm_sys_util::seek_hole::SeekHole;

/// Reads a file to memory that has been touched by nobody, and leaves it so where the file has holes. A
/// file system that knows of none has it all read.
pub struct ToFresh(pub File);

impl ToFresh {
    /// What is at the file's place: a hole of so many bytes, or data of so many; at most `len`.
    fn next(&mut self, len: usize) -> Result<Next> {
        let at = self.0.stream_position()?;
        let most = at.saturating_add(len as u64);
        // A hole at the end has no data behind it.
        let data = match self.0.seek_data(at) {
            Ok(Some(data)) => data,
            Ok(None) => self.0.metadata()?.len().max(at),
            Err(_) => at,
        };
        let next = match data > at {
            true => Next::Hole((data.min(most) - at) as usize),
            false => match self.0.seek_hole(at) {
                Ok(Some(hole)) => Next::Data((hole.min(most) - at) as usize),
                _ => Next::Data(len),
            },
        };
        self.0.seek(SeekFrom::Start(at))?;
        Ok(next)
    }
}

enum Next {
    Hole(usize),
    Data(usize),
}

impl Read for ToFresh {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.0.read(bytes)
    }
}

impl Seek for ToFresh {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.seek(to)
    }
}

impl ReadVolatile for ToFresh {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        to: &mut VolatileSlice<'_, B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        let mut done = 0;
        // Who loads a kernel takes less than all for the file's end.
        while done < to.len() {
            let next = self.next(to.len() - done);
            let read = match next.map_err(VolatileMemoryError::IOError)? {
                Next::Hole(len) => {
                    let skipped = self.0.seek_relative(len as i64);
                    skipped.map_err(VolatileMemoryError::IOError)?;
                    len
                }
                Next::Data(len) => self.0.read_volatile(&mut to.subslice(done, len)?)?,
            };
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }
}

/// Writes `content` to an empty file, which has holes for those pieces of `grain` bytes that are zeros.
pub fn write(mut file: &File, content: &[u8], grain: usize) -> Result<()> {
    for piece in content.chunks(grain) {
        append(&mut file, piece)?;
    }
    file.set_len(content.len() as u64)
}

/// Goes on in a file with `piece`, or leaves a hole for it, which at its end counts for nothing yet.
pub fn append(file: &mut (impl Write + Seek), piece: &[u8]) -> Result<()> {
    match is_zeros(piece) {
        true => file.seek_relative(piece.len() as i64),
        false => file.write_all(piece),
    }
}

/// Whether there are but zeros, as many at a time as the processor compares.
fn is_zeros(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((first, others)) => *first == 0 && bytes.starts_with(others),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    const HOLE: usize = 8192;

    fn content(data: &[bool]) -> Vec<u8> {
        let piece = |(n, has): (usize, &bool)| vec![if *has { n as u8 + 1 } else { 0 }; HOLE];
        let mut content = data.iter().enumerate().map(piece).collect::<Vec<_>>();
        content.push(vec![0; 100]);
        content.concat()
    }

    #[test]
    fn a_file_with_holes_reads_as_what_was_written() {
        for data in [
            [true, false, false, true],
            [false, true, true, false],
            [false, false, false, false],
            [true, true, true, true],
        ] {
            let content = content(&data);
            let file = tempfile::tempfile().unwrap();
            write(&file, &content, HOLE).unwrap();
            let kept = data.iter().filter(|has| **has).count() * HOLE;
            assert!(file.metadata().unwrap().blocks() * 512 < (kept + HOLE) as u64);
            let mut file = ToFresh(file);
            // From the start, from within data or a hole, and on to the end.
            for (at, len) in [(0, content.len()), (HOLE - 5, HOLE), (HOLE + 7, 3 * HOLE)] {
                let len = len.min(content.len() - at);
                let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
                let memory = memory.unwrap();
                file.seek(SeekFrom::Start(at as u64)).unwrap();
                memory
                    .read_exact_volatile_from(GuestAddress(0x123), &mut file, len)
                    .unwrap();
                let mut there = vec![0; len];
                memory.read_slice(&mut there, GuestAddress(0x123)).unwrap();
                assert!(there == content[at..at + len], "{data:?} {at}");
            }
        }
    }

    #[test]
    fn a_byte_anywhere_is_no_zeros() {
        for len in [0, 1, 2, 31, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zeros(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zeros(&bytes), "{len} {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn what_lies_behind_a_file_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        write(&file, &content(&[true, false]), HOLE).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut file = ToFresh(file);
        let len = 2 * HOLE + 100;
        let read = memory.read_exact_volatile_from(GuestAddress(0), &mut file, len + 1);
        assert!(read.is_err());
        file.seek(SeekFrom::Start(1 << 30)).unwrap();
        let read = memory.read_exact_volatile_from(GuestAddress(0), &mut file, 1);
        assert!(read.is_err());
    }
}
