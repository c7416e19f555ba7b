//! What a VM that is saved sends, or the main file of a snapshot; there the checksum is right, for else
//! nothing is read behind it. The first byte says which.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use peapod::snapshot::VERSION;
use peapod::snapshot::directory::{Restored, Writer};
use sha2::{Digest, Sha256};

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    if which % 2 == 0 {
        let mut writer = Writer::create(&place.path().join("snapshot")).unwrap();
        if writer.write_all(data).is_ok() {
            let _ = writer.finish();
        }
        return;
    }
    let sum: String = Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut main = format!("peapod snapshot {VERSION} {sum}\n").into_bytes();
    main.extend(data);
    std::fs::write(place.path().join("snapshot"), main).unwrap();
    std::fs::write(place.path().join("memory"), [0; 4]).unwrap();
    std::fs::write(place.path().join("disk-0"), [0; 4]).unwrap();
    if let Ok(restored) = Restored::open(place.path(), true) {
        let _ = (restored.disk("root").is_some(), restored.use_up());
    }
});
