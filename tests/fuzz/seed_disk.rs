//! What a disk's first blocks say of its label.
#![no_main]

use std::io::Cursor;

use guest_agent::seed::label;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // An iso9660's descriptor lies at 32 KiB, where no fuzzer gets by itself.
    let mut disk = data.get(..512).unwrap_or(data).to_vec();
    disk.resize(16 * 2048, 0);
    disk.extend(data.get(512..).unwrap_or_default());
    if let Some(found) = label::read(&mut Cursor::new(&disk)).unwrap() {
        assert!(found.label.chars().count() <= 32);
    }
});
