//! What a block device reads and writes, whatever its format, and the plain one: a raw image.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::lock;
use crate::snapshot::layer::{Layer, Source};
use crate::sparse;

/// A sector, the unit of every length and place on a disk.
pub const SECTOR: u64 = 512;
/// Zeros are written in pieces of this size where nothing better can be had.
const ZEROS: u64 = 64 << 10;
/// An image in memory is looked at for zeros in pieces of this size, a page.
const PAGE: usize = 4 << 10;

/// Storage for a block device. Places and lengths are bytes, within [`Disk::size`].
pub trait Disk: Send {
    /// Bytes, whole sectors.
    fn size(&self) -> u64;
    /// Whether the guest may only read.
    fn is_read_only(&self) -> bool;
    /// Fills `to` from `at`.
    fn read(&mut self, to: &VolatileSlice<'_>, at: u64) -> io::Result<()>;
    /// Writes `from` at `at`.
    fn write(&mut self, from: &VolatileSlice<'_>, at: u64) -> io::Result<()>;
    /// What was written before is on stable storage when this returns.
    fn flush(&mut self) -> io::Result<()>;
    /// The bytes read as zeros after this; `unmap` lets their storage go.
    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// The file whose stable storage is the disk's: a flush of the one is a flush of the other.
    fn file(&self) -> Option<&File> {
        None
    }
    /// Where in a file `len` bytes from `at` lie, one behind the other, if they do and may be read
    /// there, or written if `write`, past the disk. They lie there until the disk is asked to zero
    /// something, or to write what does not lie so.
    fn place(&mut self, _at: u64, _len: u64, _write: bool) -> Option<(&File, u64)> {
        None
    }
    /// What was written to it, where that goes with the VM.
    fn layer(&self) -> Option<Layer> {
        None
    }
}

/// Why an image cannot be a disk. Each names it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("disk {0}: {1}")]
    Open(PathBuf, io::Error),
    /// Its length is no number of sectors.
    #[error("disk {0}: its {1} bytes are not whole sectors of 512; is it truncated?")]
    Size(PathBuf, u64),
    /// Another process has it.
    #[error("disk {0}: in use by another process")]
    InUse(PathBuf),
    /// It is an image that cannot be a disk as it is.
    #[error("disk {0}: {1}")]
    Image(PathBuf, String),
}

/// A raw image or a block device.
#[derive(Debug)]
pub struct RawDisk {
    file: Arc<File>,
    size: u64,
    read_only: bool,
    /// It goes with the VM.
    passing: bool,
}

/// Opens and locks the file or block device at `path`. Also returns its length.
pub(super) fn open(path: &Path, read_only: bool) -> Result<(File, u64), DiskError> {
    let failed = |error| DiskError::Open(path.to_owned(), error);
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        // A pipe in its place is refused below and not waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed(io::Error::other(
            "neither a file nor a block device",
        )));
    }
    // A block device's metadata has no length, its end has.
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
    match lock::lock(&file, read_only) {
        Ok(true) => Ok((file, size)),
        Ok(false) => Err(DiskError::InUse(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

/// A disk's size, which is whole sectors.
pub(super) fn whole(path: &Path, size: u64) -> Result<u64, DiskError> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(DiskError::Size(path.to_owned(), size));
    }
    Ok(size)
}

/// An unnamed file in `directory`, which goes with the process.
pub fn unnamed(directory: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
        .map_err(|error| DiskError::Open(directory.to_owned(), error))
}

/// The same with `size` bytes, all of them zeros.
pub(super) fn blank(directory: &Path, size: u64) -> Result<File, DiskError> {
    let file = unnamed(directory)?;
    file.set_len(size)
        .map_err(|error| DiskError::Open(directory.to_owned(), error))?;
    Ok(file)
}

impl RawDisk {
    /// Opens and locks the image at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let (file, size) = open(path, read_only)?;
        Ok(Self {
            size: whole(path, size)?,
            file: Arc::new(file),
            read_only,
            passing: false,
        })
    }

    /// An empty disk of `size` bytes, whose storage is an unnamed file in `directory`.
    pub fn empty(size: u64, directory: &Path) -> Result<Self, DiskError> {
        let size = whole(directory, size)?;
        Ok(Self {
            file: Arc::new(blank(directory, size)?),
            size,
            read_only: false,
            passing: true,
        })
    }

    /// What an empty disk of `size` bytes held in a VM that was saved: a layer goes over it.
    pub fn saved(file: File, size: u64) -> Self {
        Self {
            file: Arc::new(file),
            size,
            read_only: true,
            passing: true,
        }
    }

    /// A disk that is only in memory, which the guest may read.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, DiskError> {
        let path = || PathBuf::from(name);
        let size = (bytes.len() as u64).next_multiple_of(SECTOR);
        // SAFETY: the name is a NUL-terminated literal; the call makes a new descriptor.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(DiskError::Open(path(), io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was made just now and nobody else owns it.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        // Of an image most is zeros, which take no memory where they are not written.
        sparse::write(&file, bytes, PAGE)
            .and_then(|()| file.set_len(size))
            .map_err(|error| DiskError::Open(path(), error))?;
        Ok(Self {
            file: Arc::new(file),
            size,
            read_only: true,
            passing: false,
        })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        read_at(&self.file, to, at)
    }

    fn write(&mut self, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        write_at(&self.file, from, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        zero_at(&self.file, at, len, unmap)
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn place(&mut self, at: u64, _: u64, _: bool) -> Option<(&File, u64)> {
        Some((&self.file, at))
    }

    fn layer(&self) -> Option<Layer> {
        let source = || Source {
            file: self.file.clone(),
            written: None,
        };
        self.passing.then(|| Layer {
            size: self.size,
            sources: vec![source()],
        })
    }
}

/// Repeats a system call that moves bytes until all of `len` have moved.
fn transfer(len: usize, mut call: impl FnMut(usize) -> libc::ssize_t) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match usize::try_from(call(done)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Reads bytes of a file into memory of our own; what is behind its end is zeros.
pub fn read_padded(file: &File, to: &mut [u8], at: u64) -> io::Result<()> {
    let (mut rest, mut at) = (to, at);
    while !rest.is_empty() {
        match file.read_at(rest, at) {
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(n) => {
                at += n as u64;
                rest = rest.get_mut(n..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn read_at(file: &File, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
    let guard = to.ptr_guard_mut();
    transfer(to.len(), |done| {
        // SAFETY: `done` is below the slice's length, so the pointer and what is left lie in the
        // guest's memory, which the slice keeps mapped; only the kernel writes through it.
        unsafe {
            let to_ptr = guard.as_ptr().add(done).cast();
            libc::pread(
                file.as_raw_fd(),
                to_ptr,
                to.len() - done,
                (at + done as u64) as i64,
            )
        }
    })
}

pub(super) fn write_at(file: &File, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
    let guard = from.ptr_guard();
    transfer(from.len(), |done| {
        // SAFETY: as in `read_at`; only the kernel reads through it.
        unsafe {
            let from_ptr = guard.as_ptr().add(done).cast();
            libc::pwrite(
                file.as_raw_fd(),
                from_ptr,
                from.len() - done,
                (at + done as u64) as i64,
            )
        }
    })
}

pub(super) fn zero_at(file: &File, at: u64, len: u64, unmap: bool) -> io::Result<()> {
    let mode = if unmap {
        libc::FALLOC_FL_PUNCH_HOLE
    } else {
        libc::FALLOC_FL_ZERO_RANGE
    };
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call touches no memory of ours.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64, len as i64) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return Err(error);
    }
    // The file system cannot (tmpfs has no ZERO_RANGE): zeros are written.
    let zeros = [0; ZEROS as usize];
    let mut next = at;
    while next < at + len {
        let n = (at + len - next).min(ZEROS);
        let chunk = zeros.get(..n as usize).unwrap_or_default();
        file.write_all_at(chunk, next)?;
        next += n;
    }
    Ok(())
}
