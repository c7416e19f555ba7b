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
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::network::{self, Names, Taken};
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

/// How long a guest's set-up is waited for with what only takes its CPU: with what somebody may ask for,
/// and after that with the rest.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(30);

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
    let mut failures = Modules::disks().load();
    // While that waits for the root's disk.
    let others = thread::spawn(reach_others);
    let mounted = root::mount_root(&line);
    failures.extend(Modules::of_disks().load());
    let Ok((voice, network)) = others.join() else {
        // A panic, which has been told of.
        return;
    };
    report(&voice, failures);
    if let Err(reason) = mounted {
        voice.fatal(&reason);
    }
    voice.stage("root", StageState::Done);
    let outcome = match root::systemd(&line) {
        Some(init) => {
            network.wait(&voice);
            for modules in [Modules::soon(), Modules::later()] {
                report(&voice, modules.load());
            }
            hand_over(&init)
        }
        None => become_init(&voice, network),
    };
    if let Err(error) = outcome {
        voice.fatal(&format!("cannot enter the root: {error}"));
    }
}

/// Opens the ways to the network, where others may take their time to answer, and to the VMM.
fn reach_others() -> (Voice, Network) {
    let mut failures = Modules::network().load();
    let network = Network::start();
    failures.extend(Modules::needed().load());
    // The modules bring the way to the VMM, so this is the first that it can hear.
    let voice = Voice::start(Role::Initramfs);
    session::serve();
    report(&voice, failures);
    voice.stage("modules", StageState::Done);
    (voice, network)
}

fn report(voice: &Voice, failures: Vec<String>) {
    for failure in failures {
        voice.failed("modules", &failure);
    }
}

/// The guest's first card, which is waiting for its addresses; nothing of the file system is asked for
/// meanwhile.
struct Network(JoinHandle<io::Result<Option<Names>>>);

impl Network {
    fn start() -> Self {
        let card = network::bring_up();
        let all = Some(Taken::default());
        Self(thread::spawn(move || match card? {
            Some(card) => network::lease(&card, all, all).map(Some),
            None => Ok(None),
        }))
    }

    fn wait(self, voice: &Voice) -> Option<Names> {
        // A panic has been told of.
        match self.0.join().ok()? {
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
}

/// The root has its own init: it gets this process, and the agent comes back as its service.
fn hand_over(init: &Path) -> io::Result<()> {
    service::install(Path::new("/run"), Path::new("/proc/self/exe"))?;
    root::enter()?;
    // Only returns where it failed.
    Err(Command::new(init).exec())
}

/// The root has none: this process stays.
fn become_init(voice: &Voice, network: Network) -> io::Result<()> {
    // Open, for the initramfs is out of reach then.
    let (soon, later) = (Modules::soon(), Modules::later());
    root::enter()?;
    let (set_up, over) = channel::<()>();
    thread::spawn({
        let voice = voice.clone();
        move || {
            let _ = over.recv_timeout(SOON);
            report(&voice, soon.load_beside());
            qga::serve();
            ports::watch(&voice);
            let _ = over.recv_timeout(LATER);
            report(&voice, later.load());
        }
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
    if let Some(names) = network.wait(voice)
        && let Err(error) = network::tell_root(&names)
    {
        voice.failed("network", &error.to_string());
    }
    service::set_up(voice, Some(netconfig::bring_up));
    // Ends the wait.
    drop(set_up);
    Ok(())
}
