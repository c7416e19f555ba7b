//! `make bench`: how long a VM takes to boot and to answer, and what it costs beyond its guest,
//! beside QEMU with the same kernel, initramfs and root, in turns, where KVM works, and what it does
//! while its guest has nothing to do; and how long one takes to answer that begins with a snapshot, or
//! that a pod's entry starts, beside its own boot.
//!
//! Everything that either reads lies in memory, so that neither waits for a disk.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod firecracker;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use firecracker::Saved;
use peapod_tests::bench::{Mark, Record, report, threads};
use peapod_tests::{Boot, FIRST_LINE, Vm};

const IDLE_ROUNDS: usize = 3;
const PEER: &str = "qemu q35, slirp";
const RESTORED: &str = "process start with a snapshot to first answer on 9080";
const MEMORY: &str = "memory beyond the guest's (PSS)";
const WITH_FLOWS: &str = "the same with 1,000 connections";
const MEMORY_MIB: u64 = 512;
/// Where ours, and QEMU's, are called.
const HOST: &str = "127.0.0.1";
const PORT: u16 = 9080;
/// Where the guest keeps whoever calls.
const HELD_PORT: u16 = 9081;
const FLOWS: usize = 1000;
const LIMIT: Duration = Duration::from_secs(120);
const USER_DATA: &str = "#!/bin/bash\ncd /opt/details\nruby details.rb 9080 &\nulimit -n 4096\n\
    ruby -rsocket -e 's = TCPServer.new(9081); s.listen(128); kept = []
    loop { c = s.accept; c.write(c.readpartial(1)); kept << c }' &\n";

/// What a guest has after its answer before it is looked at, and for how long it is.
const SETTLED: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(20);
/// The marks of the process's own memory, and with [`FLOWS`].
const OWN_MIB: [f64; 2] = [5.0, 8.0];
/// One of what an idle process does.
type Figure = fn(&Times) -> f64;
/// All of them, and the mark of each.
const IDLE: [(&str, Figure, f64); 2] = [
    ("wakes/s", |boot| boot.idle.wakes, 10.0),
    ("% CPU", |boot| boot.idle.cpu, 0.1),
];

#[derive(Parser)]
struct Options {
    /// How often each is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Firecracker's program, to see how soon it answers that begins with a snapshot.
    #[arg(long)]
    firecracker: Option<PathBuf>,
}

/// What one boot took.
struct Times {
    userspace: f64,
    answer: f64,
    memory: f64,
    /// The same with [`FLOWS`]; only where it was idle.
    with_flows: f64,
    idle: Idle,
}

/// What all threads do but the vCPUs', while the guest has nothing to do.
#[derive(Clone, Copy, Default)]
struct Idle {
    /// How often a second they have slept, and so were woken.
    wakes: f64,
    /// Per cent of a CPU.
    cpu: f64,
}

impl Idle {
    /// Over a while.
    fn of(process: u32) -> Self {
        std::thread::sleep(SETTLED);
        let before = work(process);
        std::thread::sleep(WATCHED);
        let after = work(process);
        let seconds = WATCHED.as_secs_f64();
        Self {
            wakes: (after.0 - before.0) as f64 / seconds,
            cpu: (after.1 - before.1) as f64 / 1e9 / seconds * 100.0,
        }
    }
}

/// How often the threads but the vCPUs' have slept, and the nanoseconds that they have run.
fn work(process: u32) -> (u64, u64) {
    let threads = threads(process).unwrap().into_iter();
    let own = threads.filter(|t| !t.name.starts_with("vcpu") && !t.name.starts_with("CPU "));
    own.fold((0, 0), |(sleeps, ran), thread| {
        (sleeps + thread.sleeps, ran + thread.ran)
    })
}

/// Seconds from a process's start to its answer.
fn answer_of(mut command: Command) -> f64 {
    let begin = Instant::now();
    let _vm = Vm::start(&mut command);
    answer(HOST, begin)
}

