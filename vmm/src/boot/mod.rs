//! What is in guest memory before the first instruction: the kernel, its command line and
//! initramfs, and the tables that describe the machine.

pub mod acpi;
pub mod bios;
pub mod entries;
pub mod initramfs;
pub mod kernel;
pub mod linux;
pub mod pvh;
pub mod smbios;
pub mod start;
