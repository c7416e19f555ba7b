//! A guest and a host that do what the bytes say.
#![no_main]

#[path = "../../netdev/tests/hostile/drive.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drive::drive(bytes));
