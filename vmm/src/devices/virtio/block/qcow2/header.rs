//! What an image's header says before anything of it is read: what cannot be read, by name and
//! with the command that mends it, and the backing file (QEMU's docs/interop/qcow2.rst).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ordered::{Layout, PLACE};
use crate::devices::virtio::block::disk::read_padded;

/// The first bytes of an image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// More than this is no disk; less keeps every table that is made for one small.
const MAX_SIZE: u64 = 16 << 40;
const MIN_CLUSTER_BITS: u32 = 9;
const MAX_CLUSTER_BITS: u32 = 21;
/// The longest name of a backing file.
const MAX_NAME: u32 = 1023;
const MAX_EXTENSIONS: usize = 64;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Bits of `incompatible_features`, with what is wrong and what mends it; IMAGE and NEW stand for
/// files.
const INCOMPATIBLE: [(u64, &str, &str); 5] = [
    (
        1 << 1,
        "it is marked corrupt",
        "`qemu-img check -r all IMAGE` repairs it",
    ),
    (
        1 << 0,
        "it was not closed properly (dirty bit)",
        "`qemu-img check -r all IMAGE` repairs it",
    ),
    (
        1 << 2,
        "its data are in another file",
        "`qemu-img convert -O qcow2 IMAGE NEW` makes one file of it",
    ),
    (
        1 << 3,
        "its clusters are compressed with zstd",
        "`qemu-img convert -O qcow2 IMAGE NEW` makes one that can be read",
    ),
    (
        1 << 4,
        "it has extended L2 entries",
        "`qemu-img convert -O qcow2 IMAGE NEW` makes one without",
    ),
];

/// More than this is no table of an image of [`MAX_SIZE`] whose clusters are not tiny.
const MAX_TABLE: u64 = 64 << 20;
/// 64 bits.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// Blocks of refcounts that a sound image lacks before its last, at most.
const MAX_HOLES: usize = 64;

/// What matters of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    cluster: u64,
    /// First byte and length.
    l1: (u64, u64),
    refcounts: (u64, u64),
    /// Copies of the tables of refcounts are kept beside this one.
    snapshots: u32,
    refcount_order: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The file that holds what this image does not, as the image names it.
    pub backing: Option<Backing>,
}

/// A backing file, as an image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// A path, or something else that QEMU can open.
    pub name: String,
    /// `raw`, `qcow2`, ...
    pub format: Option<String>,
}

/// Reads the header of the image at `path`. The error is a sentence for a person, without the
/// path.
pub fn read(file: &File, path: &Path) -> Result<Header, String> {
    let image = path.display().to_string();
    let mend = |what: &str, command: &str| format!("{what}: {}", command.replace("IMAGE", &image));
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "truncated in its header".to_owned(),
        _ => error.to_string(),
    };
    let fields: [u8; 72] = at(file, 0).map_err(cut)?;
    let word = |at| be32(&fields, at);
    let long = |at| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    if !fields.starts_with(&MAGIC) {
        return Err("is no qcow2 image".to_owned());
    }
    let version = word(4);
    if !(2..=3).contains(&version) {
        return Err(mend(
            &format!("is a qcow image of version {version}"),
            "`qemu-img convert -O qcow2 IMAGE NEW` makes one that can be read",
        ));
    }
    if word(32) != 0 {
        return Err(mend(
            "is encrypted",
            "`qemu-img convert` with its secret makes one that is not",
        ));
    }
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&word(20)) {
        return Err("damaged: no cluster has such a size".to_owned());
    }
    let size = long(24);
    if size > MAX_SIZE {
        return Err(format!(
            "its disk of {size} bytes is larger than {} TiB",
            MAX_SIZE >> 40
        ));
    }
    let cluster = 1 << word(20);
    let l1 = (long(40), u64::from(word(36)) * 8);
    let refcounts = (long(48), u64::from(word(56)).saturating_mul(cluster));
    // An L2 table is a cluster of entries of eight bytes.
    let needed = size.div_ceil(cluster).div_ceil(cluster / 8) * 8;
    if l1.1 < needed || l1.1.max(refcounts.1) > MAX_TABLE {
        return Err("damaged: its tables are not of its disk's size".to_owned());
    }
    let (mut length, mut refcount_order) = (72, 4);
    if version == 3 {
        let more: [u8; 32] = at(file, 72).map_err(cut)?;
        let features = u64::from(be32(&more, 0)) << 32 | u64::from(be32(&more, 4));
        for (bit, what, command) in INCOMPATIBLE {
            if features & bit != 0 {
                return Err(mend(what, command));
            }
        }
        let known = INCOMPATIBLE.iter().fold(0, |bits, (bit, ..)| bits | bit);
        if features & !known != 0 {
            return Err(mend(
                &format!("has features that are not known here ({features:#x})"),
                "`qemu-img convert -O qcow2 IMAGE NEW` may make one without",
            ));
        }
        (refcount_order, length) = (be32(&more, 24), be32(&more, 28));
        if refcount_order > MAX_REFCOUNT_ORDER {
            return Err("damaged: no refcount has such a size".to_owned());
        }
    }
    let (offset, named) = (long(8), word(16));
    let backing = if offset == 0 {
        None
    } else if named > MAX_NAME || offset >= 1 << MAX_CLUSTER_BITS {
        return Err("damaged: the name of its backing file is too long".to_owned());
    } else {
        let mut name = vec![0; named as usize];
        file.read_exact_at(&mut name, offset).map_err(cut)?;
        Some(Backing {
            name: String::from_utf8_lossy(&name).into_owned(),
            format: backing_format(file, length.into()).map_err(cut)?,
        })
    };
    Ok(Header {
        cluster,
        l1,
        refcounts,
        snapshots: word(60),
        refcount_order,
        size,
        backing,
    })
}

