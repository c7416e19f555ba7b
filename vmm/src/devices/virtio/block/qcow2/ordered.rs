//! The order in which an image's tables reach the disk.
//!
//! imago writes an entry of the L1 table at once, and the refcount of the L2 table that it points
//! to with the next flush; a process that is killed in between leaves a table that belongs to
//! nobody, and whoever opens the image next may give its place away. Here an L1 entry waits until
//! what it points to, and that thing's refcount, are on stable storage. For the rest imago keeps
//! the order, and this makes of it one that a power cut does not change: refcounts and L2 tables
//! are not written after one another without the first being on stable storage.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

/// Where an image's tables lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) cluster: u64,
    /// First byte and length.
    pub(super) l1: (u64, u64),
    pub(super) refcounts: (u64, u64),
    /// The clusters that these point to.
    pub(super) l2_tables: BTreeSet<u64>,
    pub(super) refcount_blocks: BTreeSet<u64>,
}

/// The part of an entry that is a place in the file (bits 9 to 55).
pub(super) const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    L1,
    L2,
    RefcountBlock,
    /// The table of refcount blocks, seldom written.
    RefcountTable,
    /// The cluster with the header, as seldom.
    Header,
    Other,
}

#[derive(Debug, Default)]
struct State {
    layout: Layout,
    /// L1 entries that wait, by their place.
    waiting: BTreeMap<u64, [u8; 8]>,
    /// What was written since the last sync, where it matters.
    unsynced: Option<Kind>,
}

impl State {
    fn kind(&self, at: u64) -> Kind {
        let within = |(start, len): (u64, u64)| at >= start && at - start < len;
        let cluster = at - at % self.layout.cluster.max(1);
        if within(self.layout.l1) {
            Kind::L1
        } else if within(self.layout.refcounts) {
            Kind::RefcountTable
        } else if cluster == 0 {
            Kind::Header
        } else if self.layout.refcount_blocks.contains(&cluster) {
            Kind::RefcountBlock
        } else if self.layout.l2_tables.contains(&cluster) {
            Kind::L2
        } else {
            Kind::Other
        }
    }
}

/// An image's file, written in order.
#[derive(Debug)]
pub(super) struct Ordered<S> {
    file: S,
    state: Mutex<State>,
    direct: Option<Direct>,
}

/// The same file, for whoever reads and writes it past imago.
#[derive(Debug)]
pub(super) struct Direct {
    file: fs::File,
    /// It is at least so long.
    end: AtomicU64,
}

impl Direct {
    /// `file`, which is `end` bytes long.
    pub(super) fn new(file: fs::File, end: u64) -> Self {
        let end = AtomicU64::new(end);
        Self { file, end }
    }

    /// Whether it is at least so long; behind its end an image has zeros.
    fn reaches(&self, end: u64) -> bool {
        if self.end.load(Ordering::Relaxed) < end {
            // A block device's is 0 here, and what it was at first goes on.
            let now = self.file.metadata().map_or(0, |metadata| metadata.len());
            self.end.fetch_max(now, Ordering::Relaxed);
        }
        self.end.load(Ordering::Relaxed) >= end
    }
}

impl<S: Storage> Ordered<S> {
    pub(super) fn new(file: S, layout: Layout, direct: Option<Direct>) -> Self {
        let state = State {
            layout,
            ..State::default()
        };
        Self {
            file,
            state: Mutex::new(state),
            direct,
        }
    }

    /// The file, where `len` bytes of the guest's at `at` may be read past imago, or written if `write`:
    /// there are so many, for imago is to know where the file ends, and none that is written is a
    /// table's.
    pub(super) fn direct(&self, at: u64, len: u64, write: bool) -> Option<&fs::File> {
        let direct = self.direct.as_ref()?;
        let end = at.checked_add(len)?;
        let state = self.state();
        let cluster = state.layout.cluster.max(1);
        // An image may say that the guest's bytes lie where its own tables do.
        let is_free = !write
            || (at - at % cluster..end)
                .step_by(usize::try_from(cluster).ok()?)
                .all(|cluster| state.kind(cluster.max(at)) == Kind::Other);
        (is_free && direct.reaches(end)).then_some(&direct.file)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it ended the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was written stable, then writes the L1 entries that waited for it.
    fn settle(&self, state: &mut State) -> io::Result<()> {
        self.file.sync()?;
        state.unsynced = None;
        if state.waiting.is_empty() {
            return Ok(());
        }
        for (at, entry) in &state.waiting {
            // SAFETY: the state is locked, so nobody else writes what is waiting.
            unsafe { self.file.pure_writev(entry[..].into(), *at) }?;
        }
        self.file.sync()?;
        state.waiting.clear();
        Ok(())
    }

    /// What a write to `at` has to wait for; false where it is not to be made now.
    fn before(&self, at: u64, bytes: &[u8]) -> io::Result<bool> {
        let mut state = self.state();
        let kind = state.kind(at);
        let (entries, _) = bytes.as_chunks::<8>();
        let place = |entry: &[u8; 8]| u64::from_be_bytes(*entry) & PLACE;
        match kind {
            Kind::L1 => {
                for (at, entry) in (at..).step_by(8).zip(entries) {
                    state.waiting.insert(at, *entry);
                    state.layout.l2_tables.insert(place(entry));
                }
                return Ok(false);
            }
            Kind::RefcountTable | Kind::Header => {
                self.file.sync()?;
                state.unsynced = None;
                if kind == Kind::RefcountTable {
                    let places = entries.iter().map(place);
                    state.layout.refcount_blocks.extend(places);
                }
            }
            Kind::L2 | Kind::RefcountBlock => {
                if state.unsynced.is_some_and(|written| written != kind) {
                    self.file.sync()?;
                }
                state.unsynced = Some(kind);
            }
            Kind::Other => {}
        }
        Ok(true)
    }
}

impl<S: Storage> Storage for Ordered<S> {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    unsafe fn pure_readv(&self, to: IoVectorMut<'_>, at: u64) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.pure_readv(to, at) }
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, at: u64) -> io::Result<()> {
        let is_table = self.state().kind(at) != Kind::Other;
        if is_table {
            let mut bytes = vec![0; usize::try_from(from.len()).map_err(io::Error::other)?];
            from.copy_into_slice(&mut bytes);
            if !self.before(at, &bytes)? {
                return Ok(());
            }
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.pure_writev(from, at) }
    }

    unsafe fn pure_write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.pure_write_zeroes(at, len) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.pure_write_allocated_zeroes(at, len) }
    }

    unsafe fn pure_discard(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.pure_discard(at, len) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        self.settle(&mut state)
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, size: u64, preallocate: PreallocateMode) -> io::Result<()> {
        self.file.resize(size, preallocate)
    }
}

impl<S: Storage> fmt::Display for Ordered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.file, f)
    }
}
