//! What a block device reads and writes: a raw image, or a layer over one that is thrown away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::VolatileSlice;

use super::lock;

/// A sector, the unit of every length and place on a disk.
pub const SECTOR: u64 = 512;
const CLUSTER: u64 = 64 << 10;

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
}

/// A raw image or a block device.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    read_only: bool,
}

impl RawDisk {
    /// Opens and locks the image at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Open(path.to_owned(), error);
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
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
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(DiskError::Size(path.to_owned(), size));
        }
        match lock::lock(&file, read_only) {
            Ok(true) => Ok(Self {
                file,
                size,
                read_only,
            }),
            Ok(false) => Err(DiskError::InUse(path.to_owned())),
            Err(error) => Err(failed(error)),
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
        file.write_all_at(bytes, 0)
            .and_then(|()| file.set_len(size))
            .map_err(|error| DiskError::Open(path(), error))?;
        Ok(Self {
            file,
            size,
            read_only: true,
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
}

/// A layer that takes what is written over a base that stays as it is, and that goes with the
/// process. A cluster is copied up when a part of it is written.
#[derive(Debug)]
pub struct CowDisk {
    base: RawDisk,
    layer: File,
    written: Vec<bool>,
}

impl CowDisk {
    /// A fresh layer over `base`, whose storage is an unnamed file in `directory`.
    pub fn new(base: RawDisk, directory: &Path) -> Result<Self, DiskError> {
        let layer = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(directory)
            .map_err(|error| DiskError::Open(directory.to_owned(), error))?;
        let clusters = usize::try_from(base.size.div_ceil(CLUSTER)).unwrap_or(usize::MAX);
        Ok(Self {
            base,
            layer,
            written: vec![false; clusters],
        })
    }

    /// The pieces of `at..at + len` by cluster: cluster, place, length, and whether it is ours.
    fn pieces(&self, at: u64, len: u64) -> Vec<(usize, u64, u64, bool)> {
        let mut pieces = Vec::new();
        let mut next = at;
        while next < at + len {
            let cluster = next / CLUSTER;
            let end = ((cluster + 1) * CLUSTER).min(at + len);
            let index = usize::try_from(cluster).unwrap_or(usize::MAX);
            let ours = self.written.get(index).copied().unwrap_or(false);
            pieces.push((index, next, end - next, ours));
            next = end;
        }
        pieces
    }

    /// Makes a cluster ours before `len` bytes of it at `at` are written.
    fn copy_up(&mut self, cluster: usize, at: u64, len: u64) -> io::Result<()> {
        let start = at / CLUSTER * CLUSTER;
        let whole = CLUSTER.min(self.base.size - start);
        if len < whole {
            let mut buffer = vec![0; usize::try_from(whole).map_err(io::Error::other)?];
            self.base.file.read_exact_at(&mut buffer, start)?;
            self.layer.write_all_at(&buffer, start)?;
        }
        if let Some(written) = self.written.get_mut(cluster) {
            *written = true;
        }
        Ok(())
    }
}

fn part<'a>(slice: &VolatileSlice<'a>, from: u64, len: u64) -> io::Result<VolatileSlice<'a>> {
    slice
        .subslice(from as usize, len as usize)
        .map_err(io::Error::other)
}

impl Disk for CowDisk {
    fn size(&self) -> u64 {
        self.base.size
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&mut self, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        for (_, place, len, ours) in self.pieces(at, to.len() as u64) {
            let file = if ours { &self.layer } else { &self.base.file };
            read_at(file, &part(to, place - at, len)?, place)?;
        }
        Ok(())
    }

    fn write(&mut self, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        for (cluster, place, len, ours) in self.pieces(at, from.len() as u64) {
            if !ours {
                self.copy_up(cluster, place, len)?;
            }
            write_at(&self.layer, &part(from, place - at, len)?, place)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // The layer does not outlive the process, so there is nothing to make stable.
        Ok(())
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        for (cluster, place, len, ours) in self.pieces(at, len) {
            if !ours {
                self.copy_up(cluster, place, len)?;
            }
            zero_at(&self.layer, place, len, unmap)?;
        }
        Ok(())
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

fn read_at(file: &File, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
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

fn write_at(file: &File, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
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

fn zero_at(file: &File, at: u64, len: u64, unmap: bool) -> io::Result<()> {
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
    let zeros = [0; CLUSTER as usize];
    let mut next = at;
    while next < at + len {
        let n = (at + len - next).min(CLUSTER);
        let chunk = zeros.get(..n as usize).unwrap_or_default();
        file.write_all_at(chunk, next)?;
        next += n;
    }
    Ok(())
}
