//! What a guest finds where a PC's firmware starts: a reset, and nothing else.
//!
//! Linux takes hardware-reduced ACPI for a sign of EFI, and a reboot without EFI then ends in a
//! jump to the BIOS (arch/x86/kernel/reboot.c, `reboot_init` and `BOOT_BIOS`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where a processor starts in real mode: f000:fff0.
const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// `mov al, 0xfe; out 0x64, al`, the keyboard controller's reset line; then `hlt` for ever.
const CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Writes it. The map of memory has to reserve the place.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, RESET_VECTOR)
}
