//! What a guest has written to a disk that goes with its VM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::block::disk::read_padded;

/// A cluster, the unit of what is copied up.
pub const CLUSTER: u64 = 64 << 10;

/// Which clusters are written, a bit each; shared by the disk and whoever saves it.
#[derive(Debug, Clone)]
pub struct Written(Arc<[AtomicU64]>);

impl Written {
    /// None of a disk of `size` bytes.
    pub fn none(size: u64) -> Self {
        let words = size.div_ceil(CLUSTER).div_ceil(64);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// These, of a disk of `size` bytes.
    pub fn these(words: &[u64], size: u64) -> Self {
        let all = Self::none(size);
        for (to, from) in all.0.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        all
    }

    /// Whether that cluster is.
    pub fn has(&self, cluster: u64) -> bool {
        let word = self.word(cluster);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (cluster % 64) != 0)
    }

    /// That cluster is from now on.
    pub fn add(&self, cluster: u64) {
        if let Some(word) = self.word(cluster) {
            word.fetch_or(1 << (cluster % 64), Ordering::Relaxed);
        }
    }

    fn word(&self, cluster: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(cluster / 64).ok()?)
    }

    fn words(&self) -> Vec<u64> {
        self.0.iter().map(|w| w.load(Ordering::Relaxed)).collect()
    }
}

/// A file with clusters in their places; all of them where it is not said which.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub file: Arc<File>,
    /// Which are in it.
    pub written: Option<Written>,
}

/// All that was written to a disk, the last first.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The disk's bytes.
    pub size: u64,
    /// Where a cluster is looked for, one after the other.
    pub sources: Vec<Source>,
}

impl Layer {
    /// The clusters that are in it; `None` for all.
    pub fn written(&self) -> Option<Vec<u64>> {
        let mut all: Option<Vec<u64>> = None;
        for source in &self.sources {
            let words = source.written.as_ref()?.words();
            all = Some(match all {
                None => words,
                Some(all) => all.iter().zip(&words).map(|(a, b)| a | b).collect(),
            });
        }
        all.or(Some(Vec::new()))
    }

    /// The first place from `at` on, a multiple of [`CLUSTER`], where there may be something that is
    /// not zeros; `None` where there is nothing more.
    pub fn next(&self, at: u64) -> Option<u64> {
        let next = self.sources.iter().filter_map(|source| {
            let data = seek_data(&source.file, at)?;
            Some(data / CLUSTER * CLUSTER)
        });
        next.min()
            .map(|next| next.max(at))
            .filter(|next| *next < self.size)
    }

    /// Reads a cluster; nothing, where it is in none of the sources.
    pub fn read(&self, at: u64) -> io::Result<Option<Vec<u8>>> {
        let cluster = at / CLUSTER;
        let has = |source: &&Source| source.written.as_ref().is_none_or(|w| w.has(cluster));
        let Some(source) = self.sources.iter().find(has) else {
            return Ok(None);
        };
        let len = CLUSTER.min(self.size.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        read_padded(&source.file, &mut bytes, at)?;
        Ok(Some(bytes))
    }
}

/// Where a file has data from `at` on, as far as its file system can tell (lseek(2)).
fn seek_data(file: &File, at: u64) -> Option<u64> {
    let at = libc::off_t::try_from(at).ok()?;
    // SAFETY: the call touches no memory of ours; nobody reads from the file's own position.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA) };
    u64::try_from(found).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn source(size: u64, at: u64, bytes: &[u8], written: Option<Written>) -> Source {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(bytes, at).unwrap();
        Source {
            file: Arc::new(file),
            written,
        }
    }

    #[test]
    fn a_cluster_is_the_last_that_was_written_there() {
        let size = 4 * CLUSTER;
        let (first, second) = (Written::none(size), Written::none(size));
        first.add(1);
        first.add(3);
        second.add(1);
        let layer = Layer {
            size,
            sources: vec![
                source(size, CLUSTER, b"new", Some(second)),
                source(size, 3 * CLUSTER, b"old", Some(first)),
            ],
        };
        assert_eq!(layer.written(), Some(vec![0b1010]));
        assert_eq!(layer.read(0).unwrap(), None);
        assert_eq!(layer.read(CLUSTER).unwrap().unwrap()[..3], *b"new");
        assert_eq!(layer.read(3 * CLUSTER).unwrap().unwrap()[..3], *b"old");
        assert_eq!(layer.next(2 * CLUSTER), Some(3 * CLUSTER));
        assert_eq!(layer.next(4 * CLUSTER), None);
    }

    #[test]
    fn a_disk_with_nothing_below_is_written_as_a_whole() {
        let layer = Layer {
            size: CLUSTER + 512,
            sources: vec![source(CLUSTER + 512, CLUSTER, b"end", None)],
        };
        assert_eq!(layer.written(), None);
        assert_eq!(layer.read(CLUSTER).unwrap().unwrap().len(), 512);
    }
}
