//! What a guest wrote is there, and what it may not keep is not.

use std::fs::File;
use std::path::Path;

use peapod_tests::{Manifest, Vm};

use super::BOOT;

/// A disk of zeroes.
pub fn empty_disk(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_disk_that_another_vm_writes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.img");
    empty_disk(&disk, 1 << 20);
    let first = Manifest::new("one", "sleep 600\n")
        .disk("data", &disk)
        .write(directory.path());
    let second = Manifest::new("two", "true\n")
        .disk("data", &disk)
        .write(directory.path());
    let vm = Vm::run(&first, [""; 0]);
    vm.wait_console("peapod-agent: userspace", 1, BOOT);
    let mut refused = Vm::run(&second, [""; 0]);
    assert_eq!(refused.wait(BOOT), 2, "{}", refused.log());
    assert!(refused.log().contains("data.img"), "{}", refused.log());
}

#[test]
fn a_container_disk_is_fresh_at_every_start() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ls /root/mark 2>/dev/null && echo mark-was-there; touch /root/mark; sync; echo marked; busybox poweroff\n";
    let manifest = Manifest::new("fresh", script).write(directory.path());
    for _ in 0..2 {
        let mut vm = Vm::run(&manifest, [""; 0]);
        assert_eq!(vm.wait(BOOT), 0, "{}", vm.log());
        let console = vm.console();
        assert!(console.contains("marked"), "{console}");
        assert!(!console.contains("mark-was-there"), "{console}");
    }
}
