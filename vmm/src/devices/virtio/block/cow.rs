//! A layer over a disk that stays as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::VolatileSlice;

use super::disk::{Disk, DiskError, read_at, unnamed, write_at, zero_at};

const CLUSTER: u64 = 64 << 10;

/// A layer that takes what is written over a base that stays as it is, and that goes with the
/// process. A cluster is copied up when a part of it is written; the layer takes no more than the
/// base's size.
pub struct CowDisk {
    base: Box<dyn Disk>,
    layer: File,
    /// A bit a cluster: what is set is in the layer.
    written: Vec<u64>,
}

impl CowDisk {
    /// A fresh layer over `base`, whose storage is an unnamed file in `directory`.
    pub fn new(base: Box<dyn Disk>, directory: &Path) -> Result<Self, DiskError> {
        let layer = unnamed(directory)?;
        let words = base.size().div_ceil(CLUSTER).div_ceil(64);
        let words = usize::try_from(words).unwrap_or(usize::MAX);
        Ok(Self {
            base,
            layer,
            written: vec![0; words],
        })
    }

    fn is_ours(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / 64).ok();
        let word = word.and_then(|word| self.written.get(word));
        word.is_some_and(|word| word & 1 << (cluster % 64) != 0)
    }

    /// The pieces of `at..at + len` by cluster: cluster, place and length.
    fn pieces(at: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let mut next = at;
        std::iter::from_fn(move || {
            let cluster = next / CLUSTER;
            let place = next;
            next = ((cluster + 1) * CLUSTER).min(at + len);
            (place < next).then(|| (cluster, place, next - place))
        })
    }

    /// Makes a cluster ours before `len` bytes of it are written.
    fn copy_up(&mut self, cluster: u64, len: u64) -> io::Result<()> {
        if self.is_ours(cluster) {
            return Ok(());
        }
        let start = cluster * CLUSTER;
        let whole = CLUSTER.min(self.base.size() - start);
        if len < whole {
            let mut buffer = vec![0; usize::try_from(whole).map_err(io::Error::other)?];
            self.base
                .read(&VolatileSlice::from(buffer.as_mut_slice()), start)?;
            self.layer.write_all_at(&buffer, start)?;
        }
        let word = usize::try_from(cluster / 64).ok();
        if let Some(word) = word.and_then(|word| self.written.get_mut(word)) {
            *word |= 1 << (cluster % 64);
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
        self.base.size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&mut self, to: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        for (cluster, place, len) in Self::pieces(at, to.len() as u64) {
            let to = part(to, place - at, len)?;
            if self.is_ours(cluster) {
                read_at(&self.layer, &to, place)?;
            } else {
                self.base.read(&to, place)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, from: &VolatileSlice<'_>, at: u64) -> io::Result<()> {
        for (cluster, place, len) in Self::pieces(at, from.len() as u64) {
            self.copy_up(cluster, len)?;
            write_at(&self.layer, &part(from, place - at, len)?, place)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // The layer does not outlive the process, so there is nothing to make stable.
        Ok(())
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        for (cluster, place, len) in Self::pieces(at, len) {
            self.copy_up(cluster, len)?;
            zero_at(&self.layer, place, len, unmap)?;
        }
        Ok(())
    }
}
