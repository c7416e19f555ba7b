//! Linux's 64-bit boot protocol: what the kernel finds at its first instruction.
//!
//! Sources: Documentation/arch/x86/boot.rst (64-bit boot protocol), zero-page.rst;
//! arch/x86/include/uapi/asm/bootparam.h.

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::acpi;
use super::start::{self, Piece, StartError, StartWith};

/// The boot parameters, called the zero page, whose address the kernel starts with in `rsi`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The table of segments.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// What the table has: two empty ones, [`CODE`], [`DATA`].
pub const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// The protocol's `__BOOT_CS`: 64-bit code.
pub const CODE: u16 = 0x10;
/// The protocol's `__BOOT_DS`: flat data.
pub const DATA: u16 = 0x18;
/// The uppermost page table.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);

/// GiB that are mapped where they lie: all that the kernel is told of before it has its own tables.
const MAPPED_GIB: u64 = 4;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// Of a page table's entry: present and writable.
const TABLE: u64 = 0x3;
/// The same, and a large page.
const LEAF: u64 = 0x83;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", by which a kernel's header is known.
pub const MAGIC: u32 = 0x5372_6448;
/// A loader that has no number.
const OTHER_LOADER: u8 = 0xff;
/// What a kernel that says nothing is aligned to.
const ALIGNMENT: u32 = 0x100_0000;

/// Writes the boot parameters, the page tables and segments. `header` is the kernel's own.
pub fn write(
    memory: &GuestMemoryMmap,
    start: &StartWith<'_>,
    header: Option<&setup_header>,
) -> Result<(), StartError> {
    start.write_cmdline(memory)?;
    let mut params = boot_params {
        acpi_rsdp_addr: acpi::RSDP.0,
        hdr: header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: MAGIC,
            kernel_alignment: ALIGNMENT,
            loadflags: LOADED_HIGH,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = OTHER_LOADER;
    params.hdr.cmd_line_ptr = start::CMDLINE.0 as u32;
    // Both lie below 4 GiB.
    if let Some((address, size)) = start.initramfs {
        params.hdr.ramdisk_image = address.0 as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    let map = start.memory_map();
    let mut table = params.e820_table;
    for (entry, piece) in table.iter_mut().zip(&map) {
        *entry = e820(piece);
    }
    params.e820_table = table;
    params.e820_entries = map.len().min(table.len()) as u8;
    memory.write_obj(params, ZERO_PAGE)?;
    for (n, segment) in (0..).zip(SEGMENTS) {
        memory.write_obj(segment, GuestAddress(GDT.0 + n * 8))?;
    }
    write_page_tables(memory)
}

fn e820(piece: &Piece) -> boot_e820_entry {
    boot_e820_entry {
        addr: piece.base,
        size: piece.len,
        r#type: piece.kind as u32,
    }
}

/// Every address is mapped to itself, in large pages.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), StartError> {
    let upper = PAGE_TABLES.0 + PAGE;
    let lower = upper + PAGE;
    memory.write_obj(upper | TABLE, PAGE_TABLES)?;
    for gib in 0..MAPPED_GIB {
        let table = lower + gib * PAGE;
        memory.write_obj(table | TABLE, GuestAddress(upper + gib * 8))?;
        for n in 0..ENTRIES {
            let page = (gib * ENTRIES + n) * LARGE_PAGE;
            memory.write_obj(page | LEAF, GuestAddress(table + n * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn start(initramfs: Option<(GuestAddress, u64)>) -> StartWith<'static> {
        StartWith {
            cmdline: "quiet",
            initramfs,
            ram: &[(0, 64 << 20)],
            ecam: (0xe800_0000, 1 << 20),
        }
    }

    #[test]
    fn what_the_kernel_s_own_header_says_is_kept() {
        let memory = memory();
        let own = setup_header {
            header: MAGIC,
            version: 0x20f,
            init_size: 77,
            ..Default::default()
        };
        let initramfs = Some((GuestAddress(0x30_0000), 5));
        write(&memory, &start(initramfs), Some(&own)).unwrap();
        let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
        let header = params.hdr;
        let (version, size, loader) = (header.version, header.init_size, header.type_of_loader);
        assert_eq!((version, size, loader), (0x20f, 77, OTHER_LOADER));
        let (image, size) = (header.ramdisk_image, header.ramdisk_size);
        assert_eq!((image, size), (0x30_0000, 5));
        assert_eq!(params.e820_entries, 4);
        let (rsdp, first) = (params.acpi_rsdp_addr, params.e820_table[2].addr);
        assert_eq!((rsdp, first), (acpi::RSDP.0, 1 << 20));
    }

    #[test]
    fn the_page_tables_map_each_address_of_four_gib_to_itself() {
        let memory = memory();
        write(&memory, &start(None), None).unwrap();
        let entry = |table: u64, n: u64| -> u64 {
            memory
                .read_obj(GuestAddress((table & !0xfff) + n * 8))
                .unwrap()
        };
        for address in [0u64, 0x1000, 0x7fff_ffff, 0xfee0_0000, 0xffff_ffff] {
            let mut table = PAGE_TABLES.0;
            for shift in [39, 30] {
                table = entry(table, address >> shift & 0x1ff);
                assert_eq!(table & 0xfff, TABLE);
            }
            let page = entry(table, address >> 21 & 0x1ff);
            assert_eq!(page & 0xfff, LEAF);
            assert_eq!((page & !0xfff) + (address & 0x1f_ffff), address);
        }
        assert_eq!(entry(PAGE_TABLES.0, 1), 0);
    }
}
