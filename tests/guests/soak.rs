//! What has to hold however often it is tried: once here in `make test`, long in `make soak`.

use std::net::SocketAddr;

use peapod_tests::kubelet::Kubelet;
use peapod_tests::{Flows, Guest, Manifest, Scratch, Vm, soak};

use super::BOOT;
use super::disks::empty_disk;

const RECORD: usize = 4096;
/// In the guest, past its own page cache.
const WRITE: &str =
    "dd if=/dev/zero of=/root/x bs=1M count=128 oflag=direct status=none; rm /root/x";

#[test]
fn killing_the_vmm_loses_nothing_that_the_guest_wrote() {
    for round in 0..soak(1, 100) {
        // Another moment each time, from amid the first records to amid the last.
        kill_after(32 + 7 * (round as usize % 5));
    }
}

fn kill_after(records: usize) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.img");
    empty_disk(&disk, 16 << 20);
    // O_DIRECT: what is written has left the guest, and no flush was asked for.
    let script = "for i in $(seq 1 64); do printf '%-4096s' record-$i | \
        dd of=/dev/vdb bs=4096 seek=$i oflag=direct iflag=fullblock conv=notrunc status=none || exit; echo wrote-$i; done; \
        echo all-written\n";
    let manifest = Manifest::new("kill", script)
        .disk("data", &disk)
        .write(directory.path());
    let mut vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console(&format!("wrote-{records}"), 1, BOOT);
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.wait(BOOT), 128 + libc::SIGKILL);
    let written = std::fs::read(&disk).unwrap();
    let last = vm
        .console()
        .lines()
        .filter_map(|line| line.rsplit_once("wrote-")?.1.trim().parse::<usize>().ok())
        .max()
        .unwrap();
    assert!(last >= records);
    for i in 1..=last {
        let record = format!("record-{i} ");
        assert_eq!(
            &written[i * RECORD..][..record.len()],
            record.as_bytes(),
            "record {i} of {last}"
        );
    }
}

/// Within what the published formula counts on: 1,000 connections with 16 KiB under way each way, and
/// a guest that uses all its memory.
#[test]
fn a_pod_is_not_killed_for_want_of_memory_inside_its_limit() {
    let disk = Scratch::new();
    let script = format!("{}{}", Guest::SERVE, Flows::SERVE);
    let manifest = Manifest::new("limit", &script)
        .memory("512Mi")
        .port(Guest::PORT)
        .port(Flows::PORT);
    let mut pod = Kubelet::run_on(Some(disk.path()), "limit", &manifest, &[]);
    pod.until("it is not ready", BOOT, |pod| pod.ready);
    let to = SocketAddr::new(pod.address, Flows::PORT);
    let guest = Guest::of(pod.address);
    for round in 0..soak(1, 20) {
        let flows = Flows::open(to, 1000).unwrap();
        guest.run(Guest::FILL, BOOT);
        flows.exchange(16 << 10).unwrap();
        // What it writes passes through the page cache of the node, whose limit is the pod's too.
        guest.run(WRITE, BOOT);
        flows.exchange(16 << 10).unwrap();
        drop(flows);
        guest.run("busybox umount /mnt", BOOT);
        let killed = pod.group.numbers("memory.events").unwrap()["oom_kill"];
        assert_eq!(killed, 0, "round {round}");
        eprintln!("    round {round}: nothing was killed");
    }
    assert_eq!(pod.status().restarts, 0);
}
