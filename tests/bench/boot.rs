//! `make bench`: how long a VM takes to boot and to answer, and what it costs beyond its guest,
//! beside QEMU with the same kernel, initramfs and root, in turns, where KVM works.
//!
//! Everything that either reads lies in memory, so that neither waits for a disk.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use peapod_tests::Boot;
use peapod_tests::bench::{Record, report};

const ROUNDS: usize = 7;
const MEMORY_MIB: u64 = 512;
const PORT: u16 = 9080;
const LIMIT: Duration = Duration::from_secs(120);
const FIRST_LINE: &[u8] = b"peapod-agent: userspace";
const USER_DATA: &str = "#!/bin/bash\ncd /opt/details\nruby details.rb 9080 &\n";

/// What one boot took.
struct Times {
    userspace: f64,
    answer: f64,
    memory: f64,
}

/// A running VM, killed in the end.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(mut command: Command) -> Times {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the VM");
    let lines = first_line(child.stdout.take().unwrap(), start);
    let vm = Vm(child);
    let userspace = lines.recv_timeout(LIMIT).expect("a line from userspace");
    while !answers() {
        assert!(start.elapsed() < LIMIT, "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    Times {
        userspace,
        answer: start.elapsed().as_secs_f64(),
        memory: memory_beyond_the_guest(vm.0.id()),
    }
}

/// When the first line from userspace came; what follows is read and thrown away.
fn first_line(mut console: impl Read + Send + 'static, start: Instant) -> Receiver<f64> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut seen, mut bytes) = (Vec::<u8>::new(), [0; 4096]);
        while let Ok(n @ 1..) = console.read(&mut bytes) {
            seen.extend(&bytes[..n]);
            if seen.windows(FIRST_LINE.len()).any(|w| w == FIRST_LINE) {
                let _ = sender.send(start.elapsed().as_secs_f64());
                seen.clear();
            }
        }
    });
    receiver
}

fn answers() -> bool {
    let request = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
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
    let files = Boot::new(USER_DATA, MEMORY_MIB, &[PORT]);
    let network = format!("user,id=n,hostfwd=tcp:127.0.0.1:{PORT}-:{PORT}");
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    // The first of each is not counted: it reads the programs themselves.
    for round in 0..=ROUNDS {
        let (a, b) = (
            measure(files.peapod()),
            measure(files.qemu(&["-netdev", &network])),
        );
        if round > 0 {
            ours.push(a);
            peer.push(b);
        }
    }
    let record = |name: &str, unit, figure: fn(&Times) -> f64| {
        let series = |boots: &[Times]| boots.iter().map(figure).collect::<Vec<_>>();
        Record::new(
            name,
            unit,
            &series(&ours),
            ("qemu q35, slirp", &series(&peer)),
            None,
        )
    };
    let records = [
        record("process start to first line of userspace", "s", |b| {
            b.userspace
        }),
        record("process start to first answer on 9080", "s", |b| b.answer),
        record("memory beyond the guest's (PSS)", "MiB", |b| b.memory),
    ];
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `make bench`");
    report(Path::new(&directory), "boot", &records).unwrap();
}
