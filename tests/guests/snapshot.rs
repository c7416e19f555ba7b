//! VMs that are saved and restored.

use std::path::Path;
use std::process::Command;
use std::thread;

use peapod_tests::{Guest, Manifest, Vm, peapod, until};

use super::life::said;
use super::{BOOT, SOON};

/// A VM of its own home, so that it is found by its name alone.
fn restored(snapshot: &Path, name: &str, words: &[&str]) -> Vm {
    let mut command = Command::new(peapod());
    command.arg("restore").arg(snapshot).args(["--name", name]);
    Vm::start(command.args(words))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn two_vms_go_on_from_one_snapshot_and_so_does_the_one_that_it_was_taken_of() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("saved", Guest::SERVE)
        .port(Guest::PORT)
        .write(directory.path());
    let state = directory.path().join("state");
    let arguments = ["--state-dir", text(&state), "-p", "9181:9099"];
    let first = Vm::run(&manifest, arguments);
    first.wait_log("the guest is ready", BOOT);
    let guest = Guest::at(9181);
    // In memory, in the page cache, on the disk.
    guest.run(
        "echo remembered >/run/word; echo kept >/root/word; sync",
        BOOT,
    );
    let boot = guest.run("busybox cat /proc/sys/kernel/random/boot_id", SOON);
    let snapshot = directory.path().join("snapshot");
    // A connection that lasts over the snapshot.
    let lasting = thread::spawn(move || guest.run("touch /run/lasts; sleep 5; echo over", BOOT));
    until("the connection is not there", || {
        let there = guest.run("ls /run", SOON).contains("lasts");
        there.then_some(())
    });
    said(&["snapshot", text(&state), text(&snapshot)]);
    assert_eq!(lasting.join().unwrap(), "over\n");
    assert_eq!(guest.run("busybox cat /run/word", SOON), "remembered\n");
    guest.run("echo changed >/root/word; sync", SOON);

    let second = restored(&snapshot, "second", &["-p", "9182:9099", "--verify"]);
    let third = restored(&snapshot, "third", &["-p", "9183:9099"]);
    let words = "busybox cat /run/word /root/word /proc/sys/kernel/random/boot_id";
    for (vm, port) in [(&second, 9182), (&third, 9183)] {
        vm.wait_log("the guest is ready", BOOT);
        let expected = format!("remembered\nkept\n{boot}");
        assert_eq!(Guest::at(port).run(words, BOOT), expected);
        // It knows what time it is.
        let clock = Guest::at(port).run("busybox date +%s", SOON);
        let off = unix().abs_diff(clock.trim().parse().unwrap());
        assert!(off < 20, "{off} s");
    }
    // Of the other's connection it is told that it is gone, when it sends: one is left, to ask by.
    until("the other's connection is still there", || {
        let table = "busybox cat /proc/net/tcp /proc/net/tcp6";
        let table = Guest::at(9182).run(table, SOON);
        let established = |line: &&str| line.contains(":238B ") && line.contains(" 01 ");
        (table.lines().filter(established).count() <= 1).then_some(())
    });
    // No two copies have the same random numbers.
    let random =
        |port| Guest::at(port).run("busybox head -c 16 /dev/urandom | busybox od -tx1", SOON);
    assert_ne!(random(9182), random(9183));
    // Each writes to a disk of its own.
    Guest::at(9182).run("echo second >/root/word; sync", SOON);
    assert_eq!(
        Guest::at(9183).run("busybox cat /root/word", SOON),
        "kept\n"
    );
    // A guest that was restored can be saved again, and reboots as any other.
    let again = directory.path().join("again");
    said(&[
        "snapshot",
        "--stop",
        &second.pid().to_string(),
        text(&again),
    ]);
    drop(second);
    let fourth = restored(&again, "fourth", &["-p", "9184:9099"]);
    fourth.wait_log("the guest is ready", BOOT);
    assert_eq!(
        Guest::at(9184).run("busybox cat /root/word", BOOT),
        "second\n"
    );
    assert_eq!(guest.run("busybox cat /root/word", SOON), "changed\n");
}

fn unix() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs()
}

#[test]
fn a_vm_with_a_disk_that_stays_ends_with_its_snapshot_and_is_restored_once() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.img");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let manifest = Manifest::new("kept", Guest::SERVE)
        .port(Guest::PORT)
        .disk("data", &disk)
        .write(directory.path());
    let state = directory.path().join("state");
    let mut vm = Vm::run(&manifest, ["--state-dir", text(&state), "-p", "9185:9099"]);
    vm.wait_log("the guest is ready", BOOT);
    let snapshot = directory.path().join("snapshot");
    let refused = Command::new(peapod())
        .args(["snapshot", text(&state), text(&snapshot)])
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        why.contains("the disk `data`") && why.contains("--stop"),
        "{why}"
    );
    assert!(!snapshot.exists());
    said(&["snapshot", "--stop", text(&state), text(&snapshot)]);
    assert_eq!(vm.wait(SOON), 4);
    let vm = restored(&snapshot, "kept", &["--state-dir", text(&state)]);
    vm.wait_log("the guest is ready", BOOT);
    let size = Guest::at(9185).run("busybox cat /sys/block/vdb/size", BOOT);
    assert_eq!(size, "16384\n");
    drop(vm);
    let mut second = restored(&snapshot, "kept", &[]);
    assert_eq!(second.wait(SOON), 2);
    assert!(
        second.log().contains("it was restored before"),
        "{}",
        second.log()
    );
}
