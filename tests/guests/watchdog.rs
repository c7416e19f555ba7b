//! Devices whose drivers Debian 13's kernel has and 12's has not: the watchdog, and the machine's
//! generation.

use peapod_tests::{Manifest, Vm, image};

use super::BOOT;

/// Prints the machine's generation, which is at a place of the BIOS's area that only a driver knows.
const GENERATION: &str = "echo generation $(busybox dd if=/dev/mem bs=4096 skip=239 count=1 \
    2> /dev/null | busybox head -c 16 | busybox hexdump -e '16/1 \"%02x\"')\n";

/// A VM with Debian 13's kernel and a watchdog.
fn run(directory: &std::path::Path, action: &str, script: &str) -> Vm {
    let manifest = Manifest::new("watched", script)
        .watchdog(action)
        .write(directory);
    let (kernel, initramfs) = (image("vmlinuz-13"), image("initramfs-13.cpio"));
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--initramfs",
        initramfs.to_str().unwrap(),
    ];
    Vm::run(&manifest, arguments)
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
