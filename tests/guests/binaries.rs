//! What both binaries may not contain: they are static, and what the C library would load at run
//! time to look up names and users is not there.

use std::path::PathBuf;
use std::process::Command;

use peapod_tests::peapod;

/// Whatever calls one of these needs shared NSS libraries when it runs.
const FORBIDDEN: [&str; 12] = [
    "getaddrinfo",
    "getnameinfo",
    "gethostbyname",
    "gethostbyname_r",
    "gethostbyname2_r",
    "getpwnam",
    "getpwnam_r",
    "getpwuid",
    "getpwuid_r",
    "getgrnam_r",
    "getgrgid_r",
    "getgrouplist",
];

#[test]
fn neither_binary_asks_the_c_library_for_names_or_users() {
    let agent = std::env::var_os("PEAPOD_AGENT").expect("PEAPOD_AGENT is not set: run `make test`");
    for binary in [peapod(), PathBuf::from(agent)] {
        let output = Command::new("nm")
            .arg(&binary)
            .output()
            .expect("nm (binutils)");
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|l| l.split(' ').next_back())
            .collect();
        assert!(
            names.contains(&"main"),
            "{} has no symbols",
            binary.display()
        );
        for name in FORBIDDEN {
            assert!(!names.contains(&name), "{} has {name}", binary.display());
        }
    }
}

#[test]
fn both_binaries_are_static() {
    let agent = std::env::var_os("PEAPOD_AGENT").unwrap();
    for binary in [peapod(), PathBuf::from(agent)] {
        let output = Command::new("readelf")
            .arg("--program-headers")
            .arg(&binary)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("LOAD") && !text.contains("INTERP"), "{text}");
    }
}
