//! A file that is copied to a guest's memory from where it is mapped, which costs less than reading it
//! where there is much of it.

use std::fs::File;
use std::io::{Error, Read, Result, Seek, SeekFrom};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, MmapRegion, ReadVolatile, VolatileMemory, VolatileMemoryError, VolatileSlice,
};

/// Whether somebody may write to a file while it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// It is a user's.
    Perhaps,
    /// It is replaced as a whole, if at all, so that it may be mapped.
    Never,
}

/// A file that nobody cuts off meanwhile: where a page is gone that was there, its reader ends.
pub struct Mapped {
    region: MmapRegion,
    at: u64,
}

impl Mapped {
    /// Of that file, from its start.
    pub fn new(file: &File) -> Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
        let region = MmapRegionBuilder::new(len)
            .with_file_offset(FileOffset::new(file.try_clone()?, 0))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_POPULATE)
            .build();
        Ok(Self {
            region: region.map_err(Error::other)?,
            at: 0,
        })
    }

    /// The file's next bytes, `len` of them at most.
    fn next(&mut self, len: usize) -> Result<VolatileSlice<'_>> {
        let left = (self.region.size() as u64).saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        // It is within the file, or empty.
        let at = (self.at as usize).min(self.region.size());
        self.at += len as u64;
        self.region.get_slice(at, len).map_err(Error::other)
    }
}

impl Read for Mapped {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        Ok(self.next(bytes.len())?.copy_to(bytes))
    }
}

impl Seek for Mapped {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(by) => (self.region.size() as u64, by),
            SeekFrom::Current(by) => (self.at, by),
        };
        let at = from.checked_add_signed(by);
        self.at = at.ok_or_else(|| Error::other("no such place in a file"))?;
        Ok(self.at)
    }
}

impl ReadVolatile for Mapped {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        to: &mut VolatileSlice<'_, B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        let next = self.next(to.len()).map_err(VolatileMemoryError::IOError)?;
        next.copy_to_volatile_slice(to.subslice(0, next.len())?);
        Ok(next.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn it_reads_as_its_file_does() {
        let bytes: Vec<u8> = (0..5000_u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut mapped = Mapped::new(&file).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        for place in [
            SeekFrom::Start(0),
            SeekFrom::Start(4990),
            SeekFrom::End(-7),
            SeekFrom::Current(3),
            SeekFrom::Start(1 << 40),
        ] {
            assert_eq!(mapped.seek(place).unwrap(), file.seek(place).unwrap());
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            (&mut mapped).take(20).read_to_end(&mut ours).unwrap();
            (&mut file).take(20).read_to_end(&mut theirs).unwrap();
            assert_eq!(ours, theirs, "{place:?}");
        }
        assert!(mapped.seek(SeekFrom::Start(0)).is_ok());
        assert!(mapped.seek(SeekFrom::Current(-1)).is_err());
        let read = memory.read_volatile_from(GuestAddress(0x100), &mut mapped, 1 << 15);
        assert_eq!(read.unwrap(), bytes.len());
        let mut there = vec![0; bytes.len() + 1];
        memory.read_slice(&mut there, GuestAddress(0x100)).unwrap();
        assert!(there[..bytes.len()] == bytes && there[bytes.len()] == 0);
    }
}
