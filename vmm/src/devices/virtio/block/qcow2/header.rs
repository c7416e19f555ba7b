//! What an image's header says before anything of it is read: what cannot be read, by name and
//! with the command that mends it, and the backing file (QEMU's docs/interop/qcow2.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ordered::{Layout, PLACE};

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

/// What matters of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    cluster: u64,
    /// First byte and length.
    l1: (u64, u64),
    refcounts: (u64, u64),
    /// Copies of the tables of refcounts are kept beside this one.
    snapshots: u32,
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
    let mut length = 72;
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
        length = be32(&more, 28);
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
        let places = |(start, len): (u64, u64)| {
            let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
            let mut left = table.as_mut_slice();
            let mut at = start;
            // What is behind the end of the file is zeros.
            while !left.is_empty() {
                match file.read_at(left, at).map_err(|e| e.to_string())? {
                    0 => break,
                    n => {
                        at += n as u64;
                        left = left.get_mut(n..).unwrap_or_default();
                    }
                }
            }
            let (entries, _) = table.as_chunks::<8>();
            let place = |entry: &[u8; 8]| u64::from_be_bytes(*entry) & PLACE;
            Ok::<_, String>(entries.iter().map(place).filter(|at| *at != 0).collect())
        };
        Ok(Layout {
            cluster: self.cluster,
            l1: self.l1,
            refcounts: self.refcounts,
            l2_tables: places(self.l1)?,
            refcount_blocks: places(self.refcounts)?,
        })
    }
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