/// Seconds until it answers at that address.
fn answer(address: &str, begin: Instant) -> f64 {
    while !answers(address) {
        assert!(begin.elapsed() < LIMIT, "no answer");
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed().as_secs_f64()
}

fn measure(mut command: Command, idle: bool) -> Times {
    let begin = Instant::now();
    let vm = Vm::start(&mut command);
    vm.wait_console(FIRST_LINE, 1, LIMIT);
    let (userspace, answered) = (begin.elapsed().as_secs_f64(), answer(HOST, begin));
    // In use, and not in the midst of its boot any more.
    std::thread::sleep(SETTLED);
    answer(HOST, Instant::now());
    let mut times = Times {
        userspace,
        answer: answered,
        memory: memory_beyond_the_guest(vm.pid()),
        with_flows: 0.0,
        idle: Idle::default(),
    };
    if idle {
        times.idle = Idle::of(vm.pid());
        let _flows: Vec<_> = (0..FLOWS).map(|_| call()).collect();
        times.with_flows = memory_beyond_the_guest(vm.pid());
    }
    times
}

/// A connection on which the guest has answered a byte.
fn call() -> TcpStream {
    let mut stream = TcpStream::connect((HOST, HELD_PORT)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// Makes the snapshot of a VM that has answered; where it is.
fn save(files: &Boot) -> PathBuf {
    let (state, snapshot) = (files.path("state"), files.path("snapshot"));
    let mut command = files.peapod();
    command.arg("--state-dir").arg(&state);
    let _vm = Vm::start(&mut command);
    answer(HOST, Instant::now());
    let mut save = files.command("snapshot");
    let saved = save.arg(&state).arg(&snapshot).arg("--stop").status();
    assert!(saved.unwrap().success());
    snapshot
}

/// Seconds from a process's start, which begins with the snapshot, to its answer.
fn restore(files: &Boot, snapshot: &Path) -> f64 {
    let mut command = files.command("restore");
    command.arg(snapshot);
    answer_of(command)
}

fn answers(address: &str) -> bool {
    let request = || -> std::io::Result<String> {
        let address = SocketAddr::new(address.parse().map_err(std::io::Error::other)?, PORT);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /details/0 HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    request().is_ok_and(|answer| answer.contains("ISBN-10"))
}

/// The process's proportional share of memory in MiB, without the guest's own.
fn memory_beyond_the_guest(pid: u32) -> f64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut total, mut size) = (0, 0);
    for line in smaps.lines() {
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        if line.starts_with("Size:") {
            size = kib(line).unwrap_or(0);
        } else if line.starts_with("Pss:") && size != MEMORY_MIB * 1024 {
            total += kib(line).unwrap_or(0);
        }
    }
    total as f64 / 1024.0
}

fn main() {
    let options = Options::parse();
    let ports = [PORT, HELD_PORT];
    let files = Boot::new(USER_DATA, MEMORY_MIB, &ports);
    let forwards = ports.map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}"));
    let network = format!("user,id=n{}", forwards.concat());
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let (mut restored, mut launched, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let snapshot = save(&files);
    let peer_of_snapshots = options
        .firecracker
        .as_ref()
        .map(|program| Saved::new(program, &files));
    // The first of each is not counted: it reads the programs themselves.
    for round in 0..=options.rounds {
        // It takes its time.
        let idle = (1..=IDLE_ROUNDS).contains(&round);
        let (a, b) = (
            measure(files.peapod(), idle),
            measure(files.qemu(&["-netdev", &network]), idle),
        );
        // Asked no sooner than the others are: a guest that is starting has the asking's CPU the less.
        let in_a_pod = measure(files.launch(), false).answer;
        let again = restore(&files, &snapshot);
        let their_own = peer_of_snapshots.as_ref().map(Saved::restore);
        if round > 0 {
            theirs.extend(their_own);
            ours.push(a);
            peer.push(b);
            launched.push(in_a_pod);
            restored.push(again);
        }
    }
    let booted: Vec<_> = ours.iter().map(|boot| boot.answer).collect();
    let record = |name: &str, unit, figure: fn(&Times) -> f64| {
        let series = |boots: &[Times]| boots.iter().map(figure).collect::<Vec<_>>();
        Record::new(name, unit, &series(&ours), (PEER, &series(&peer)), None)
    };
    let idle = |boots: &[Times], figure: fn(&Times) -> f64| {
        let idle = boots.iter().take(IDLE_ROUNDS).map(figure);
        idle.collect::<Vec<_>>()
    };
    let mark = |name: &str, unit, ours: &[f64], mark: f64| {
        let bar = vec![mark; ours.len()];
        let bar = ("what it may be", &bar[..]);
        Record::new(name, unit, ours, bar, Some(Mark::AtMost(1.0)))
    };
    let memory: Vec<_> = ours.iter().map(|boot| boot.memory).collect();
    let flows: Figure = |boot| boot.with_flows;
    let with_flows = idle(&ours, flows);
    let mut records = vec![
        record("process start to first line of userspace", "s", |b| {
            b.userspace
        }),
        record("process start to first answer on 9080", "s", |b| b.answer),
        Record::new(
            RESTORED,
            "s",
            &restored,
            ("its own boot", &booted),
            Some(Mark::AtMost(0.1)),
        ),
        Record::new(
            "peapod launch to first answer on 9080",
            "s",
            &launched,
            ("peapod run", &booted),
            Some(Mark::AtMost(1.2)),
        ),
        record(MEMORY, "MiB", |b| b.memory),
        mark(MEMORY, "MiB", &memory, OWN_MIB[0]),
        Record::new(
            WITH_FLOWS,
            "MiB",
            &with_flows,
            (PEER, &idle(&peer, flows)),
            None,
        ),
        mark(WITH_FLOWS, "MiB", &with_flows, OWN_MIB[1]),
    ];
    if !theirs.is_empty() {
        let peer = ("firecracker, tap", &theirs[..]);
        records.push(Record::new(
            RESTORED,
            "s",
            &restored,
            peer,
            Some(Mark::AtMost(1.0)),
        ));
    }
    for (unit, figure, most) in IDLE {
        let (ours, peer) = (idle(&ours, figure), idle(&peer, figure));
        let name = "idle, but for vCPUs";
        records.push(Record::new(name, unit, &ours, (PEER, &peer), None));
        records.push(mark(name, unit, &ours, most));
    }
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `make bench`");
    report(Path::new(&directory), "boot", &records).unwrap();
}
