//! What a guest wrote is there, and what it may not keep is not.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use peapod_tests::{Manifest, Vm, image, overlay};

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
    assert_eq!(refused.wait(BOOT), 2);
    assert!(refused.log().contains("data.img"));
}

#[test]
fn rates_of_a_disk_and_of_the_network_hold_under_the_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.img");
    empty_disk(&disk, 16 << 20);
    let script = "start=$(cut -d. -f1 /proc/uptime)\n\
        busybox dd if=/dev/zero of=/dev/vdb bs=64k count=64 conv=fsync\n\
        echo took $(($(cut -d. -f1 /proc/uptime) - start)) seconds\nbusybox poweroff\n";
    let manifest = Manifest::new("rates", script)
        .disk("data", &disk)
        .write(directory.path());
    let rates = [
        "--disk-rate=data=1Mi",
        "--disk-iops=data=1000",
        "--rate-in=10485760",
        "--rate-out=10485760",
    ];
    let mut vm = Vm::run(&manifest, rates);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    let took = console.lines().find_map(|line| {
        let (_, rest) = line.split_once("took ")?;
        rest.split_once(" seconds")?.0.parse::<u32>().ok()
    });
    // 4 MiB, of which a tenth of a second's worth goes at once.
    assert!(took.is_some_and(|seconds| seconds >= 3), "{console}");
}

#[test]
fn a_container_disk_is_fresh_at_every_start() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ls /root/mark 2>/dev/null && echo mark-was-there; touch /root/mark; sync; echo marked; busybox poweroff\n";
    let manifest = Manifest::new("fresh", script).write(directory.path());
    for _ in 0..2 {
        let mut vm = Vm::run(&manifest, [""; 0]);
        assert_eq!(vm.wait(BOOT), 0);
        let console = vm.console();
        assert!(console.contains("marked"), "{console}");
        assert!(!console.contains("mark-was-there"), "{console}");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

const GRUB: &str = "the disk's `GNU/Linux`, with the agent";

/// Boots the disk by `what` it has itself; the guest says how often it was booted, and does what its
/// user-data ask for where the agent may go into it.
fn boots_its_own_kernel(disk: &Path, options: &[&str], what: &str, times: u32) {
    let directory = disk.parent().unwrap();
    let script = "echo user-data-ran >/dev/console; touch /user-data-ran\n";
    let manifest = Manifest::new("own", script).root(disk).write(directory);
    let mut vm = Vm::run(&manifest, options);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    let said = console.lines().find_map(|l| l.split_once("own kernel: "));
    let (_, said) = said.expect("the guest's init said nothing");
    let mut words = said.split(' ');
    assert!(words.next().unwrap().ends_with("-cloud-amd64"), "{said}");
    assert_eq!(words.next().unwrap(), times.to_string(), "{said}");
    assert!(said.contains(" root=UUID=5ea90d00-"), "{said}");
    let asked = times == 1 && what.contains("with the agent");
    assert_eq!(console.contains("user-data-ran"), asked, "{console}");
    let booting = format!("booting {what}");
    assert!(vm.log().contains(&booting));
}

#[test]
fn a_qcow2_disk_with_a_backing_file_boots_its_own_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, base) = overlay(directory.path(), "grub.qcow2", "qcow2");
    let base = base.to_str().unwrap();
    let options = ["--format", "root=qcow2", "--backing-dir", base];
    boots_its_own_kernel(&disk, &options, GRUB, 1);
    run("qemu-img", &["check", "-q", disk.to_str().unwrap()]);
}

/// By UEFI the same disk is booted in `handler`.
#[test]
fn a_unified_kernel_image_is_booted() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, base) = overlay(directory.path(), "efi.img", "raw");
    let base = base.to_str().unwrap();
    let options = ["--format", "root=qcow2", "--backing-dir", base];
    let image = "the disk's `Debian GNU/Linux 12 (bookworm)`, with the agent";
    boots_its_own_kernel(&disk, &options, image, 1);
}

#[test]
#[ignore = "slow: make test-all"]
fn what_a_guest_wrote_to_a_raw_or_qcow2_disk_is_there_at_its_next_boot() {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("disk.img");
    let from = image("grub.img");
    let copy = ["--sparse=always", "--dereference", from.to_str().unwrap()];
    run("cp", &[&copy[..], &[raw.to_str().unwrap()]].concat());
    let (qcow2, base) = overlay(directory.path(), "grub.qcow2", "qcow2");
    let options = [
        "--format",
        "root=qcow2",
        "--backing-dir",
        base.to_str().unwrap(),
    ];
    for times in 1..=2 {
        boots_its_own_kernel(&raw, &[], GRUB, times);
        boots_its_own_kernel(&qcow2, &options, GRUB, times);
    }
    run("qemu-img", &["check", "-q", qcow2.to_str().unwrap()]);
}

#[test]
#[ignore = "slow: make test-all"]
fn a_guest_is_told_of_a_full_host_and_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let full = directory.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let place = full.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=8M", "none", place]);
    let disk = full.join("data.img");
    empty_disk(&disk, 64 << 20);
    let script = "dd if=/dev/zero of=/dev/vdb bs=1M count=32 conv=fsync 2>&1; \
                  echo dd-ended-$?; dd if=/dev/vdb of=/dev/null bs=1M count=1 && echo still-read; \
                  busybox poweroff\n";
    let manifest = Manifest::new("full", script)
        .disk("data", &disk)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    let status = vm.wait(BOOT);
    run("umount", &["--lazy", place]);
    assert_eq!(status, 0);
    let console = vm.console();
    assert!(console.contains("dd-ended-1"), "{console}");
    assert!(console.contains("still-read"), "{console}");
}

#[test]
fn a_disk_with_a_queue_for_each_cpu_holds_what_each_wrote() {
    each_cpu_writes(|manifest| manifest);
}

#[test]
fn a_disk_whose_file_threads_ask_holds_what_each_cpu_wrote() {
    each_cpu_writes(Manifest::threads);
}

/// Each CPU writes a part of a raw disk by a queue of its own, and another reads it back.
fn each_cpu_writes(also: impl FnOnce(Manifest) -> Manifest) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("raw.img");
    empty_disk(&disk, 32 << 20);
    let script = "echo queues-$(ls /sys/block/vdb/mq | wc -l)\n\
        for i in 0 1 2 3; do dd if=/dev/urandom of=/tmp/$i bs=1M count=8 status=none; done\n\
        for i in 0 1 2 3; do taskset -c $i dd if=/tmp/$i of=/dev/vdb bs=1M seek=$((i * 8)) \
            oflag=direct status=none & done; wait\n\
        for i in 0 1 2 3; do taskset -c $((3 - i)) dd if=/dev/vdb bs=1M skip=$((i * 8)) count=8 \
            iflag=direct status=none | cmp - /tmp/$i && echo same-$i; done\n\
        busybox poweroff\n";
    let manifest = Manifest::new("queues", script).cores(4).disk("data", &disk);
    let manifest = also(manifest.multi_queue());
    let mut vm = Vm::run(&manifest.write(directory.path()), [""; 0]);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    for said in ["queues-4", "same-0", "same-1", "same-2", "same-3"] {
        assert!(console.contains(said), "{said}: {console}");
    }
}
