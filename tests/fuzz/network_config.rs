//! A seed's network-config, for each of the renderers.
#![no_main]

use guest_agent::os::CloudInit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for renderer in ["netplan", "networkd", "network-manager", "eni"] {
        let Ok((files, _)) =
            guest_agent::netconfig::render("network-config", &text, renderer, CloudInit::default())
        else {
            return;
        };
        // None leaves its folder, whatever a link is called.
        let mut parts = files.iter().flat_map(|(path, _)| path.components());
        assert!(parts.all(|part| part != std::path::Component::ParentDir));
    }
});
