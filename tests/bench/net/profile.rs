//! What a contender's process does for a stream and for a request: system calls, wake-ups, and time on a
//! CPU. It is watched meanwhile, which makes it slower, so nothing here says how fast it is.
//!
//! In the lab with the clock of instructions the time is what it executes, its system calls included:
//! 2 ns an instruction.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use peapod_tests::bench::{Thread, threads};
use peapod_tests::sides::Way;
use peapod_tests::space::about;
use rustix::process::{Pid, Signal, kill_process};

use crate::measure::LIMIT;
use crate::site::Site;

/// The kernel's own account of system calls, whoever makes them.
const CALLS: &str = "raw_syscalls:sys_enter";

/// What a process has done.
struct Work {
    calls: f64,
    wakes: f64,
    nanoseconds: f64,
    /// Frames that went either way between it and the guest.
    frames: f64,
}

/// For a stream, by the MiB; and the time for a frame, which is of up to 64 KiB.
pub fn stream(site: &mut Site, way: Way, to: SocketAddr) -> io::Result<Vec<f64>> {
    let Some((work, [bytes, _])) = watched(site, |site| {
        let client = site.load(way, &format!("send {to}"))?;
        let received = site.server(way).numbers::<2>(LIMIT);
        drop(client);
        received
    })?
    else {
        return Ok(vec![f64::NAN; 4]);
    };
    let mib = bytes / f64::from(1 << 20);
    let each = [work.calls, work.wakes, work.frames].map(|count| count / mib);
    Ok([&each[..], &[work.nanoseconds / work.frames]].concat())
}

/// For a byte there and back.
pub fn ask(site: &mut Site, way: Way, to: SocketAddr, times: usize) -> io::Result<Vec<f64>> {
    let asked = watched(site, |site| {
        let client = site.load(way, &format!("ask {to} {times}"))?;
        client.numbers::<2>(LIMIT)
    })?;
    // The first tenth is asked besides.
    let asks = (times + times / 10) as f64;
    Ok(asked.map_or(vec![f64::NAN; 3], |(work, _)| {
        vec![
            work.calls / asks,
            work.wakes / asks,
            work.nanoseconds / asks,
        ]
    }))
}

/// What a contender's process does meanwhile, and what comes of that; nothing where it has none.
fn watched<T>(
    site: &mut Site,
    during: impl FnOnce(&mut Site) -> io::Result<T>,
) -> io::Result<Option<(Work, T)>> {
    let Some(process) = site.process.as_ref().map(|process| process.id()) else {
        return Ok(None);
    };
    let done = |site: &Site| {
        let threads = threads(process)?;
        let sum = |figure: fn(&Thread) -> u64| threads.iter().map(figure).sum::<u64>() as f64;
        Ok::<_, io::Error>([sum(|t| t.sleeps), sum(|t| t.ran), site.frames()?])
    };
    let counter = Counter::start(process)?;
    let before = done(site)?;
    let outcome = during(site)?;
    let after = done(site)?;
    let [wakes, nanoseconds, frames] = [0, 1, 2].map(|i| after[i] - before[i]);
    let work = Work {
        calls: counter.end()?,
        wakes,
        nanoseconds,
        frames,
    };
    Ok(Some((work, outcome)))
}

/// perf, which counts a process's system calls.
struct Counter {
    perf: Child,
    file: PathBuf,
}

impl Counter {
    fn start(process: u32) -> io::Result<Self> {
        let file = PathBuf::from(format!("/run/perf.{process}"));
        let (id, to) = (process.to_string(), file.to_string_lossy());
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", CALLS, "-p", &id, "-o", &to]);
        let perf = perf.stdout(Stdio::null()).spawn();
        let perf = perf.map_err(|error| about("perf (Debian has it in linux-perf)", error))?;
        let start = Instant::now();
        // Its counters are open before it opens what it will write them to.
        while fs::metadata(&file).is_err() && start.elapsed() < LIMIT {
            sleep(Duration::from_millis(10));
        }
        sleep(Duration::from_millis(100));
        Ok(Self { perf, file })
    }

    fn end(mut self) -> io::Result<f64> {
        if let Some(id) = Pid::from_raw(self.perf.id() as i32) {
            kill_process(id, Signal::INT)?;
        }
        self.perf.wait()?;
        let said = fs::read_to_string(&self.file)?;
        fs::remove_file(&self.file)?;
        let line = said.lines().find(|line| line.contains(CALLS));
        let count = line.and_then(|line| line.split(',').next()?.parse().ok());
        count.ok_or_else(|| io::Error::other(format!("perf counts no {CALLS}: {said}")))
    }
}
