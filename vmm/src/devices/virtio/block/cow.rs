//! A layer over a disk that stays as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::disk::{Disk, DiskError, blank, read_at, write_at, zero_at};
use crate::snapshot::layer::{CLUSTER, Layer, Source, Written};

/// A layer that takes what is written over a base that stays as it is, and that goes with the
/// process. A cluster is copied up when a part of it is written; the layer takes no more than the
/// base's size.
pub struct CowDisk {
    base: Box<dyn Disk>,
    layer: Arc<File>,
    written: Written,
}

impl CowDisk {
    /// A fresh layer over `base`, whose storage is an unnamed file in `directory`.
    pub fn new(base: Box<dyn Disk>, directory: &Path) -> Result<Self, DiskError> {
        // As long as the disk: a cluster that is discarded whole is a hole, and not the end.
        let layer = blank(directory, base.size())?;
        let written = Written::none(base.size());
        Ok(Self::over(base, layer, written))
    }

    /// `base` with a layer that is there already; of `written` it is known what is in it.
    pub fn over(base: Box<dyn Disk>, layer: File, written: Written) -> Self {
        Self {
            base,
            layer: Arc::new(layer),
            written,
        }
    }

    fn is_ours(&self, cluster: u64) -> bool {
        self.written.has(cluster)
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

    /// Has in the layer what a cluster keeps of the base when `len` bytes of it are written.
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
            self.written.add(cluster);
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
            self.written.add(cluster);
        }
        Ok(())
    }

    fn place(&mut self, at: u64, len: u64, write: bool) -> Option<(&File, u64)> {
        let clusters = || Self::pieces(at, len).map(|(cluster, ..)| self.is_ours(cluster));
        if clusters().all(|ours| ours) {
            return Some((&self.layer, at));
        }
        let is_base = !write && clusters().all(|ours| !ours);
        is_base.then(|| self.base.place(at, len, false)).flatten()
    }

    fn layer(&self) -> Option<Layer> {
        let below = self.base.layer().map(|layer| layer.sources);
        let own = Source {
            file: self.layer.clone(),
            written: Some(self.written.clone()),
        };
        Some(Layer {
            size: self.size(),
            sources: [own].into_iter().chain(below.unwrap_or_default()).collect(),
        })
    }
}
