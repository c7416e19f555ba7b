//! The initramfs: a file that stays open, so that a machine which starts anew is given the same.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile};

/// An initramfs on the host.
#[derive(Debug, Clone)]
pub struct Initramfs {
    name: PathBuf,
    file: Arc<File>,
}

/// Why the guest cannot have it.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// It cannot be read.
    #[error("initramfs {0}: {1}")]
    Read(PathBuf, io::Error),
    /// It and the kernel do not both fit.
    #[error("initramfs {0}: its {1} bytes and the kernel do not fit in the guest's memory")]
    Room(PathBuf, u64),
}

impl Initramfs {
    /// The one at `path`.
    pub fn open(path: &Path) -> Result<Self, InitramfsError> {
        match File::open(path) {
            Ok(file) => Ok(Self::new(path, file)),
            Err(error) => Err(InitramfsError::Read(path.to_owned(), error)),
        }
    }

    /// The one in `file`, which is called `name` where a person is told of it.
    pub fn new(name: &Path, file: File) -> Self {
        Self {
            name: name.to_owned(),
            file: Arc::new(file),
        }
    }

    /// Puts it at the end of the memory below `end`, away from where the kernel, which ends at
    /// `kernel_end`, unpacks itself. Where it starts, and its length.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        kernel_end: GuestAddress,
        end: u64,
    ) -> Result<(GuestAddress, u64), InitramfsError> {
        let failed = |error| InitramfsError::Read(self.name.clone(), error);
        let size = self.file.metadata().map_err(failed)?.len();
        let no_room = || InitramfsError::Room(self.name.clone(), size);
        let start = end.checked_sub(size).ok_or_else(no_room)? & !0xfff;
        if start < kernel_end.0 {
            return Err(no_room());
        }
        let len = usize::try_from(size).map_err(|_| no_room())?;
        let slice = memory.get_slice(GuestAddress(start), len);
        let mut slice = slice.map_err(|_| no_room())?;
        let mut file = &*self.file;
        file.rewind().map_err(failed)?;
        let read = file.read_exact_volatile(&mut slice);
        read.map_err(|error| failed(io::Error::other(error)))?;
        Ok((GuestAddress(start), size))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn it_lies_at_the_end_of_memory_each_time_it_is_loaded_or_nowhere() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let initramfs = Initramfs::new(Path::new("x.cpio"), file);
        for _ in 0..2 {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let (at, len) = initramfs
                .load(&memory, GuestAddress(0x8_0000), 1 << 20)
                .unwrap();
            assert_eq!((at.0, len), ((1 << 20) - 0x2000, 5000));
            let mut bytes = [0; 5001];
            memory.read_slice(&mut bytes, at).unwrap();
            assert_eq!((bytes[0], bytes[4999], bytes[5000]), (7, 7, 0));
        }
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let kernel_end = GuestAddress((1 << 20) - 0x1000);
        let error = initramfs.load(&memory, kernel_end, 1 << 20).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("initramfs x.cpio: its 5000 bytes")
        );
    }
}
