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
    // Once the set-up is over the agent goes, and only the power button is left to ask by.
    let script = "cat /proc/1/comm; udevadm info --query property /sys/class/net/eth0\n\
        (until [ -e /run/cloud-init/result.json ]; do sleep 1; done; sleep 5\n\
        systemctl stop peapod-agent; echo agent-gone >/dev/console) &\n\
        echo user-data-ran\n";
    let manifest = Manifest::new("systemd", script)
        .cores(2)
        .root(&root)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("user-data-ran", 1, 2 * BOOT);
    vm.wait_log("ready", Duration::from_secs(60));
    let console = vm.console();
    assert!(console.contains("systemd"), "{console}");
    assert!(console.contains("ID_NET_NAME_PATH=enp1s0"), "{console}");
    vm.wait_console("agent-gone", 1, BOOT);
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0, "{}", vm.log());
}
