//! What a planned disk's own boot loader would start.

use std::io;
use std::path::PathBuf;

use vm_memory::VolatileSlice;

use super::{BackingFiles, open_file};
use crate::boot::entries::{self, Entry, Loaded, ReadAt};
use crate::devices::virtio::block::disk::{Disk, DiskError};
use crate::plan::{Backing, PlannedDisk};

/// Why a disk cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nothing is found on it, or not all of what is.
    #[error("disk `{0}`: {1}; --kernel starts another one")]
    Entries(String, entries::Error),
}

/// A disk for a reader that knows nothing of devices.
struct Bytes(Box<dyn Disk>);

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&mut self, to: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read(&VolatileSlice::from(to), at)
    }
}

/// What is on the disk; `None` where it is nothing that could be booted.
pub fn read(
    disk: &PlannedDisk,
    backing_dirs: &[PathBuf],
) -> Result<Option<entries::Disk>, DiskError> {
    let below = BackingFiles::Below(backing_dirs);
    let (path, format, below) = match &disk.backing {
        Backing::File(path, format) | Backing::Base(path, format) => (path, format, below),
        Backing::ContainerDisk(path, format) => (path, format, BackingFiles::None),
        Backing::Empty(_) | Backing::Memory(_) => return Ok(None),
    };
    // One that a dry run did not make.
    if !path.exists() {
        return Ok(None);
    }
    let disk = open_file(path, *format, true, below)?;
    Ok(Some(entries::Disk::read(Box::new(Bytes(disk)))))
}

/// The disk's own kernel with what it is started with; `None` for a plain root, which needs one.
pub fn own(disk: &PlannedDisk, backing_dirs: &[PathBuf]) -> Result<Option<(Entry, Loaded)>, Error> {
    let Some(found) = read(disk, backing_dirs)? else {
        return Ok(None);
    };
    if found.is_plain_root() {
        return Ok(None);
    }
    let about = |error| Error::Entries(disk.name.clone(), error);
    let entry = found.default_entry().map_err(about)?.clone();
    let loaded = found.load(&entry).map_err(about)?;
    Ok(Some((entry, loaded)))
}
