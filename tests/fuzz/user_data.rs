//! User-data: MIME, gzip, archives, YAML.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = guest_agent::userdata::check("user-data", data);
});
