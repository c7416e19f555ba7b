//! Where the guest's memory lies: RAM from 0, a hole below 4 GiB for devices, the rest above it.

use std::fs::File;

use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// The hole for 32-bit devices; RAM goes on at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole and first address of high RAM.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Where PCI functions' BARs go: from the hole's start up to [`ECAM_START`].
pub const BAR_START: u64 = HOLE_START;
/// PCI configuration space of two buses, a MiB each (PCI Firmware Specification 3.3, MCFG).
pub const ECAM_START: u64 = 0xe800_0000;
/// The last bus: the network card's, behind its bridge.
pub const LAST_BUS: u8 = 1;
/// Length of [`ECAM_START`]'s window.
pub const ECAM_LEN: u64 = 0x10_0000 * (LAST_BUS as u64 + 1);
/// The least memory that a guest may have.
pub const MIN_MEMORY: u64 = 64 << 20;
/// The most.
pub const MAX_MEMORY: u64 = 1 << 40;

const PAGE: u64 = 4096;
/// No processor's physical addresses are longer.
const ADDRESS_BITS: u32 = 52;
const UNRESERVED: libc::c_int = libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// Why a guest cannot have the memory that it was given.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too little, too much, or not whole pages.
    #[error("guest memory of {0} bytes: it must be whole pages between 64 MiB and 1 TiB")]
    Size(u64),
    /// The host has not set so many huge pages aside, or not for us.
    #[error(
        "cannot map {0} bytes of guest memory in huge pages of {kib} KiB: {2}; set more of them aside on \
         the host (/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages), and let the pod have them",
        kib = .1 / 1024
    )]
    HugePages(u64, u64, FromRangesError),
    /// The host has no room for it.
    #[error("cannot map {0} bytes of guest memory: {1}")]
    Map(u64, FromRangesError),
}

/// The pieces of `size` bytes of RAM, as base and length, around the hole.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HOLE_END, size - low));
    }
    ranges
}

/// Where firmware may move a BAR of 64 bits, as base and length: behind all RAM.
pub fn high_bars(memory: &GuestMemoryMmap) -> (u64, u64) {
    let base = HOLE_END.max(memory.last_addr().0 + 1);
    (base, (1 << ADDRESS_BITS) - base)
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// It is fresh, of whatever pages the host has.
    Host,
    /// It is fresh, of huge pages of this size that the host has set aside.
    HugePages(u64),
    /// It is a copy of what a snapshot has, of which a page is taken when it is touched. There the pieces
    /// lie one behind the other.
    Snapshot(&'a File),
}

/// Maps `size` bytes of private memory.
pub fn map(size: u64, origin: Origin<'_>) -> Result<GuestMemoryMmap, MemoryError> {
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) || !size.is_multiple_of(PAGE) {
        return Err(MemoryError::Size(size));
    }
    let failed = |error| match origin {
        Origin::HugePages(page) => MemoryError::HugePages(size, page, error),
        _ => MemoryError::Map(size, error),
    };
    let (mut regions, mut at) = (Vec::new(), 0);
    for (base, len) in ranges(size) {
        let bytes = usize::try_from(len).map_err(|_| MemoryError::Size(size))?;
        let builder =
            MmapRegionBuilder::new(bytes).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let builder = match origin {
            Origin::Host => builder.with_mmap_flags(UNRESERVED | libc::MAP_ANONYMOUS),
            // What is not there is to be known now, and not when the guest touches it.
            Origin::HugePages(page) => builder.with_mmap_flags(huge(page)),
            Origin::Snapshot(file) => {
                let file = file.try_clone().map_err(|error| {
                    failed(FromRangesError::MmapRegion(MmapRegionError::Mmap(error)))
                })?;
                builder
                    .with_mmap_flags(UNRESERVED)
                    .with_file_offset(FileOffset::new(file, at))
            }
        };
        let region = builder.build().map_err(FromRangesError::MmapRegion);
        let region = GuestRegionMmap::new(region.map_err(failed)?, GuestAddress(base));
        // It lies below 2 TiB.
        let region = region.ok_or(MemoryError::Size(size))?;
        advise(&region, libc::MADV_DONTDUMP);
        if matches!(origin, Origin::Host) {
            advise(&region, libc::MADV_HUGEPAGE);
        }
        regions.push(region);
        at += len;
    }
    GuestMemoryMmap::from_regions(regions)
        .map_err(|error| failed(FromRangesError::Collection(error)))
}

