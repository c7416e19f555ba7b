//! `ci/bench agent`: how long a guest's user-data waits for its first line, by Peapod's agent and by
//! cloud-init on the same root, in turns, where KVM works; and what the agent costs once it has nothing
//! to do.
//!
//! The guest's own clock is read. The agent's time is from when the kernel started the first process;
//! cloud-init's from when its first stage was started, in a guest that was up, one stage after the
//! other. With `--systemd` on a disk with systemd too, where both wait for that and cloud-init's time is
//! from the first process as well. The roots lie in memory, so that nobody waits for a disk.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;
use peapod_tests::bench::{Mark, Record, report};
use peapod_tests::{Manifest, Vm, image, overlay_of, peapod};
use serde_json::json;

/// Where files are memory.
const MEMORY: &str = "/dev/shm";
const LIMIT: Duration = Duration::from_secs(300);
/// What a guest does after the user-data before it is looked at.
const SETTLED: Duration = Duration::from_secs(5);
/// The shell itself reads the clock, before it starts anything.
const SAYS: &str = "read -r now idle </proc/uptime; \
    init=$(dmesg | sed -n 's/^\\[ *\\([0-9.]*\\)\\] Run .* as init process$/\\1/p' | head -n 1); \
    echo first-line $now $init >/dev/console";
/// Cloud-init where nobody has run it: its seed comes on the standard input.
const CLOUD_INIT: &str = "rm -rf /var/lib/cloud /run/cloud-init && seed=/var/lib/cloud/seed/nocloud && \
    mkdir -p $seed && cat >$seed/user-data && echo instance-id: again >$seed/meta-data && \
    echo begun $(cut -d' ' -f1 /proc/uptime) >/dev/console; cloud-init init --local; \
    cloud-init init; cloud-init modules --mode=config; cloud-init modules --mode=final";
/// The seed story's and a configuration, in one word each.
const KINDS: [&str; 2] = ["a script", "#cloud-config"];
const PLAIN: &str = "cloud-init.ext4";
const SYSTEMD: &str = "debian.img";

#[derive(Parser)]
struct Options {
    /// How often each is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// A disk with systemd too.
    #[arg(long)]
    systemd: bool,
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

/// The roots, in memory.
struct Roots(tempfile::TempDir);

impl Roots {
    fn of(names: &[&str]) -> Self {
        let roots = Self(tempfile::tempdir_in(MEMORY).unwrap());
        for name in names {
            // Their holes would take memory.
            let mut copy = Command::new("cp");
            copy.arg("--sparse=always").arg(image(name));
            assert!(copy.arg(roots.0.path()).status().unwrap().success());
        }
        roots
    }

    /// Starts a fresh guest of one of them.
    fn start(&self, root: &str, user_data: &str, agent: &str) -> Guest {
        Guest::start(&self.0.path().join(root), user_data, agent)
    }

    /// Seconds from cloud-init's first stage to the first line, in a guest that had nothing to do.
    fn by_cloud_init(&self, kind: usize) -> f64 {
        let guest = self.start(PLAIN, "#!/bin/sh\n", "auto");
        guest.vm.wait_log("ready", LIMIT);
        guest.run(CLOUD_INIT, &user_data(kind));
        guest.told("first-line ")[0] - guest.told("begun ")[0]
    }
}

/// A fresh guest of an image.
struct Guest {
    vm: Vm,
    directory: tempfile::TempDir,
}

impl Guest {
    fn start(root: &Path, user_data: &str, agent: &str) -> Self {
        let directory = tempfile::tempdir_in(MEMORY).unwrap();
        let disk = overlay_of(directory.path(), root, "raw");
        let manifest = Manifest::new("agent", "").root(&disk).memory("1Gi");
        let file = manifest.user_data(user_data).write(directory.path());
        let state = directory.path().join("state");
        let options = ["--format", "root=qcow2", "--agent", agent, "--backing-dir"];
        let places = [root.parent().unwrap(), Path::new("--state-dir"), &state];
        let words = options.iter().map(Path::new).chain(places);
        let vm = Vm::run(&file, words);
        Self { vm, directory }
    }

    /// The numbers behind the first of a word on the console.
    fn told(&self, word: &str) -> Vec<f64> {
        self.vm.wait_console(word, 1, LIMIT);
        let console = self.vm.console();
        let line = console.lines().find_map(|line| line.split_once(word));
        let numbers = line.unwrap().1.split_whitespace();
        numbers.map(|n| n.parse().expect(&console)).collect()
    }

    /// Seconds from the first process to the first line.
    fn first_line(&self) -> f64 {
        let told = self.told("first-line ");
        told[0] - told[1]
    }

    /// What a script of the guest's prints that reads `input`.
    fn run(&self, script: &str, input: &str) -> String {
        let state = self.directory.path().join("state");
        let mut command = Command::new(peapod());
        command.args(["exec", "-i"]).arg(state);
        command.args(["--", "sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The proportional share of what is called so in the guest, in MiB.
    fn agent_at_rest(&self) -> f64 {
        std::thread::sleep(SETTLED);
        let script = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *peapod*|/init*) \
            cat $p/smaps_rollup;; esac; done | awk '/^Pss:/ { n += $2 } END { print n }'";
        let kib: f64 = self
            .run(script, "")
            .trim()
            .parse()
            .expect("the agent's memory");
        kib / 1024.0
    }
}

fn main() {
    let options = Options::parse();
    let mut records = Vec::new();
    let mut memory = Vec::new();
    let names: &[&str] = match options.systemd {
        true => &[PLAIN, SYSTEMD],
        false => &[PLAIN],
    };
    let roots = Roots::of(names);
    for (root, (number, kind)) in names
        .iter()
        .flat_map(|root| KINDS.iter().enumerate().map(move |kind| (*root, kind)))
    {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        // The first is not counted: it reads the disk.
        for round in 0..=options.rounds {
            let guest = roots.start(root, &user_data(number), "auto");
            let first_line = guest.first_line();
            let at_rest = guest.agent_at_rest();
            drop(guest);
            let cloud_init = match root {
                PLAIN => roots.by_cloud_init(number),
                _ => roots.start(root, &user_data(number), "off").first_line(),
            };
            eprintln!("    {root}, {kind}: {first_line:.2} s, cloud-init {cloud_init:.2} s");
            if round > 0 {
                ours.push(first_line);
                peer.push(cloud_init);
                memory.push(at_rest);
            }
        }
        // With systemd both wait for it, and no mark is set.
        let (name, mark) = match root {
            PLAIN => (
                format!("/init to the first line of {kind}"),
                Some(Mark::AtMost(TWENTIETH)),
            ),
            _ => (
                format!("/init to the first line of {kind}, with systemd"),
                None,
            ),
        };
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
