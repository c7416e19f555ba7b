//! The PVH entry (Xen's `hvm_start_info`): what the kernel finds at its first instruction.
//!
//! Source: xen/include/public/arch-x86/hvm/start_info.h; docs/misc/pvh.pandoc for the registers.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::acpi;
use super::start::{self, Piece, StartError, StartWith};

/// The start info; the module list and the memory map lie behind it.
pub const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULES: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;
const MAGIC: u32 = 0x336e_c578;

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

/// Writes the start info and what it points to. The kernel starts with its address,
/// [`START_INFO`], in `ebx`.
pub fn write(memory: &GuestMemoryMmap, start: &StartWith<'_>) -> Result<(), StartError> {
    start.write_cmdline(memory)?;
    let map: Vec<_> = start.memory_map().into_iter().map(MapEntry::from).collect();
    for (i, entry) in map.iter().enumerate() {
        let at = MEMORY_MAP + (i * size_of::<MapEntry>()) as u64;
        memory.write_obj(*entry, GuestAddress(at))?;
    }
    let mut info = StartInfo {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: start::CMDLINE.0,
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

impl From<Piece> for MapEntry {
    fn from(piece: Piece) -> Self {
        Self {
            addr: piece.base,
            size: piece.len,
            kind: piece.kind as u32,
            reserved: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_info_leads_to_what_there_is_and_to_nothing_else() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let start = StartWith {
            cmdline: "quiet",
            initramfs: None,
            ram: &[(0, 1 << 20)],
            ecam: (0, 0),
        };
        write(&memory, &start).unwrap();
        let info: StartInfo = memory.read_obj(START_INFO).unwrap();
        assert_eq!(
            (info.magic, info.nr_modules, info.rsdp_paddr),
            (MAGIC, 0, acpi::RSDP.0)
        );
        let mut cmdline = [0; 6];
        let at = GuestAddress(info.cmdline_paddr);
        memory.read_slice(&mut cmdline, at).unwrap();
        assert_eq!(&cmdline, b"quiet\0");
    }
}
