//! How a VM ends, and how it starts again.

use std::process::Command;

use peapod_tests::{FIRST_LINE, Manifest, Vm, peapod};

use super::{BOOT, SOON, shared};

#[test]
fn a_guest_s_poweroff_ends_the_process_with_status_0() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("poweroff", "busybox poweroff\n").write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(BOOT), 0);
}

#[test]
fn a_config_drive_s_user_data_run_as_no_cloud_s_do() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo by-$(cloud-id) for $(hostname)\nbusybox poweroff\n";
    let manifest = Manifest::new("drive", script).write(directory.path());
    let text = std::fs::read_to_string(&manifest).unwrap();
    let text = text.replace("cloudInitNoCloud", "cloudInitConfigDrive");
    std::fs::write(&manifest, text).unwrap();
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    assert!(console.contains("by-configdrive for drive"), "{console}");
}

#[test]
fn a_config_map_is_a_disk_of_files() {
    let directory = tempfile::tempdir().unwrap();
    let script = "busybox mount -t vfat -o ro /dev/vdc /mnt\n\
        ls /mnt; cat /mnt/app-with-a-long-name.conf\nbusybox poweroff\n";
    let manifest = Manifest::new("conf", script).write(directory.path());
    let text = std::fs::read_to_string(&manifest).unwrap();
    let text = format!(
        "{text}  - name: conf\n    configMap: {{name: app}}\n---\napiVersion: v1\n\
         kind: ConfigMap\nmetadata: {{name: app}}\n\
         data: {{app-with-a-long-name.conf: 'answer=42', other: ''}}\n"
    );
    std::fs::write(&manifest, text).unwrap();
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    assert!(console.contains("answer=42"), "{console}");
}

#[test]
fn a_guest_s_reboot_boots_again_in_the_same_process_and_keeps_the_instance() {
    let directory = tempfile::tempdir().unwrap();
    // Runs once per instance; the per-boot script then runs at the second boot only.
    let script = "mkdir -p /var/lib/cloud/scripts/per-boot\n\
        printf '#!/bin/sh\\necho second-boot\\nbusybox poweroff\\n' > /var/lib/cloud/scripts/per-boot/x\n\
        chmod 755 /var/lib/cloud/scripts/per-boot/x\necho first-boot\nbusybox reboot\n";
    let manifest = Manifest::new("reboot", script).write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(2 * BOOT), 0);
    let console = vm.console();
    assert_eq!(console.matches(FIRST_LINE).count(), 2, "{console}");
    assert_eq!(
        console
            .lines()
            .filter(|l| l.trim_end().ends_with("first-boot"))
            .count(),
        1,
        "{console}"
    );
    assert!(console.contains("second-boot"), "{console}");
}

#[test]
fn a_reboot_under_policy_terminate_ends_with_status_3() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("terminate", "busybox reboot\n")
        .reboot_policy("Terminate")
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(BOOT), 3);
}

#[test]
fn sigterm_powers_the_guest_off_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("sigterm", "echo up-now\n").write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("up-now", 1, BOOT);
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(SOON), 0);
}

#[test]
fn a_guest_that_will_not_stop_is_ended_by_force_after_its_grace_period() {
    let directory = tempfile::tempdir().unwrap();
    // SIGSTOP does not reach PID 1, so the kernel itself is stopped, and cannot say so.
    let script = "echo 0 > /proc/sys/kernel/panic\n\
        echo 0000:00:1f.0 > /sys/bus/pci/drivers/pvpanic-pci/unbind\n\
        echo c > /proc/sysrq-trigger\n";
    let manifest = Manifest::new("stuck", script)
        .grace(3)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("Kernel panic", 1, BOOT);
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(SOON), 4);
}

#[test]
fn both_vcpus_are_online_and_the_devices_are_there() {
    assert_eq!(shared::run("nproc"), "2\n");
    let devices = shared::run(
        "ls /sys/bus/virtio/drivers/*/ | grep -c ^virtio[0-9]; cat /sys/class/misc/hw_random/rng_current",
    );
    assert!(devices.ends_with("virtio_rng.0\n"), "{devices}");
    assert!(
        !shared::run("ls -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*").is_empty()
    );
}

/// The lab's processor is an AMD without TOPOEXT, which tells of no threads.
#[test]
fn sockets_and_cores_are_the_guest_s() {
    let directory = tempfile::tempdir().unwrap();
    let script = "cd /sys/devices/system/cpu; for n in 0 1 2 3 4 5; do echo vcpu $n: \
        $(cd cpu$n/topology; cat physical_package_id core_id); done\nbusybox poweroff\n";
    let manifest = Manifest::new("topology", script).topology([2, 3, 1]);
    let mut vm = Vm::run(&manifest.write(directory.path()), [""; 0]);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    for n in 0..6 {
        let line = format!("vcpu {n}: {} {}", n / 3, n % 3);
        assert!(console.contains(&line), "{line}");
    }
}

#[test]
fn the_machine_tells_who_it_is_and_its_card_is_where_kubevirt_s_is() {
    let told = shared::run(
        "cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/chassis_asset_tag; \
         readlink -f /sys/class/net/eth0/device/..",
    );
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines[..2], ["KubeVirt", "rack 7"], "{told}");
    assert!(lines[2].ends_with("0000:00:01.0/0000:01:00.0"), "{told}");
    let uuid = shared::run("cat /sys/class/dmi/id/product_uuid");
    let status = Command::new(peapod())
        .args(["status", &shared::vm().pid().to_string()])
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(uuid.trim()), "{uuid} {status}");
}

#[test]
fn a_kernel_that_panics_ends_the_process_with_status_7_and_its_last_words() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger\n";
    let manifest = Manifest::new("panic", script).write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    assert_eq!(vm.wait(BOOT), 7);
    let log = vm.log();
    assert!(log.contains("Kernel panic - not syncing"), "{log}");
}

#[test]
fn the_agent_tells_that_the_guest_is_ready() {
    shared::run("true");
    shared::vm().wait_log("ready", SOON);
}

#[test]
fn nothing_is_left_behind_by_a_vm_that_ended() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let manifest = Manifest::new("clean", "busybox poweroff\n")
        .port(9111)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, ["--state-dir".as_ref(), state.as_os_str()]);
    assert_eq!(vm.wait(BOOT), 0);
    let left: Vec<_> = std::fs::read_dir(&state)
        .map(|d| d.flatten().collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    assert!(std::net::TcpListener::bind("127.0.0.1:9111").is_ok());
}
