//! A kernel of a disk that somebody made: unpacked by the host or left to unpack itself, and loaded.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use peapod::boot::kernel::{Kernel, Unpacked};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fuzz_target!(|image: &[u8]| {
    let cache = tempfile::tempdir_in("/dev/shm").unwrap();
    for by in [Unpacked::Here, Unpacked::ByItself] {
        let kernel = Kernel::from_image(Path::new("/boot/vmlinuz"), image, cache.path(), by);
        let Ok(kernel) = kernel else { continue };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let _ = kernel.load(&memory);
    }
});
