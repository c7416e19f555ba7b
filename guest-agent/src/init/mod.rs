//! /init of the initramfs: from the kernel's first process to the root's.
//!
//! A root with systemd is handed over to it, with the agent as a service of its own. Any other
//! root has this process as its process 1.

pub mod ahead;
mod cmdline;
mod modules;
mod root;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::channel;
use std::thread;

use rustix::mount::{MountFlags, mount};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::network::{self, Names};
use crate::power::{self, End};
use crate::protocol::{Role, StageState};
use crate::signals::Signals;
use crate::voice::Voice;
use crate::{children, netconfig, ports, qga, say, service, session};
use cmdline::CommandLine;
use modules::Modules;

/// What signals process 1 gets, and from whom.
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGCHLD,
    // busybox's `reboot` and `poweroff`, and Ctrl-Alt-Del
    libc::SIGTERM,
    libc::SIGUSR2,
    libc::SIGINT,
    // a power failure
    libc::SIGPWR,
];

/// Runs as process 1; returns only where it is not.
pub fn run() -> ExitCode {
    if let Err(error) = mount_basics() {
        say!("cannot mount what a process needs: {error}");
    }
    open_console();
    say!("userspace");
    let signals = Signals::block(&SIGNALS);
    // Everything else is a thread's work: this one reaps.
    thread::spawn(boot);
    loop {
        match signals.wait() {
            libc::SIGCHLD => drop(children::reap()),
            libc::SIGTERM | libc::SIGINT => power::end(End::Reboot),
            libc::SIGUSR2 | libc::SIGPWR => power::end(End::PowerOff),
            _ => {}
        }
    }
}

fn mount_basics() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, place, flags, data) in [
        ("proc", "/proc", flags, c""),
        ("sysfs", "/sys", flags, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        // The agent's own program may go there, so it is not noexec.
        (
            "tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=755",
        ),
    ] {
        fs::create_dir_all(place)?;
        match mount(kind, place, kind, flags, data) {
            // The kernel may have mounted /dev.
            Err(rustix::io::Errno::BUSY) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives this process the console, which the archive's lack of a node kept from it.
fn open_console() {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console");
    if let Ok(console) = console {
        let _ = dup2_stdin(&console);
        let _ = dup2_stdout(&console);
        let _ = dup2_stderr(&console);
    }
}

fn boot() {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let line = CommandLine::parse(&line);
    let failures = Modules::needed().load();
    // The modules bring the way to the VMM, so this is the first that it can hear.
    let voice = Voice::start(Role::Initramfs);
    session::serve();
    for failure in failures {
        voice.failed("modules", &failure);
    }
    voice.stage("modules", StageState::Done);
    let network = {
        let voice = voice.clone();
        thread::spawn(move || configure(&voice))
    };
    if let Err(reason) = root::mount_root(&line) {
        voice.fatal(&reason);
    }
    voice.stage("root", StageState::Done);
    let names = network.join().ok().flatten();
    let outcome = match root::systemd(&line) {
        Some(init) => {
            for failure in Modules::later().load() {
                voice.failed("modules", &failure);
            }
            hand_over(&init)
        }
        None => become_init(&voice, names.as_ref()),
    };
    if let Err(error) = outcome {
        voice.fatal(&format!("cannot enter the root: {error}"));
    }
}

fn configure(voice: &Voice) -> Option<Names> {
    match network::configure() {
        Ok(names) => {
            voice.stage("network", StageState::Done);
            names
        }
        Err(error) => {
            voice.failed("network", &error.to_string());
            None
        }
    }
}

/// The root has its own init: it gets this process, and the agent comes back as its service.
fn hand_over(init: &Path) -> io::Result<()> {
    service::install(Path::new("/run"), Path::new("/proc/self/exe"))?;
    root::enter()?;
    // Only returns where it failed.
    Err(Command::new(init).exec())
}

/// The root has none: this process stays.
fn become_init(voice: &Voice, names: Option<&Names>) -> io::Result<()> {
    let later = Modules::later();
    root::enter()?;
    let (set_up, over) = channel();
    later.load_after(over, {
        let voice = voice.clone();
        move |why| voice.failed("modules", why)
    });
    voice.role(Role::Init);
    let more = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, place, flags, data) in [
        ("devpts", "/dev/pts", more, c"mode=620,ptmxmode=666"),
        (
            "tmpfs",
            "/dev/shm",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"",
        ),
        ("cgroup2", "/sys/fs/cgroup", more, c""),
    ] {
        let mounted =
            fs::create_dir_all(place).and_then(|()| Ok(mount(kind, place, kind, flags, data)?));
        if let Err(error) = mounted {
            voice.failed("root", &format!("{place}: {error}"));
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        // It may be there.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    if let Some(names) = names
        && let Err(error) = network::tell_root(names)
    {
        voice.failed("network", &error.to_string());
    }
    qga::serve();
    ports::watch(voice);
    service::set_up(voice, Some(netconfig::bring_up));
    drop(set_up);
    Ok(())
}
