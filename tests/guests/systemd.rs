//! A root with systemd: handed over to it, with the agent as a service. One of the slow family
//! of systemd boots; the rest are in `make test-all`.

use std::process::Command;
use std::time::Duration;

use peapod_tests::{Manifest, Vm, image};

use super::BOOT;

#[test]
fn a_systemd_root_runs_its_user_data_and_stops_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    let copied = Command::new("cp")
        .args(["--sparse=always", "--dereference"])
        .arg(image("systemd.ext4"))
        .arg(&root)
        .status()
        .unwrap();
    assert!(copied.success());
    let script = "cat /proc/1/comm; echo user-data-ran\n";
    let manifest = Manifest::new("systemd", script)
        .cores(2)
        .root(&root)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("user-data-ran", 1, 2 * BOOT);
    vm.wait_log("ready", Duration::from_secs(60));
    let console = vm.console();
    assert!(console.contains("systemd"), "{console}");
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0, "{}", vm.log());
}
