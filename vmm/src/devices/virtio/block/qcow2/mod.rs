//! qcow2 images, read and written through imago.
//!
//! An image is hostile: it may name any file of the host as its backing file. One is opened only
//! below the directories that the user named, and never for an image in a container image.

mod header;
mod ordered;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, Storage, StorageOpenOptions,
};
use vm_memory::VolatileSlice;

use super::disk::{self, Disk, DiskError};
pub use header::MAGIC;
use header::{Backing, Header};
use ordered::{Direct, Layout, Ordered};

/// Images that hold each other's rest, at most.
const MAX_CHAIN: usize = 16;
/// What imago is asked for at once: the guest's memory is shared, and it wants slices that are not.
const PIECE: usize = 256 << 10;

/// The backing files that an image may have.
#[derive(Debug, Clone, Copy)]
pub enum BackingFiles<'a> {
    /// None: it is whole, or refused.
    None,
    /// Those below these directories.
    Below(&'a [PathBuf]),
}

/// A file, and where in it.
type Place<'a> = Option<(&'a fs::File, u64)>;

/// A qcow2 image with its backing files, in `S`.
pub struct Qcow2Disk<S: Storage + 'static = File> {
    image: FormatAccess<Ordered<S>>,
    size: u64,
    read_only: bool,
    piece: Vec<u8>,
}

impl Qcow2Disk {
    /// Opens and locks the image at `path` and the backing files that it names and may have.
    pub fn open(
        path: &Path,
        read_only: bool,
        allowed: BackingFiles<'_>,
    ) -> Result<Self, DiskError> {
        let (image, header) = open(path, read_only, allowed, MAX_CHAIN)?;
        Ok(Self {
            size: disk::whole(path, header.size)?,
            image,
            read_only,
            piece: Vec::new(),
        })
    }
}

impl<S: Storage> Qcow2Disk<S> {
    fn write_zeros(&mut self, at: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; PIECE];
        let mut next = at;
        while next < at + len {
            let part = PIECE.min(usize::try_from(at + len - next).unwrap_or(PIECE));
            self.image
                .write(zeros.get(..part).unwrap_or_default(), next)?;
            next += part as u64;
        }
        Ok(())
    }

    /// Fills the bytes from `at`, or has what they are written there if `write`.
    fn transfer(&mut self, bytes: &VolatileSlice<'_>, at: u64, write: bool) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = bytes.offset(done).map_err(io::Error::other)?;
            let (from, image) = (at + done as u64, &self.image);
            let (direct, run) = run(image, from, rest.len() as u64, write)?;
            let most = direct.map_or(PIECE, |_| rest.len()).min(rest.len());
            let len = usize::try_from(run).map_or(most, |run| run.min(most));
            let part = rest.subslice(0, len).map_err(io::Error::other)?;
            match (direct, write) {
                (Some((file, place)), false) => disk::read_at(file, &part, place)?,
                (Some((file, place)), true) => disk::write_at(file, &part, place)?,
                (None, false) => {
                    let piece = room(&mut self.piece, len);
                    image.read(&mut *piece, from)?;
                    part.copy_from(piece);
                }
                (None, true) => {
                    let piece = room(&mut self.piece, len);
                    part.copy_to(piece);
                    image.write(&*piece, from)?;
                }
            }
            done += len;
        }
        Ok(())
    }
}

/// How many of the `len` bytes from `at` lie one behind the other, and where in a file, if they may be
/// read there, or written if `write`, past imago.
fn run<S: Storage>(
    image: &FormatAccess<Ordered<S>>,
    at: u64,
    len: u64,
    write: bool,
) -> io::Result<(Place<'_>, u64)> {
    let (mapping, run) = image.get_mapping(at, len)?;
    let direct = match mapping {
        Mapping::Raw {
            storage,
            offset,
            writable,
            ..
        } if writable || !write => {
            let file = storage.direct(offset, run, write);
            file.map(|file| (file, offset))
        }
        _ => None,
    };
    // Behind the end there is nothing, and the caller knows where that is.
    Ok((direct, if run == 0 { len } else { run }))
}

/// Room for `len` bytes in `piece`, which keeps it.
fn room(piece: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if piece.len() < len {
        piece.resize(len, 0);
    }
    piece.get_mut(..len).unwrap_or_default()
}

