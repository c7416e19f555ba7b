//! A qcow2 image, opened, read and written.
#![no_main]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use peapod::devices::virtio::block::disk::Disk;
use peapod::devices::virtio::block::qcow2::{BackingFiles, Qcow2Disk};
use vm_memory::VolatileSlice;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.write_all(bytes).unwrap();
    let path: &Path = file.path();
    let Ok(mut disk) = Qcow2Disk::open(path, false, BackingFiles::Below(&[])) else {
        return;
    };
    let mut buffer = [1; 2048];
    let slice = VolatileSlice::from(&mut buffer[..]);
    let last = disk.size().saturating_sub(2048);
    for at in [0, 2048.min(last), last] {
        if disk.size() >= 2048 {
            // As a ring would.
            if let Some((file, place)) = disk.place(at, 2048, true) {
                let _ = file.write_all_at(&[2; 2048], place);
            }
            let _ = (disk.read(&slice, at), disk.write(&slice, at));
            let _ = (disk.zero(at, 2048, true), disk.flush());
        }
    }
});
