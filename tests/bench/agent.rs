//! `ci/bench agent`: how long a guest's user-data waits for its first line, by Peapod's agent and by the
//! cloud-init of the same disk, in turns, where KVM works; and what the agent costs once it has nothing
//! to do.
//!
//! The guest's own clock is read: from when its kernel started the first process to the line.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use peapod_tests::bench::{Mark, Record, report};
use peapod_tests::{Manifest, Vm, overlay, peapod};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(300);
/// What a guest does after the user-data before it is looked at.
const SETTLED: Duration = Duration::from_secs(5);
const SAYS: &str = "now=$(cut -d' ' -f1 /proc/uptime); \
    init=$(dmesg | sed -n 's/^\\[ *\\([0-9.]*\\)\\] Run .* as init process$/\\1/p' | head -n 1); \
    echo first-line $now $init >/dev/console";
/// The seed story's and a configuration, in one word each.
const KINDS: [&str; 2] = ["a script", "#cloud-config"];
#[derive(Parser)]
struct Options {
    /// How often each is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// The marks: a twentieth, and 4 MiB.
const TWENTIETH: f64 = 0.05;
const AT_REST_MIB: f64 = 4.0;

fn user_data(kind: usize) -> String {
    match kind {
        0 => format!("#!/bin/bash\n{SAYS}\n"),
        _ => {
            let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1ZsFH3jsqQ9AfPKiVh6K1yJ4X1Zr0A1oyN2kFqS3mB ann";
            let config = json!({
                "users": ["default", { "name": "ann", "ssh_authorized_keys": [key] }],
                "write_files": [{ "path": "/etc/motd", "content": "hello\n" }],
                "runcmd": [SAYS],
            });
            format!("#cloud-config\n{config}\n")
        }
    }
}

/// A fresh guest's seconds to its first line, and what its agent has of memory then, in MiB.
fn boot(kind: usize, agent: &str) -> (f64, f64) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, base) = overlay(directory.path(), "debian.img", "raw");
    let manifest = Manifest::new("agent", "").root(&disk).memory("1Gi");
    let file = manifest.user_data(&user_data(kind)).write(directory.path());
    let state = directory.path().join("state");
    let options = ["--format", "root=qcow2", "--agent", agent, "--backing-dir"];
    let places = [&base, Path::new("--state-dir"), &state];
    let words = options.iter().map(Path::new).chain(places);
    let vm = Vm::run(&file, words);
    vm.wait_console("first-line ", 1, LIMIT);
    let console = vm.console();
    let line = console.lines().find_map(|l| l.split_once("first-line "));
    let mut numbers = line.unwrap().1.split_whitespace().map(|n| n.parse::<f64>());
    let (now, init) = (numbers.next().unwrap(), numbers.next().expect(&console));
    let memory = match agent {
        "off" => 0.0,
        _ => at_rest(&state),
    };
    (now.unwrap() - init.unwrap(), memory)
}

/// The proportional share of what is called so in the guest.
fn at_rest(state: &Path) -> f64 {
    std::thread::sleep(SETTLED);
    let script = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *peapod*) \
        cat $p/smaps_rollup;; esac; done | awk '/^Pss:/ { n += $2 } END { print n }'";
    let mut command = Command::new(peapod());
    command
        .arg("exec")
        .arg(state)
        .args(["--", "sh", "-c", script]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let kib: f64 = said.trim().parse().expect("the agent's memory");
    kib / 1024.0
}

fn main() {
    let rounds = Options::parse().rounds;
    let mut records = Vec::new();
    let mut memory = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        // The first is not counted: it reads the disk.
        for round in 0..=rounds {
            let (a, b) = (boot(number, "auto"), boot(number, "off"));
            eprintln!("    {kind}: {:.2} s, cloud-init {:.2} s", a.0, b.0);
            if round > 0 {
                ours.push(a.0);
                peer.push(b.0);
                memory.push(a.1);
            }
        }
        let name = format!("/init to the first line of {kind}");
        let mark = Some(Mark::AtMost(TWENTIETH));
        records.push(Record::new(&name, "s", &ours, ("cloud-init", &peer), mark));
    }
    let mark = Some(Mark::AtMost(1.0));
    let bar = ("4 MiB", &[AT_REST_MIB][..]);
    records.push(Record::new(
        "agent at rest (PSS)",
        "MiB",
        &memory,
        bar,
        mark,
    ));
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `ci/bench agent`");
    report(Path::new(&directory), "agent", &records).unwrap();
}
