//! What a guest flushed outlives a power cut: the lab's outer machine is killed amid the guest's
//! writes. It is the only one whose power can be cut, so this test always uses it.
//!
//! A page cache outlives a killed process, so killing the VMM alone would prove nothing here.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test fails by panicking

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use peapod_tests::{Manifest, peapod, soak};

/// Mounts the scratch disk, which the guest's disk is a file of.
const MOUNT: &str = "disk=/dev/disk/by-id/virtio-scratch; mkdir -p /run/scratch; ";
/// A record a block, each flushed before it is told.
const WRITE: &str = "i=0; while :; do i=$((i + 1)); printf '%-4096s' \"record-$i\" | \
    dd of=/dev/vdb bs=4096 seek=$i iflag=fullblock conv=notrunc,fsync status=none && echo flushed-$i; done\n";
const RECORDS: u64 = 8;

fn lab(arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(root.join("ci/lab"));
    command.args(arguments).env("PEAPOD_LAB", "outer");
    command
}

/// A folder that the outer machine sees too.
fn shared_folder() -> PathBuf {
    let target = peapod().ancestors().nth(3).unwrap().to_owned();
    let folder = target.join("power-cut");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The number of the last record that the guest has flushed when the power goes.
fn write_until_the_cut(manifest: &Path) -> u64 {
    let script = format!(
        "{MOUNT} mkfs.ext4 -qF $disk && mount $disk /run/scratch && \
         truncate -s 16M /run/scratch/data.img && sync && exec {} run {}",
        peapod().display(),
        manifest.display()
    );
    let mut run = lab(&["run", "--", "bash", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start ci/lab");
    let mut lines = BufReader::new(run.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let number = |line: String| line.rsplit_once("flushed-")?.1.trim().parse().ok();
    let mut last = lines
        .by_ref()
        .filter_map(number)
        .find(|n| *n >= RECORDS)
        .expect("the guest never flushed");
    // Somewhere amid a write.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    std::thread::sleep(Duration::from_millis(u64::from(now.subsec_millis())));
    assert!(lab(&["cut"]).status().unwrap().success());
    last = lines.filter_map(number).last().unwrap_or(last);
    run.wait().unwrap();
    last
}

/// The records that are on the disk after the power is back.
fn records() -> Vec<String> {
    let script = format!(
        "{MOUNT} mount $disk /run/scratch && tr -s ' \\0' '\\n' < /run/scratch/data.img && \
         umount /run/scratch && fsck.ext4 -fn $disk >&2"
    );
    let output = lab(&["run", "--", "bash", "-c", &script])
        .output()
        .expect("start ci/lab");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_the_guest_flushed_survives_a_power_cut() {
    let manifest = Manifest::new("power-cut", WRITE)
        .disk("data", Path::new("/run/scratch/data.img"))
        .write(&shared_folder());
    for _ in 0..soak(2, 100) {
        let last = write_until_the_cut(&manifest);
        let found = records();
        for i in 1..=last {
            assert!(
                found.contains(&format!("record-{i}")),
                "record {i} of {last} is lost"
            );
        }
        println!("{last} records were flushed before the cut, and all are there");
    }
    assert!(lab(&["down"]).status().unwrap().success());
}
