//! A root with systemd: handed over to it, with the agent as a service. One of the slow family
//! of systemd boots; the rest are in `make test-all`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use peapod_tests::{Manifest, Vm, image, peapod};

use super::{BOOT, SOON, life};

fn copy(name: &str, root: &Path) {
    let copied = Command::new("cp")
        .args(["--sparse=always", "--dereference"])
        .arg(image(name))
        .arg(root)
        .status()
        .unwrap();
    assert!(copied.success());
}

/// Makes a disk larger than what is on it. Its size before.
fn grow(disk: &Path) -> u64 {
    let disk = File::options().write(true).open(disk).unwrap();
    let small = disk.metadata().unwrap().len();
    disk.set_len(small + (1 << 30)).unwrap();
    small
}

/// What the user-data of a VM that is ready has said. The console may have lost some of it to the
/// getty that started meanwhile and emptied the line.
fn said(name: &str) -> String {
    life::said(&["exec", name, "--", "cat", "/var/log/cloud-init-output.log"])
}

/// With two cores, written beside its root.
fn manifest(name: &str, script: &str, root: &Path) -> PathBuf {
    let manifest = Manifest::new(name, script).cores(2).root(root);
    manifest.write(root.parent().unwrap())
}

/// A disk with its own kernel, initramfs, systemd, netplan and cloud-init, which has never heard of
/// an agent.
#[test]
fn the_agent_goes_into_a_disk_and_does_what_its_cloud_init_would() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    copy("debian.img", &root);
    let small = grow(&root);
    let script = "echo init-is-$(cat /proc/1/comm); echo cloud-init-is-$(systemctl is-active cloud-init)\n\
        echo grown-to $(cat /sys/class/block/vda2/size) $(stat -f -c '%b %S' /)\n\
        until ip -br -4 addr show enp1s0 | grep 10.0.2.2/24; do sleep 0.5; done\n\
        echo failed-units-$(systemctl --failed --no-legend --plain | wc -l)\n\
        echo user-data-ran\n";
    let manifest = manifest("debian", script, &root);
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_log("ready", 3 * BOOT);
    let (said, log) = (said("debian"), vm.log());
    for line in [
        "init-is-systemd",
        "cloud-init-is-inactive",
        "failed-units-0",
        "user-data-ran",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let sizes = said.lines().find_map(|line| line.split_once("grown-to "));
    let words = sizes.unwrap().1.split_whitespace();
    let sizes: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    assert!(
        sizes[0] * 512 > small,
        "the partition has not grown: {sizes:?}"
    );
    assert!(
        sizes[1] * sizes[2] > small,
        "the file system has not grown: {sizes:?}"
    );
    assert!(
        log.contains("with the agent in cloud-init's place"),
        "{log}"
    );
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}

/// What one of the two has done once for an instance the other does not do again.
#[test]
#[ignore = "slow: make test-all"]
fn without_the_agent_the_disks_cloud_init_reads_the_same_seed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    copy("debian.img", &root);
    let script = "echo user-data-ran >/dev/console; echo ran >>/root/ran\n";
    // Another name than its neighbour's, which is asked by it.
    let manifest = manifest("by-cloud-init", script, &root);
    let mut vm = Vm::run(&manifest, ["--agent", "off"]);
    vm.wait_console("user-data-ran", 1, 4 * BOOT);
    vm.wait_console("Cloud-init v. 22", 1, BOOT);
    assert!(vm.log().contains("without the agent: --agent off"));
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_log("ready", 2 * BOOT);
    assert!(!vm.console().contains("user-data-ran"));
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}

/// Installs the package of `make deb` in cloud-init's place, in the root that is a disk's second
/// partition.
fn install_package(disk: &Path) {
    let package = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/peapod-agent_",
        env!("CARGO_PKG_VERSION"),
        "_amd64.deb"
    );
    assert!(Path::new(package).exists(), "no {package}: run ci/deb");
    let script = "modprobe loop; start=$(partx -go START -n 2 \"$1\"); mkdir \"$3\"
        mount -o loop,offset=$((start * 512)) \"$1\" \"$3\"
        dpkg --root=\"$3\" --remove cloud-init; dpkg --root=\"$3\" -i \"$2\"; umount \"$3\"";
    let installed = Command::new("sh")
        .args(["-exc", script, "sh"])
        .arg(disk)
        .arg(package)
        .arg(disk.with_extension("mounted"))
        .status();
    assert!(installed.unwrap().success());
}

/// A guest that no agent is put into has the one that is installed in it.
#[test]
#[ignore = "slow: make test-all"]
fn the_package_s_agent_serves_where_none_is_put_in_and_once_an_instance() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    copy("debian.img", &root);
    install_package(&root);
    let manifest = manifest("package", "echo ran >>/root/ran\n", &root);
    let mut vm = Vm::run(&manifest, ["--agent", "off"]);
    let served = "the agent speaks as a service";
    vm.wait_log(served, BOOT);
    vm.wait_log("the guest is ready after", BOOT);
    let sh = |script: &str| life::said(&["exec", "package", "--", "sh", "-c", script]);
    assert_eq!(sh("cat /root/ran"), "ran\n");
    let program = sh("readlink /proc/$(systemctl show -P MainPID peapod-agent)/exe");
    assert_eq!(program, "/usr/sbin/peapod-agent\n");
    sh("systemd-run --on-active=1 systemctl reboot");
    vm.wait_log_count(served, 2, BOOT);
    let both = sh("cat /root/ran; cloud-init status --wait; ls /var/lib/cloud/instances");
    assert!(both.starts_with("ran\nstatus: done\n"), "{both}");
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}

#[test]
fn a_systemd_root_runs_its_user_data_and_stops_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    copy("systemd.ext4", &root);
    let script = "cat /proc/1/comm; udevadm info --query property /sys/class/net/eth0\n\
        echo user-data-ran\n";
    let manifest = manifest("systemd", script, &root);
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_log("ready", 3 * BOOT);
    let said = said("systemd");
    for line in ["systemd", "ID_NET_NAME_PATH=enp1s0", "user-data-ran"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // It is killed while the file systems stand still, and only the power button is left to ask by.
    let frozen = Command::new(peapod()).args(["freeze", "systemd"]).status();
    assert!(frozen.unwrap().success());
    // Often, for the getty may start just now.
    let kill = "kill -KILL $PPID; echo written >/root/written; sync\n\
        for i in 1 2 3 4 5; do echo agent-gone >/dev/console; sleep 1; done";
    let mut killer = Command::new(peapod())
        .args(["exec", "systemd", "--", "sh", "-c", kill])
        .spawn()
        .unwrap();
    vm.wait_console("agent-gone", 1, SOON);
    killer.wait().unwrap();
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}
