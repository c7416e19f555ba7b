//! What has to hold however often it is tried: once here in `make test`, long in `make soak`.

use peapod_tests::{Manifest, Vm, soak};

use super::BOOT;
use super::disks::empty_disk;

const RECORD: usize = 4096;

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
