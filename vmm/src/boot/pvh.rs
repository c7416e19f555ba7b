//! The PVH entry (Xen's `hvm_start_info`): what the kernel finds at its first instruction.
//!
//! Source: xen/include/public/arch-x86/hvm/start_info.h; docs/misc/pvh.pandoc for the registers.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::acpi;

/// The start info; the module list and the memory map lie behind it.
pub const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULES: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Linux's COMMAND_LINE_SIZE on x86, its final NUL included.
pub const CMDLINE_MAX: usize = 2048;
const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// End of the memory that a PC has below its BIOS and video memory.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Module {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct MapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

// SAFETY: plain integers without padding, any bytes are a value.
unsafe impl ByteValued for StartInfo {}
// SAFETY: as above.
unsafe impl ByteValued for Module {}
// SAFETY: as above.
unsafe impl ByteValued for MapEntry {}

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PvhError {
    /// A command line that the kernel would cut.
    #[error("the kernel's command line has {0} bytes; the kernel reads {max}", max = CMDLINE_MAX - 1)]
    CommandLine(usize),
    /// Something lies outside the guest's memory.
    #[error("guest memory is too small for what the kernel starts from: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What to tell the kernel.
#[derive(Debug)]
pub struct StartWith<'a> {
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Where the initramfs lies, and its length.
    pub initramfs: Option<(GuestAddress, u64)>,
    /// Base and length of each piece of RAM.
    pub ram: &'a [(u64, u64)],
    /// Base and length of PCI configuration space, which the kernel wants to see reserved.
    pub ecam: (u64, u64),
}

/// Writes the start info and what it points to. The kernel starts with its address,
/// [`START_INFO`], in `ebx`.
pub fn write(memory: &GuestMemoryMmap, start: &StartWith<'_>) -> Result<(), PvhError> {
    let mut cmdline = start.cmdline.as_bytes().to_vec();
    if cmdline.len() >= CMDLINE_MAX {
        return Err(PvhError::CommandLine(cmdline.len()));
    }
    cmdline.push(0);
    memory.write_slice(&cmdline, CMDLINE)?;
    let map = memory_map(start);
    for (i, entry) in map.iter().enumerate() {
        let at = MEMORY_MAP + (i * size_of::<MapEntry>()) as u64;
        memory.write_obj(*entry, GuestAddress(at))?;
    }
    let mut info = StartInfo {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE.0,
        rsdp_paddr: acpi::RSDP.0,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((address, size)) = start.initramfs {
        let module = Module {
            paddr: address.0,
            size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(MODULES))?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
    }
    memory.write_obj(info, START_INFO)?;
    Ok(())
}

fn memory_map(start: &StartWith<'_>) -> Vec<MapEntry> {
    let entry = |addr, size, kind| MapEntry {
        addr,
        size,
        kind,
        reserved: 0,
    };
    let mut map = vec![
        entry(0, LOW_END, RAM),
        // The RSDP and the tables.
        entry(acpi::RSDP.0, HIGH_START - acpi::RSDP.0, RESERVED),
    ];
    for (base, len) in start.ram {
        let from = (*base).max(HIGH_START);
        map.push(entry(from, (base + len).saturating_sub(from), RAM));
    }
    map.push(entry(start.ecam.0, start.ecam.1, RESERVED));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_has_all_ram_but_the_bios_area_and_reserves_the_tables() {
        let start = StartWith {
            cmdline: "",
            initramfs: None,
            ram: &[(0, 0xc000_0000), (1 << 32, 1 << 30)],
            ecam: (0xe800_0000, 1 << 20),
        };
        let map = memory_map(&start);
        let ram: u64 = map.iter().filter(|e| e.kind == RAM).map(|e| e.size).sum();
        assert_eq!(ram, (4 << 30) - (HIGH_START - LOW_END));
        let tables = map.iter().find(|e| e.addr == acpi::RSDP.0).unwrap();
        assert_eq!(tables.kind, RESERVED);
        assert_eq!(tables.addr + tables.size, HIGH_START);
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let start = |cmdline| StartWith {
            cmdline,
            initramfs: None,
            ram: &[(0, 1 << 20)],
            ecam: (0, 0),
        };
        let long = "x".repeat(CMDLINE_MAX);
        assert!(matches!(
            write(&memory, &start(&long)),
            Err(PvhError::CommandLine(_))
        ));
        assert!(write(&memory, &start(&long[1..])).is_ok());
        let info: StartInfo = memory.read_obj(START_INFO).unwrap();
        assert_eq!(
            (info.magic, info.nr_modules, info.rsdp_paddr),
            (MAGIC, 0, acpi::RSDP.0)
        );
    }
}