/// mmap(2)'s flags for huge pages of that size, a power of two.
fn huge(page: u64) -> libc::c_int {
    let size = (page.ilog2() as libc::c_int) << libc::MAP_HUGE_SHIFT;
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | size
}

/// Tells the host how the guest's memory is used: out of a core dump of ours, and so in mappings that
/// hold nothing else; in huge pages, which many hosts give only to who asks.
fn advise(region: &GuestRegionMmap, advice: libc::c_int) {
    let len = region.len() as usize;
    // SAFETY: the range is the region's own mapping; the advice changes nothing that is in it.
    let failed = unsafe { libc::madvise(region.as_ptr().cast(), len, advice) };
    if failed != 0 {
        tracing::debug!("guest memory: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    /// Whole pages, often near where something changes.
    fn sizes() -> impl Strategy<Value = u64> {
        let edge = prop::sample::select(vec![MIN_MEMORY, HOLE_START, HOLE_END, MAX_MEMORY]);
        let near = (edge, -2..=2_i64).prop_map(|(edge, pages)| {
            let size = edge.saturating_add_signed(pages * PAGE as i64);
            size.clamp(MIN_MEMORY, MAX_MEMORY)
        });
        let any = (MIN_MEMORY / PAGE..=MAX_MEMORY / PAGE).prop_map(|pages| pages * PAGE);
        prop_oneof![near, any]
    }

    proptest! {
        #[test]
        fn ram_goes_round_the_hole_and_keeps_its_size(size in sizes()) {
            let ranges = ranges(size);
            prop_assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), size);
            let mut end = 0;
            for (base, len) in ranges {
                prop_assert!(len > 0 && base >= end);
                end = base + len;
                prop_assert!(end <= HOLE_START || base >= HOLE_END);
            }
        }
    }

    #[test]
    fn huge_pages_that_the_host_has_not_are_missed_at_once() {
        let why = map(MAX_MEMORY, Origin::HugePages(2 << 20)).unwrap_err();
        let why = why.to_string();
        assert!(why.contains("in huge pages of 2048 KiB: "), "{why}");
        assert!(why.contains("/hugepages-2048kB/nr_hugepages"), "{why}");
    }

    #[test]
    fn a_size_that_no_guest_can_have_is_refused() {
        for size in [0, MIN_MEMORY - PAGE, MIN_MEMORY + 1, MAX_MEMORY + PAGE] {
            assert!(
                matches!(map(size, Origin::Host), Err(MemoryError::Size(_))),
                "{size}"
            );
        }
    }

    #[test]
    fn memory_is_mapped_where_it_was_laid_out() {
        let memory = map(HOLE_START + (1 << 20), Origin::Host).unwrap();
        assert_eq!(memory.num_regions(), 2);
        let high = memory.find_region(GuestAddress(HOLE_END)).unwrap();
        assert_eq!(high.len(), 1 << 20);
        assert!(memory.find_region(GuestAddress(HOLE_START)).is_none());
    }

    #[test]
    fn high_bars_go_behind_all_ram() {
        for (size, base) in [(MIN_MEMORY, HOLE_END), (HOLE_START + PAGE, HOLE_END + PAGE)] {
            let (at, len) = high_bars(&map(size, Origin::Host).unwrap());
            assert_eq!((at, at + len), (base, 1 << ADDRESS_BITS));
        }
    }

    #[test]
    fn a_snapshot_s_memory_is_copied_when_it_is_written_and_stays_as_it_is() {
        let file = tempfile::tempfile().unwrap();
        let size = HOLE_START + PAGE;
        file.set_len(size).unwrap();
        file.write_all_at(b"low", 5).unwrap();
        file.write_all_at(b"high", HOLE_START).unwrap();
        let maps = [(); 2].map(|()| map(size, Origin::Snapshot(&file)).unwrap());
        let mut bytes = [0; 4];
        maps[0]
            .read_slice(&mut bytes, GuestAddress(HOLE_END))
            .unwrap();
        assert_eq!(&bytes, b"high");
        maps[0].write_slice(b"mine", GuestAddress(4)).unwrap();
        maps[1].read_slice(&mut bytes, GuestAddress(4)).unwrap();
        assert_eq!(&bytes, b"\0low");
        file.read_exact_at(&mut bytes, 4).unwrap();
        assert_eq!(&bytes, b"\0low");
    }
}
