//! What a kernel is told whichever way it is entered: its command line, its initramfs, and which
//! memory there is.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::acpi;

/// Where the command line lies.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Linux's COMMAND_LINE_SIZE on x86, its final NUL included.
pub const CMDLINE_MAX: usize = 2048;
/// End of the memory that a PC has below its BIOS and video memory.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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

/// A piece of the guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub base: u64,
    /// Its length.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// What a piece of the guest's addresses is; the number is the BIOS's (E820), which PVH has too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory.
    Ram = 1,
    /// Nothing to be used.
    Reserved = 2,
}

impl StartWith<'_> {
    /// Writes the command line, which lies at [`CMDLINE`].
    pub fn write_cmdline(&self, memory: &GuestMemoryMmap) -> Result<(), StartError> {
        let mut cmdline = self.cmdline.as_bytes().to_vec();
        if cmdline.len() >= CMDLINE_MAX {
            return Err(StartError::CommandLine(cmdline.len()));
        }
        cmdline.push(0);
        Ok(memory.write_slice(&cmdline, CMDLINE)?)
    }

    /// Which memory there is.
    pub fn memory_map(&self) -> Vec<Piece> {
        let piece = |base, len, kind| Piece { base, len, kind };
        let mut map = vec![
            piece(0, LOW_END, Kind::Ram),
            // The RSDP and the tables.
            piece(acpi::RSDP.0, HIGH_START - acpi::RSDP.0, Kind::Reserved),
        ];
        for (base, len) in self.ram {
            let from = (*base).max(HIGH_START);
            map.push(piece(from, (base + len).saturating_sub(from), Kind::Ram));
        }
        map.push(piece(self.ecam.0, self.ecam.1, Kind::Reserved));
        map
    }
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
        let map = start.memory_map();
        let ram = map.iter().filter(|piece| piece.kind == Kind::Ram);
        let ram: u64 = ram.map(|piece| piece.len).sum();
        assert_eq!(ram, (4 << 30) - (HIGH_START - LOW_END));
        let tables = map.iter().find(|piece| piece.base == acpi::RSDP.0).unwrap();
        assert_eq!(tables.kind, Kind::Reserved);
        assert_eq!(tables.base + tables.len, HIGH_START);
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let write = |cmdline| {
            let start = StartWith {
                cmdline,
                initramfs: None,
                ram: &[(0, 1 << 20)],
                ecam: (0, 0),
            };
            start.write_cmdline(&memory)
        };
        let long = "x".repeat(CMDLINE_MAX);
        assert!(matches!(write(&long), Err(StartError::CommandLine(_))));
        assert!(write(&long[1..]).is_ok());
    }
}
