//! The guest's memory, given back to the host and taken again.

use std::time::{Duration, Instant};

use peapod_tests::{Manifest, Vm};
use serde_json::Value;

use super::life::said;
use super::{BOOT, SOON};

const MIB: u64 = 1 << 20;

fn status(vm: &Vm) -> Value {
    serde_json::from_str(&said(&["status", &vm.pid().to_string()])).unwrap()
}

/// Waits until the status is as it should be.
fn wait(vm: &Vm, what: &str, done: impl Fn(&Value) -> bool) {
    let end = Instant::now() + SOON;
    loop {
        let status = status(vm);
        if done(&status) {
            return;
        }
        if Instant::now() > end {
            panic!("{what}: {status}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn resident(status: &Value) -> u64 {
    status["resident"].as_u64().unwrap()
}

#[test]
fn what_a_guest_frees_goes_back_to_the_host_and_it_makes_do_with_less_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let script = "busybox mount -t tmpfs none /mnt\necho mounted\n";
    let manifest = Manifest::new("memory", script).write(directory.path());
    let vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("mounted", 1, BOOT);
    let id = vm.pid().to_string();
    wait(&vm, "the guest tells how it fares", |status| {
        status["balloon"]["guest"]["available"].is_u64()
    });

    let fill = || {
        let command = "busybox dd if=/dev/zero of=/mnt/x bs=1M count=200";
        said(&["exec", &id, "--", "sh", "-c", command]);
    };
    fill();
    let full = status(&vm);
    let empty = || said(&["exec", &id, "--", "rm", "/mnt/x"]);
    empty();
    wait(&vm, "free pages are reported", |status| {
        resident(status) + 150 * MIB < resident(&full)
    });
    // And they are there again when they are wanted.
    fill();
    empty();

    let asked = said(&["balloon", &id, "300Mi"]);
    assert!(asked.contains(&(300 * MIB).to_string()), "{asked}");
    let actual = |status: &Value| status["balloon"]["actual"].as_u64().unwrap();
    wait(&vm, "the balloon is inflated", |status| {
        actual(status) == 300 * MIB
    });
    said(&["balloon", &id, "512Mi"]);
    wait(&vm, "the balloon is deflated", |status| {
        actual(status) == 512 * MIB
    });
    let metrics = said(&["metrics", &id]);
    assert!(
        metrics.contains("peapod_guest_memory_bytes{state=\"free\"}"),
        "{metrics}"
    );
}

/// Has the host set so many huge pages aside, of 2 MiB each.
fn set_aside(pages: u32) {
    let file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    std::fs::write(file, pages.to_string()).unwrap();
    let there = std::fs::read_to_string(file).unwrap();
    assert_eq!(there.trim(), pages.to_string());
}

#[test]
fn a_guest_of_huge_pages_has_those_that_were_set_aside_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = |memory| {
        let manifest = Manifest::new("huge", "echo up\n").memory(memory);
        manifest.write(directory.path())
    };
    set_aside(80);
    let mut vm = Vm::run(
        &manifest("160Mi\n      hugepages: {pageSize: 2Mi}"),
        [""; 0],
    );
    vm.wait_console("up", 1, BOOT);
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", vm.pid())).unwrap();
    let huge = maps.lines().filter_map(|line| {
        let kib = line.strip_prefix("Private_Hugetlb:")?.strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    // It touches most of so little.
    let huge = huge.sum::<u64>() * 1024;
    assert!((80 * MIB..=160 * MIB).contains(&huge), "{huge}");
    said(&["stop", &vm.pid().to_string()]);
    assert_eq!(vm.wait(SOON), 0);

    let mut vm = Vm::run(
        &manifest("256Mi\n      hugepages: {pageSize: 2Mi}"),
        [""; 0],
    );
    assert_ne!(vm.wait(BOOT), 0);
    let log = vm.log();
    assert!(
        log.contains("of guest memory in huge pages of 2048 KiB"),
        "{log}"
    );
    set_aside(0);
}