fn open(
    path: &Path,
    read_only: bool,
    allowed: BackingFiles<'_>,
    depth: usize,
) -> Result<(FormatAccess<Ordered<File>>, Header), DiskError> {
    let bad = |why: String| DiskError::Image(path.to_owned(), why);
    let failed = |error: io::Error| bad(format!("damaged: {error}"));
    let (file, end) = disk::open(path, read_only)?;
    let header = header::read(&file, path).map_err(bad)?;
    let backing = match &header.backing {
        None => None,
        Some(_) if depth == 0 => {
            return Err(bad(format!("has more than {MAX_CHAIN} backing files")));
        }
        Some(backing) => {
            let below = find(path, backing, allowed).map_err(bad)?;
            Some(open_backing(&below, backing, allowed, depth - 1)?)
        }
    };
    let layout = match read_only {
        true => Layout::default(),
        false => header.layout(&file, path).map_err(bad)?,
    };
    let options = StorageOpenOptions::new().write(!read_only);
    let file = storage(file, end, options, layout).map_err(failed)?;
    let image = Qcow2::<Ordered<File>>::builder(file)
        .write(!read_only)
        .backing(backing)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(failed)?;
    Ok((FormatAccess::new(image), header))
}

/// An image's file, of `end` bytes, as imago takes it.
fn storage(
    file: fs::File,
    end: u64,
    options: StorageOpenOptions,
    layout: Layout,
) -> io::Result<Ordered<File>> {
    let direct = Direct::new(file.try_clone()?, end);
    let file = File::from_open_file(file, options)?;
    Ok(Ordered::new(file, layout, Some(direct)))
}

fn open_backing(
    path: &Path,
    backing: &Backing,
    allowed: BackingFiles<'_>,
    depth: usize,
) -> Result<FormatAccess<Ordered<File>>, DiskError> {
    if backing.format.as_deref() == Some("qcow2") {
        return open(path, true, allowed, depth).map(|(image, _)| image);
    }
    let failed = |error| DiskError::Open(path.to_owned(), error);
    let (file, end) = disk::open(path, true)?;
    let options = StorageOpenOptions::new();
    let file = storage(file, end, options, Layout::default()).map_err(failed)?;
    let raw = Raw::builder(file)
        .open(DenyImplicitOpenGate::default())
        .map_err(failed)?;
    Ok(FormatAccess::new(raw))
}

/// The backing file that the image at `path` names, if it may be opened. The error is a sentence
/// without the path.
fn find(path: &Path, backing: &Backing, allowed: BackingFiles<'_>) -> Result<PathBuf, String> {
    let (name, image) = (backing.name.escape_debug().to_string(), path.display());
    let BackingFiles::Below(allowed) = allowed else {
        return Err(format!(
            "has the backing file `{name}`, which is not in the container image: put in one made by `qemu-img convert -O qcow2`"
        ));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    // QEMU takes what is before a colon for a protocol, unless there is a slash before it.
    if let Some((protocol, _)) = backing.name.split_once(':')
        && !protocol.contains('/')
        && protocol != "file"
    {
        return Err(format!(
            "its backing file `{name}` is no file: `qemu-img convert -O qcow2 {image} NEW` makes an image without"
        ));
    }
    let file = backing.name.strip_prefix("file:").unwrap_or(&backing.name);
    if !matches!(backing.format.as_deref(), Some("raw" | "qcow2")) {
        return Err(format!(
            "its backing file `{name}` has {} format: `qemu-img rebase -u -b {name} -F FORMAT {image}` says that it is raw or qcow2",
            backing.format.as_deref().map_or("no", |_| "another"),
        ));
    }
    let found = folder.join(file);
    let found = found
        .canonicalize()
        .map_err(|error| format!("its backing file {}: {error}", found.display()))?;
    let below = |folder: &PathBuf| folder.canonicalize().is_ok_and(|f| found.starts_with(f));
    if allowed.iter().any(below) {
        return Ok(found);
    }
    let place = found.parent().unwrap_or(Path::new("/")).display();
    Err(format!(
        "its backing file {} is not opened unless asked for: --backing-dir {place} allows it",
        found.display()
    ))
}

impl<S: Storage> Drop for Qcow2Disk<S> {
    fn drop(&mut self) {
        // imago itself flushes, but does not sync, which is when everything is written.
        if !self.read_only
            && let Err(error) = self.flush()
        {
            tracing::error!("a qcow2 image could not be closed: {error}");
        }
    }
}

impl<S: Storage> Disk for Qcow2Disk<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        self.transfer(to, at, false)
    }

    fn write(&mut self, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        self.transfer(from, at, true)
    }

    fn place(&mut self, at: u64, len: u64, write: bool) -> Option<(&fs::File, u64)> {
        let (direct, run) = run(&self.image, at, len, write).ok()?;
        direct.filter(|_| run >= len)
    }

    fn flush(&mut self) -> io::Result<()> {
        // First imago's tables to the file, then the file to the disk.
        self.image.flush()?;
        self.image.sync()
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = if unmap {
            self.image.discard_to_zero(at, len)
        } else {
            self.image.write_zeroes(at, len)
        };
        match done {
            // Version 2 has no clusters of zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zeros(at, len),
            done => done,
        }
    }
}
