//! Devices that Debian 13's kernel shows: the watchdog and the machine's generation, whose drivers 12's
//! has not, and the clocks.

use peapod_tests::{Manifest, Vm, image};

use super::BOOT;
use super::life::said;

/// Prints the machine's generation, which is at a place of the BIOS's area that only a driver knows.
const GENERATION: &str = "echo generation $(busybox dd if=/dev/mem bs=4096 skip=239 count=1 \
    2> /dev/null | busybox head -c 16 | busybox hexdump -e '16/1 \"%02x\"')\n";

/// A VM with Debian 13's kernel.
pub fn run_on_13(directory: &std::path::Path, manifest: Manifest) -> Vm {
    let manifest = manifest.write(directory);
    let (kernel, initramfs) = (image("vmlinuz-13"), image("initramfs-13.cpio"));
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--initramfs",
        initramfs.to_str().unwrap(),
    ];
    Vm::run(&manifest, arguments)
}

/// The same with a watchdog.
fn run(directory: &std::path::Path, action: &str, script: &str) -> Vm {
    run_on_13(directory, Manifest::new("watched", script).watchdog(action))
}

#[test]
fn a_guest_that_hangs_is_reset_by_its_watchdog_and_can_tell() {
    let directory = tempfile::tempdir().unwrap();
    // Runs once per instance; the per-boot script at the second boot only.
    let script = format!(
        "{GENERATION}ls -d /sys/bus/*/drivers/vmgenid/PPODVGEN:00\n\
         echo first-status $(cat /sys/class/watchdog/watchdog0/bootstatus)\n\
         mkdir -p /var/lib/cloud/scripts/per-boot\n\
         cat > /var/lib/cloud/scripts/per-boot/x << 'end'\n#!/bin/sh\n{GENERATION}\
         echo second-status $(cat /sys/class/watchdog/watchdog0/bootstatus)\n\
         busybox poweroff\nend\n\
         chmod 755 /var/lib/cloud/scripts/per-boot/x\nsync\n\
         busybox watchdog -F -T 2 -t 600 /dev/watchdog\n"
    );
    let mut vm = run(directory.path(), "reset", &script);
    let status = vm.wait(2 * BOOT);
    let (console, log) = (vm.console(), vm.log());
    assert_eq!(status, 0, "{log}\n{console}");
    assert!(log.contains("did not feed its watchdog"), "{log}");
    for line in [
        "drivers/vmgenid/PPODVGEN:00",
        "first-status 0",
        "second-status 32",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
    let generations: Vec<_> = console
        .lines()
        .filter_map(|line| line.split_once("generation ").map(|(_, is)| is.trim()))
        .collect();
    let [first, second] = generations[..] else {
        panic!("{generations:?}: {console}")
    };
    assert_eq!(first, second, "a reboot is the same generation");
    assert!(first.len() == 32 && first != "0".repeat(32), "{first}");
}

#[test]
fn a_guest_that_hangs_is_switched_off_by_its_watchdog_with_status_5() {
    let directory = tempfile::tempdir().unwrap();
    let script = "busybox watchdog -F -T 2 -t 600 /dev/watchdog\n";
    let mut vm = run(directory.path(), "poweroff", script);
    assert_eq!(vm.wait(BOOT), 5);
    let log = vm.log();
    assert!(
        log.contains("it did not feed its watchdog in time"),
        "{log}"
    );
}

#[test]
#[ignore = "slow: make test-all"]
fn a_guest_that_feeds_its_watchdog_no_more_is_shut_down_by_its_agent_where_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let script = "busybox watchdog -F -T 2 -t 600 /dev/watchdog\n";
    let mut vm = run(directory.path(), "shutdown", script);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    assert!(console.contains("peapod-agent: powering off"), "{console}");
    assert!(vm.log().contains("did not feed its watchdog"));
}

#[test]
fn a_guest_has_kvm_s_clock_and_the_host_s_own_where_that_is_its_counter() {
    const SOURCES: &str = "/sys/devices/system/clocksource/clocksource0";
    let directory = tempfile::tempdir().unwrap();
    let vm = run_on_13(directory.path(), Manifest::new("clocks", "echo up\n"));
    vm.wait_log("ready", BOOT);
    // evdev is what is loaded before ptp_kvm.
    let script = format!(
        "for i in $(busybox seq 300); do busybox grep -q '^evdev ' /proc/modules && break; sleep 0.2; done; sleep 2\n\
         cat {SOURCES}/available_clocksource /sys/class/ptp/*/clock_name"
    );
    let id = vm.pid().to_string();
    let guest = said(&[
        "exec",
        &id,
        "--",
        "sh",
        "-c",
        &format!("({script}) 2>&1; true"),
    ]);
    assert!(guest.contains("kvm-clock"), "{guest}");
    let host = std::fs::read_to_string(format!("{SOURCES}/current_clocksource")).unwrap();
    let has_it = guest.contains("KVM virtual PTP");
    assert_eq!(has_it, host.trim() == "tsc", "host: {host} guest: {guest}");
    let status = said(&["status", &id]);
    assert!(!status.contains("ptp_kvm"), "{status}");
}
