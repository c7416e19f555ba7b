//! `ci/bench block`: what a disk gives a guest, raw and qcow2, beside QEMU with io_uring, in turns, where
//! KVM works. The images lie on the lab's scratch disk, if there is one, and both leave the host's page
//! cache between it and the guest.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use peapod_tests::bench::{Mark, Record, report};
use peapod_tests::space::run;
use peapod_tests::{Boot, ExtraDisk, Scratch, Vm};

const MEMORY_MIB: u64 = 512;
const SIZE: &str = "256M";
const LIMIT: Duration = Duration::from_secs(120);
const MOST_HUNG: usize = 3;
/// The program comes on a disk too: the guest has no other way that both have.
const USER_DATA: &str = "#!/bin/bash\ndd if=/dev/vdc of=/run/load-disk bs=1M 2>/dev/null\n\
    chmod 755 /run/load-disk\n/run/load-disk /dev/vdd 3 >/dev/console 2>&1\n";
const FORMATS: [&str; 2] = ["raw", "qcow2"];
/// The mark.
const OF_QEMU: f64 = 0.9;

#[derive(Parser)]
struct Options {
    /// How often each is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// An image in which every byte has been written.
fn image(folder: &Path, format: &str) -> PathBuf {
    let (raw, path) = (folder.join("raw"), folder.join(format));
    if format == "raw" {
        let fill = format!("tr '\\0' Z </dev/zero | head -c {SIZE} >{}", raw.display());
        run(Command::new("sh").args(["-c", &fill])).unwrap();
    } else {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format]);
        run(convert.arg(raw).arg(&path)).unwrap();
    }
    path
}

/// What the guest said of each load. One that hangs is told of and started again: QEMU's is seen to, its
/// vCPU spinning, once in some thirty times in the lab.
fn measure(mut command: Command) -> Vec<(String, f64)> {
    let mut hung = 0;
    let vm = loop {
        let vm = Vm::start(&mut command);
        if vm.shows("load-disk done", LIMIT) {
            break vm;
        }
        hung += 1;
        assert!(hung < MOST_HUNG, "{command:?} hangs");
        eprintln!("    hung, and is started again: {command:?}");
    };
    let console = vm.console();
    let lines = console.lines().filter_map(|l| l.split_once("load-disk "));
    let loads = lines.filter_map(|(_, load)| load.rsplit_once(' '));
    let loads = loads.map(|(name, figure)| (name.to_owned(), figure.parse().expect(figure)));
    loads.collect()
}

fn main() {
    let rounds = Options::parse().rounds;
    let scratch = Scratch::new();
    let files = Boot::new(USER_DATA, MEMORY_MIB, &[]);
    let program = std::env::current_exe().unwrap().with_file_name("load-disk");
    let load = files.path("load-disk");
    std::fs::copy(program, &load).unwrap();
    let bytes = std::fs::metadata(&load)
        .unwrap()
        .len()
        .next_multiple_of(512);
    std::fs::File::options()
        .write(true)
        .open(&load)
        .and_then(|file| file.set_len(bytes))
        .unwrap();
    let mut records = Vec::new();
    for format in FORMATS {
        let image = image(scratch.path(), format);
        let disks = [
            ExtraDisk {
                name: "load",
                path: &load,
                format: "raw",
            },
            ExtraDisk {
                name: "data",
                path: &image,
                format,
            },
        ];
        let mut series: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
        // The first is not counted: it reads the image.
        for round in 0..=rounds {
            let ours = measure(files.peapod_with(&disks));
            let peer = measure(files.qemu_with(&["-netdev", "user,id=n"], &disks));
            for ((name, ours), (_, peer)) in ours.iter().zip(&peer) {
                eprintln!("    {format} {name}: {ours}, QEMU {peer}");
                if round > 0 {
                    let both = series.entry(name.clone()).or_default();
                    both[0].push(*ours);
                    both[1].push(*peer);
                }
            }
        }
        for (name, [ours, peer]) in &series {
            let unit = match name.starts_with("sequential") {
                true => "MiB/s",
                false => "1/s",
            };
            let name = format!("{format}, {} deep", name.replace('-', " "));
            let peer = ("qemu, io_uring", &peer[..]);
            let mark = Some(Mark::AtLeast(OF_QEMU));
            records.push(Record::new(&name, unit, ours, peer, mark));
        }
    }
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `ci/bench block`");
    report(Path::new(&directory), "block", &records).unwrap();
}
