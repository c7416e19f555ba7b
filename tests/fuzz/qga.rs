//! What a VMM writes to the port of QEMU's guest agent: cut into messages, and each read.
#![no_main]

use guest_agent::qga::{self, Splitter};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut splitter = Splitter::default();
    for byte in bytes {
        if let Some(message) = splitter.push(*byte) {
            let _ = qga::parse(&message);
        }
    }
});