impl Header {
    /// Where the image's tables lie, to write them in order.
    pub(super) fn layout(&self, file: &File, path: &Path) -> Result<Layout, String> {
        if self.snapshots > 0 {
            return Err(format!(
                "has snapshots, and is only read: `qemu-img convert -O qcow2 {} NEW` makes one of \
                 what is now",
                path.display()
            ));
        }
        let places = |table| -> Result<Vec<u64>, String> {
            let table = bytes(file, table).map_err(|e| e.to_string())?;
            let (entries, _) = table.as_chunks::<8>();
            let place = |entry: &[u8; 8]| u64::from_be_bytes(*entry) & PLACE;
            Ok(entries.iter().map(place).collect())
        };
        let (l2_tables, blocks) = (places(self.l1)?, places(self.refcounts)?);
        let used = |places: &[u64]| places.iter().copied().filter(|at| *at != 0).collect();
        let layout = Layout {
            cluster: self.cluster,
            l1: self.l1,
            refcounts: self.refcounts,
            l2_tables: used(&l2_tables),
            refcount_blocks: used(&blocks),
        };
        let counted = self.all_counted(file, &layout, &blocks);
        if !counted.map_err(|e| e.to_string())? {
            return Err(format!(
                "damaged: its refcounts are wrong: `qemu-img check -r all {}` repairs it",
                path.display()
            ));
        }
        Ok(layout)
    }

    /// Whether every table has a refcount, so that its place is not given to something else, and
    /// the table of refcounts has no large holes, which imago would fill by recursion.
    fn all_counted(&self, file: &File, layout: &Layout, blocks: &[u64]) -> io::Result<bool> {
        let last = blocks.iter().rposition(|at| *at != 0).unwrap_or(0);
        let holes = blocks.iter().take(last).filter(|at| **at == 0).count();
        let cluster = self.cluster;
        let span = |(start, len): (u64, u64)| (start / cluster)..(start + len).div_ceil(cluster);
        let mut tables: BTreeSet<u64> = span(self.l1).chain(span(self.refcounts)).collect();
        tables.insert(0);
        let pointed = layout.l2_tables.iter().chain(&layout.refcount_blocks);
        tables.extend(pointed.map(|at| at / cluster));
        // Counts of 1 to 64 bits; those of less than a byte begin with its lowest bits.
        let bits = 1u64 << self.refcount_order;
        let counts = cluster * 8 / bits;
        let mut current = (u64::MAX, Vec::new());
        for index in tables {
            let at = usize::try_from(index / counts).ok();
            let block = at.and_then(|at| blocks.get(at)).copied().unwrap_or(0);
            if block == 0 {
                return Ok(false);
            }
            if current.0 != block {
                current = (block, bytes(file, (block, cluster))?);
            }
            let bit = index % counts * bits;
            let (first, len) = ((bit / 8) as usize, bits.div_ceil(8) as usize);
            let mask = if bits < 8 {
                ((1u16 << bits) - 1) << (bit % 8)
            } else {
                0xff
            };
            let count = current.1.get(first..first + len).unwrap_or_default();
            if count.iter().all(|byte| u16::from(*byte) & mask == 0) {
                return Ok(false);
            }
        }
        Ok(holes <= MAX_HOLES)
    }
}

/// What lies there; what is behind the end of the file is zeros.
fn bytes(file: &File, (start, len): (u64, u64)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_padded(file, &mut bytes, start)?;
    Ok(bytes)
}

/// The header extension that tells a backing file's format.
fn backing_format(file: &File, mut offset: u64) -> io::Result<Option<String>> {
    for _ in 0..MAX_EXTENSIONS {
        let head: [u8; 8] = match at(file, offset) {
            Ok(head) => head,
            // The header of version 2 may be all that there is.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let (kind, length) = (be32(&head, 0), be32(&head, 4));
        match kind {
            EXTENSION_END => return Ok(None),
            EXTENSION_BACKING_FORMAT if length <= MAX_NAME => {
                let mut name = vec![0; length as usize];
                file.read_exact_at(&mut name, offset + 8)?;
                return Ok(Some(String::from_utf8_lossy(&name).into_owned()));
            }
            _ => offset += 8 + u64::from(length).next_multiple_of(8),
        }
    }
    Ok(None)
}

fn at<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_be_bytes)
}
