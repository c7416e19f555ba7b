//! Ahead of the /init of a disk's own initramfs, which has never heard of an agent.
//!
//! Process 1 becomes that /init at once. A follower stays behind and waits for two things:
//!
//! 1. /run, which initramfs-tools, dracut and systemd keep across the switch to the root: there it
//!    leaves the agent and its units.
//! 2. The switch itself, after which a root that has systemd is left to it. In any other the
//!    follower is the agent.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, openat, statat, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{chroot, fchdir, setsid};

use super::cmdline::CommandLine;
use super::root::SYSTEMD;
use crate::{labels, say, service};

/// Where the VMM's archive has this program: `rdinit=`.
pub const PROGRAM: &str = "/peapod/agent";
/// What the follower is called: systemd ends whatever else an initramfs has started
/// (systemd's ROOT_STORAGE_DAEMONS).
const NAME: &str = "@peapod-agent";
/// How the follower is asked for.
pub const FOLLOW: &str = "follow";
/// A mount point for as long as it takes to open what is mounted there.
const PROC: &str = "/peapod/proc";
const RUN: &str = "/run";
/// initramfs-tools mounts /run so that no program may lie there.
const PROGRAMS: &str = "/run/peapod";
/// A change of root is no event.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// How long a root may take to become writable.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs as process 1; returns only where there is no /init.
pub fn run() -> ExitCode {
    let follower = Command::new(PROGRAM).arg0(NAME).arg(FOLLOW).spawn();
    if let Err(error) = follower {
        say!("the agent stays out: {error}");
    }
    let error = Command::new("/init").args(env::args_os().skip(1)).exec();
    say!("the disk's initramfs has an /init that cannot be started: {error}");
    ExitCode::FAILURE
}

/// Runs as the follower.
pub fn follow() -> ExitCode {
    // Whoever ends the session of /init does not mean this process.
    let _ = setsid();
    match reach_root() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            // As soon as it can be; nothing here can make this root's init wait.
            let network = Command::new("/proc/self/exe").arg("network").status();
            if let Err(error) = network {
                say!("network: {error}");
            }
            service::run()
        }
        Err(error) => {
            say!("the agent cannot follow to the root: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this boot began here.
pub fn led_here() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    CommandLine::parse(&line).rdinit.as_deref() == Some(PROGRAM)
}

/// Goes where process 1 goes. Whether the root has systemd, and a unit for it in /run.
fn reach_root() -> io::Result<bool> {
    let proc = open_proc()?;
    let mounts = openat(
        &proc,
        "self/mountinfo",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let (_, here) = root_of_init(&proc)?;
    let mut left = None;
    let root = loop {
        let (root, there) = root_of_init(&proc)?;
        if there != here {
            break root;
        }
        if left.is_none() && is_mounted(RUN) {
            let outcome = leave_agent();
            if let Err(error) = &outcome {
                say!("cannot leave the agent in {RUN}: {error}");
            }
            left = Some(outcome.is_ok());
        }
        // proc(5): a change of the mounts is an exceptional condition of this file.
        poll(&mut [PollFd::new(&mounts, PollFlags::PRI)], Some(&PAUSE))?;
    };
    let line = read_line(&proc);
    fchdir(root)?;
    chroot(".")?;
    if has_systemd(&line) && left == Some(true) {
        labels::label_program(&proc, &service::program(Path::new(RUN)))?;
        return Ok(true);
    }
    wait_until_writable();
    Ok(false)
}

/// A /proc that is at no place of the initramfs, whose /init mounts its own.
fn open_proc() -> io::Result<OwnedFd> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", PROC, "proc", flags, None)?;
    let proc = openat(
        CWD,
        PROC,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    unmount(PROC, UnmountFlags::DETACH)?;
    Ok(proc)
}

/// The root of process 1, and which it is.
fn root_of_init(proc: &OwnedFd) -> io::Result<(OwnedFd, (u64, u64))> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(proc, "1/root", flags, Mode::empty())?;
    let found = statat(&root, "", AtFlags::EMPTY_PATH)?;
    Ok((root, (found.st_dev, found.st_ino)))
}

fn is_mounted(place: &str) -> bool {
    let device = |path: &str| fs::metadata(path).map(|found| found.dev());
    matches!((device(place), device("/")), (Ok(there), Ok(here)) if there != here)
}

/// Puts the agent where programs may lie, and its units where systemd looks.
fn leave_agent() -> io::Result<()> {
    fs::create_dir_all(PROGRAMS)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", PROGRAMS, "tmpfs", flags, c"mode=755")?;
    service::install(Path::new(RUN), Path::new(PROGRAM))
}

fn read_line(proc: &OwnedFd) -> CommandLine {
    let line = openat(
        proc,
        "cmdline",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let text = line.map(|line| io::read_to_string(fs::File::from(line)));
    CommandLine::parse(&text.ok().and_then(Result::ok).unwrap_or_default())
}

/// Whether this root's init is systemd.
fn has_systemd(line: &CommandLine) -> bool {
    let init = line.init.as_deref().unwrap_or("/sbin/init");
    let Ok(init) = fs::canonicalize(init) else {
        return false;
    };
    let systemd = SYSTEMD.iter().map(|path| Path::new("/").join(path));
    let known: Vec<PathBuf> = systemd
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    known.contains(&init)
}

/// An init of another kind checks the root's file system before it may be written.
fn wait_until_writable() {
    let end = Instant::now() + PATIENCE;
    let read_only = |found: rustix::fs::StatVfs| found.f_flag.contains(StatVfsMountFlags::RDONLY);
    while statvfs("/").is_ok_and(read_only) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
}
