//! What both binaries may not contain: they are static, and what the C library would load at run
//! time to look up names and users is not there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use peapod_tests::peapod;

/// Whatever of the C library asks for a host, a user or a group begins with this file, and what it
/// loads then is not there.
const FORBIDDEN: &[u8] = b"/etc/nsswitch.conf";
/// The most bytes of the agent, which every guest's initramfs carries.
const AGENT: usize = 4 << 20;

fn agent() -> PathBuf {
    let agent = std::env::var_os("PEAPOD_AGENT");
    agent
        .expect("PEAPOD_AGENT is not set: run `make test`")
        .into()
}

#[test]
fn neither_binary_asks_the_c_library_for_names_or_users() {
    for binary in [peapod(), agent()] {
        let program = fs::read(&binary).unwrap();
        let asks = program.windows(FORBIDDEN.len()).any(|w| w == FORBIDDEN);
        assert!(!asks, "{}", binary.display());
    }
}

#[test]
fn the_agent_is_small() {
    let size = fs::read(agent()).unwrap().len();
    assert!(size <= AGENT, "{size} bytes");
}

#[test]
fn both_binaries_are_static() {
    for binary in [peapod(), agent()] {
        let output = Command::new("readelf")
            .arg("--program-headers")
            .arg(&binary)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("LOAD") && !text.contains("INTERP"), "{text}");
    }
}
