//! `ci/bench pod`: what a pod costs beyond its guest, in the lab: the compute container by crun, in a
//! control group whose limit is the Pod's, on a disk that is one. What is counted is in
//! `peapod_tests::cost`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use peapod_tests::bench::{Mark, Record, report};
use peapod_tests::cost::Cost;
use peapod_tests::kubelet::Kubelet;
use peapod_tests::{Flows, Group, Guest, Manifest, Scratch};

const BOOT: Duration = Duration::from_secs(180);
const FLOWS: usize = 1000;
/// What is under way on each of them, there and back.
const UNDER_WAY: usize = 16 << 10;
const MIB: f64 = 1048576.0;
/// What KubeVirt's own formula adds for 1 vCPU and 1 GiB, in MiB.
const KUBEVIRT: (&str, &[f64]) = ("KubeVirt's charge", &[290.0]);
/// What the kernel's account may be behind.
const SETTLED: Duration = Duration::from_secs(3);

/// The machine: its vCPUs and its memory.
const CORES: u32 = 1;
const MEMORY: (&str, f64) = ("1Gi", 1024.0);
const ROUNDS: usize = 3;
/// 16 and 24 MiB of KubeVirt's 290, with no flows and with 1,000 at rest.
const MARKS: [Option<f64>; 4] = [Some(0.055), Some(0.082), None, None];

/// What a pod does while it is measured, in this order.
const STAGES: [&str; 4] = [
    "no flows",
    "1,000 flows at rest",
    "1,000 flows, 16 KiB under way in each",
    "the same, guest's memory full",
];

/// The most of several, taken while `work` is done.
fn most(group: &Group, work: impl FnOnce() + Send) -> Cost {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = Cost::of(group).unwrap();
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let cost = Cost::of(group).unwrap();
                if cost.beyond_the_guest() > most.beyond_the_guest() {
                    most = cost;
                }
            }
            most
        });
        work();
        done.store(true, Ordering::Relaxed);
        sampler.join().unwrap()
    })
}

/// What a pod costs at each stage, and what it is charged beyond its guest.
fn measure(disk: &Path, manifest: &Manifest) -> ([Cost; 4], f64) {
    // So that the pod is who brings in what it reads.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut pod = Kubelet::run_on(Some(disk), "bench", manifest, &[]);
    let charge = pod.limit as f64 / MIB - MEMORY.1;
    pod.until("it is not ready", BOOT, |pod| pod.ready);
    let settled = || {
        thread::sleep(SETTLED);
        Cost::of(&pod.group).unwrap()
    };
    let idle = settled();
    let to = SocketAddr::new(pod.address, Flows::PORT);
    let flows = Flows::open(to, FLOWS).unwrap();
    let resting = settled();
    let moving = || (0..3).for_each(|_| flows.exchange(UNDER_WAY).unwrap());
    let busy = most(&pod.group, moving);
    Guest::of(pod.address).run(Guest::FILL, BOOT);
    let full = most(&pod.group, moving);
    let killed = pod.group.numbers("memory.events").unwrap()["oom_kill"];
    assert_eq!(killed, 0, "killed for want of memory");
    ([idle, resting, busy, full], charge)
}

fn main() {
    let disk = Scratch::new();
    let mut records = Vec::new();
    println!(
        "{:<58} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8} {:>8}",
        "MiB", "all", "own", "program", "tables", "kernel", "sockets", "ahead", "guest", "cache"
    );
    let script = format!("{}{}", Guest::SERVE, Flows::SERVE);
    let manifest = Manifest::new("bench", &script)
        .cores(CORES)
        .memory(MEMORY.0)
        .port(Guest::PORT)
        .port(Flows::PORT);
    let of = format!("{CORES} vCPU, {}", MEMORY.0);
    let (mut series, mut charge) = (Vec::new(), 0.0);
    for _ in 0..ROUNDS {
        let (costs, charged) = measure(disk.path(), &manifest);
        charge = charged;
        for (stage, c) in STAGES.iter().zip(&costs) {
            let all = c.beyond_the_guest() as f64 / MIB;
            print!("{:<58} {all:>8.2}", format!("{of}: {stage}"));
            for part in [c.own, c.program, c.tables, c.kernel, c.sockets, c.ahead] {
                print!(" {:>8.2}", part as f64 / MIB);
            }
            let (guest, cache) = (c.guest as f64 / MIB, c.cache as f64 / MIB);
            println!(" | {guest:>8.2} {cache:>8.2}");
        }
        series.push(costs.map(|cost| cost.beyond_the_guest() as f64 / MIB));
    }
    for (number, (stage, mark)) in STAGES.iter().zip(MARKS).enumerate() {
        let ours: Vec<f64> = series.iter().map(|costs| costs[number]).collect();
        let name = format!("pod beyond its guest, {of}: {stage}");
        if let Some(mark) = mark {
            let mark = Some(Mark::AtMost(mark));
            records.push(Record::new(&name, "MiB", &ours, KUBEVIRT, mark));
        }
        let most = [ours.iter().copied().fold(0.0, f64::max)];
        let own = ("its own charge", &[charge][..]);
        let mark = Some(Mark::AtMost(1.0));
        records.push(Record::new(&name, "MiB", &most, own, mark));
    }
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `ci/bench pod`");
    report(Path::new(&directory), "pod", &records).unwrap();
}
