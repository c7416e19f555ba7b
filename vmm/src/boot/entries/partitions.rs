//! A disk's partitions: GPT (UEFI 2.10, chapter 5), MBR with its logical partitions, or none.

use gpt::disk::LogicalBlockSize;

use super::source::Window;

const SECTOR: u64 = 512;
/// A GPT has 128 entries; this many are read.
const MAX_ENTRIES: u32 = 1024;
const ENTRY: u32 = 128;
/// Logical partitions lie in a chain, which may be a ring.
const MAX_LOGICAL: u32 = 60;
const MBR_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const MBR_PROTECTIVE: u8 = 0xee;
const MBR_ESP: u8 = 0xef;
const MBR_XBOOTLDR: u8 = 0xea;
const GPT_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Discoverable Partitions Specification (UAPI.2).
const GPT_XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";

/// What a partition says that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The EFI system partition.
    Esp,
    /// The extended boot loader partition.
    Xbootldr,
    /// Anything else.
    Other,
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Gpt,
    Mbr,
    /// The disk is one volume.
    None,
}

/// A partition.
#[derive(Clone)]
pub(super) struct Partition {
    /// From 1; 0 for a whole disk.
    pub(super) number: u32,
    pub(super) purpose: Purpose,
    pub(super) window: Window,
}

/// The partitions, in the order of the table. The error says what is wrong with the table.
pub(super) fn read(disk: &Window) -> Result<(Table, Vec<Partition>), String> {
    if disk.peek(SECTOR) == *b"EFI PART" {
        return Ok((Table::Gpt, gpt(disk)?));
    }
    let sector: [u8; 512] = disk.peek(0);
    let entries = mbr_entries(&sector);
    // A file system's own boot sector has the same mark: the entries tell.
    let plausible =
        |entry: &MbrEntry| [0, 0x80].contains(&entry.active) && entry.end() <= disk.len() / SECTOR;
    let used: Vec<_> = entries.iter().filter(|e| e.kind != 0).collect();
    if sector.ends_with(&[0x55, 0xaa]) && !used.is_empty() && used.iter().all(|e| plausible(e)) {
        if used.iter().any(|e| e.kind == MBR_PROTECTIVE) {
            return Err("its GPT is gone: only the protective MBR is there".to_owned());
        }
        return Ok((Table::Mbr, mbr(disk, &entries)));
    }
    let whole = Partition {
        number: 0,
        purpose: Purpose::Other,
        window: disk.clone(),
    };
    Ok((Table::None, vec![whole]))
}

fn gpt(disk: &Window) -> Result<Vec<Partition>, String> {
    let block = LogicalBlockSize::Lb512;
    let damaged = |why: String| format!("its GPT is damaged: {why}");
    let header = gpt::header::read_header_from_arbitrary_device(&mut disk.clone(), block)
        .map_err(|error| damaged(error.to_string()))?;
    // The reader takes these for granted.
    if header.part_size != ENTRY || header.num_parts > MAX_ENTRIES {
        return Err(damaged(format!(
            "{} entries of {} bytes",
            header.num_parts, header.part_size
        )));
    }
    let entries = gpt::partition::file_read_partitions(&mut disk.clone(), &header, block)
        .map_err(|error| damaged(error.to_string()))?;
    let partition = |(number, entry): (u32, gpt::partition::Partition)| {
        let sectors = entry
            .last_lba
            .checked_sub(entry.first_lba)?
            .checked_add(1)?;
        let start = entry.first_lba.checked_mul(SECTOR)?;
        let kind = entry.part_type_guid.guid.to_string();
        Some(Partition {
            number,
            purpose: if kind.eq_ignore_ascii_case(GPT_ESP) {
                Purpose::Esp
            } else if kind.eq_ignore_ascii_case(GPT_XBOOTLDR) {
                Purpose::Xbootldr
            } else {
                Purpose::Other
            },
            window: disk.part(start, sectors.checked_mul(SECTOR)?),
        })
    };
    Ok(entries.into_iter().filter_map(partition).collect())
}

struct MbrEntry {
    active: u8,
    kind: u8,
    first: u64,
    sectors: u64,
}

impl MbrEntry {
    fn end(&self) -> u64 {
        self.first + self.sectors
    }
}

/// The four entries at 446.
fn mbr_entries(sector: &[u8; 512]) -> Vec<MbrEntry> {
    let (entries, _) = sector.get(446..510).unwrap_or_default().as_chunks::<16>();
    let entry = |e: &[u8; 16]| {
        let [
            active,
            _,
            _,
            _,
            kind,
            _,
            _,
            _,
            f0,
            f1,
            f2,
            f3,
            s0,
            s1,
            s2,
            s3,
        ] = *e;
        MbrEntry {
            active,
            kind,
            first: u32::from_le_bytes([f0, f1, f2, f3]).into(),
            sectors: u32::from_le_bytes([s0, s1, s2, s3]).into(),
        }
    };
    entries.iter().map(entry).collect()
}

fn mbr(disk: &Window, entries: &[MbrEntry]) -> Vec<Partition> {
    let partition = |number, base: u64, entry: &MbrEntry| Partition {
        number,
        purpose: match entry.kind {
            MBR_ESP => Purpose::Esp,
            MBR_XBOOTLDR => Purpose::Xbootldr,
            _ => Purpose::Other,
        },
        window: disk.part((base + entry.first) * SECTOR, entry.sectors * SECTOR),
    };
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if MBR_EXTENDED.contains(&entry.kind) {
            // Each table of the chain has a partition, relative to itself, and the next table,
            // relative to the first.
            let mut table = entry.first;
            for logical in 5..5 + MAX_LOGICAL {
                let sector: [u8; 512] = disk.peek(table * SECTOR);
                let entries = mbr_entries(&sector);
                let [this, next, ..] = entries.as_slice() else {
                    break;
                };
                if !sector.ends_with(&[0x55, 0xaa]) || this.kind == 0 {
                    break;
                }
                partitions.push(partition(logical, table, this));
                if !MBR_EXTENDED.contains(&next.kind) {
                    break;
                }
                table = entry.first + next.first;
            }
        } else if entry.kind != 0 {
            partitions.push(partition(number, 0, entry));
        }
    }
    partitions
}
