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
    /// It has nothing for UEFI.
    #[error("disk `{0}`: {1}")]
    Loader(String, entries::Error),
}

/// What a disk has to boot.
pub enum Own {
    /// Nothing: a plain root, which needs a kernel.
    PlainRoot,
    /// A kernel, with what it is started with.
    Kernel(Entry, Loaded),
    /// A loader for UEFI, and why no kernel was found.
    Loader(String, Error),
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

/// What the disk has to boot.
pub fn own(disk: &PlannedDisk, backing_dirs: &[PathBuf]) -> Result<Own, Error> {
    let Some(found) = read(disk, backing_dirs)? else {
        return Ok(Own::PlainRoot);
    };
    if found.is_plain_root() {
        return Ok(Own::PlainRoot);
    }
    let about = |error| Error::Entries(disk.name.clone(), error);
    let entry = match found.default_entry() {
        Ok(entry) => entry.clone(),
        Err(why) => {
            return match found.efi_loader() {
                Ok(loader) => Ok(Own::Loader(called(disk, &loader), about(why))),
                Err(_) => Err(about(why)),
            };
        }
    };
    let loaded = found.load(&entry).map_err(about)?;
    Ok(Own::Kernel(entry, loaded))
}

/// The loader that UEFI would start from the disk, for a person.
pub fn loader(disk: &PlannedDisk, backing_dirs: &[PathBuf]) -> Result<String, Error> {
    // One that a dry run did not make.
    let Some(found) = read(disk, backing_dirs)? else {
        return Ok(called(disk, "loader"));
    };
    let loader = found.efi_loader();
    let about = |error| Error::Loader(disk.name.clone(), error);
    Ok(called(disk, &loader.map_err(about)?))
}

fn called(disk: &PlannedDisk, loader: &str) -> String {
    format!("disk `{}`'s {loader}", disk.name)
}
