//! `ci/bench start`: from a VMM's first instruction to its guest's, and on to the guest's first line,
//! beside QEMU's microvm, Firecracker and Cloud Hypervisor with the same kernel, initramfs and root, in
//! turns, on a clock of the instructions that are executed.
//!
//! Everything that they read lies in memory: whoever waits makes such a clock jump. Peapod has its
//! network, its API and its sandbox; the others have what they have without being asked, a disk and
//! random numbers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use peapod_tests::bench::{Mark, Record, report};
use peapod_tests::{Boot, FIRST_LINE, Vm};

const MEMORY_MIB: u64 = 256;
const LIMIT: Duration = Duration::from_secs(120);
/// The marks: of QEMU's microvm, and of Firecracker's time to the guest's first instruction.
const OF_MICROVM: f64 = 0.75;
const QUARTER: f64 = 0.25;

#[derive(Parser)]
struct Options {
    /// How often each is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Firecracker's program; without, it is left out
    #[arg(long, value_name = "FILE")]
    firecracker: Option<PathBuf>,
    /// Cloud Hypervisor's program; without, it is left out
    #[arg(long, value_name = "FILE")]
    cloud_hypervisor: Option<PathBuf>,
}

/// The kernel's own record of what happened when.
struct Trace(PathBuf);

impl Trace {
    /// Records when a program is executed, and up to when a guest is entered.
    fn new(place: &Path) -> Self {
        fs::create_dir(place).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tracefs", "tracefs"]).arg(place).status();
        assert!(mounted.unwrap().success(), "tracefs: run it as root");
        let trace = Self(place.to_owned());
        trace.write("events/kvm/kvm_entry/trigger", "traceoff");
        trace
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).expect(file);
    }

    /// Seconds from when `command` is executed to when its guest is.
    fn first_entry(&self, mut command: Command) -> f64 {
        let name = Path::new(command.get_program()).file_name().unwrap();
        let program = format!("/{} pid=", name.display());
        self.write("events/sched/sched_process_exec/enable", "1");
        self.write("events/kvm/kvm_entry/enable", "1");
        self.write("trace", "");
        self.write("tracing_on", "1");
        let vmm = Vm::start(&mut command);
        let begin = Instant::now();
        while fs::read_to_string(self.0.join("tracing_on"))
            .unwrap()
            .trim()
            == "1"
        {
            assert!(begin.elapsed() < LIMIT, "no guest is entered");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(vmm);
        self.write("events/enable", "0");
        let trace = fs::read_to_string(self.0.join("trace")).unwrap();
        let at = |what: &str| {
            let line = trace.lines().find(|line| line.contains(what));
            let words = line.expect(what).split_whitespace();
            let mut times = words.filter_map(|word| word.strip_suffix(':')?.parse::<f64>().ok());
            times.next().expect("a time")
        };
        at("kvm_entry:") - at(&program)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Seconds until the guest's first line.
fn first_line(mut command: Command) -> f64 {
    let begin = Instant::now();
    Vm::start(&mut command).wait_console(FIRST_LINE, 1, LIMIT);
    begin.elapsed().as_secs_f64()
}

/// A VMM, and what it took in each round: to its guest's first instruction, and to its first line.
struct Contestant<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> Command + 'a>,
    entry: Vec<f64>,
    line: Vec<f64>,
}

fn main() {
    let options = Options::parse();
    let files = Boot::new("#!/bin/sh\n", MEMORY_MIB, &[]);
    let in_memory = |program: &Option<PathBuf>, name: &str| {
        let copy = files.path(name);
        let program = program.as_ref()?;
        fs::copy(program, &copy).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Some(copy)
    };
    let firecracker = in_memory(&options.firecracker, "firecracker");
    let cloud_hypervisor = in_memory(&options.cloud_hypervisor, "cloud-hypervisor");
    let trace = Trace::new(&files.path("tracefs"));
    let contestant = |name, command| Contestant {
        name,
        command,
        entry: Vec::new(),
        line: Vec::new(),
    };
    let mut all = vec![
        contestant("peapod", Box::new(|| files.peapod()) as Box<dyn Fn() -> _>),
        contestant("qemu microvm", Box::new(|| files.microvm())),
    ];
    if let Some(program) = &firecracker {
        all.push(contestant(
            "firecracker",
            Box::new(|| files.firecracker(program)),
        ));
    }
    if let Some(program) = &cloud_hypervisor {
        all.push(contestant(
            "cloud hypervisor",
            Box::new(|| files.cloud_hypervisor(program)),
        ));
    }
    // The first of each is not counted: it reads the programs' libraries.
    for round in 0..=options.rounds {
        for vmm in &mut all {
            let (entry, line) = (
                trace.first_entry((vmm.command)()),
                first_line((vmm.command)()),
            );
            eprintln!("    {}: {entry:.3} s, {line:.3} s", vmm.name);
            if round > 0 {
                vmm.entry.push(entry);
                vmm.line.push(line);
            }
        }
    }
    let (ours, peers) = all.split_first().unwrap();
    let mut records = Vec::new();
    for peer in peers {
        let (entry, line) = match peer.name {
            "qemu microvm" => (None, Some(Mark::AtMost(OF_MICROVM))),
            "firecracker" => (Some(Mark::AtMost(QUARTER)), Some(Mark::Below(1.0))),
            _ => (None, Some(Mark::Below(1.0))),
        };
        for (name, ours, theirs, mark) in [
            (
                "exec to the guest's first instruction",
                &ours.entry,
                &peer.entry,
                entry,
            ),
            (
                "exec to the first line of userspace",
                &ours.line,
                &peer.line,
                line,
            ),
        ] {
            records.push(Record::new(name, "s", ours, (peer.name, theirs), mark));
        }
    }
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `ci/bench start`");
    report(Path::new(&directory), "start", &records).unwrap();
}
