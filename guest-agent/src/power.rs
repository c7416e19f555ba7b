//! How the guest is ended: by process 1, everybody else first, then what they wrote, then the
//! machine; or by the root's own init, where that is process 1.

use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};

use crate::guest::freeze;
use crate::{children, say};

/// How long the processes have between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to do in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Off.
    PowerOff,
    /// Start again.
    Reboot,
}

/// Ends every process, syncs the disks and ends the machine. Process 1 only.
pub fn end(end: End) -> ! {
    say!(
        "{}",
        match end {
            End::PowerOff => "powering off",
            End::Reboot => "rebooting",
        }
    );
    // Nobody could end that waits for its disk.
    freeze::thaw();
    stop_everybody();
    rustix::fs::sync();
    // What cannot be made read-only has been synced.
    for place in mounted() {
        let _ = mount_remount(&*place, MountFlags::RDONLY, c"");
    }
    now(end)
}

/// Ends the machine as it is.
pub fn now(end: End) -> ! {
    rustix::fs::sync();
    let command = match end {
        End::PowerOff => RebootCommand::PowerOff,
        End::Reboot => RebootCommand::Restart,
    };
    loop {
        if let Err(error) = reboot(command) {
            say!("the kernel does not end: {error}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn stop_everybody() {
    signal_everybody(libc::SIGTERM);
    let end = Instant::now() + PATIENCE;
    // Whose parent has ended is a child of this process.
    while crate::children::reap() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal_everybody(libc::SIGKILL);
}

/// Signals every process but this one, which is process 1.
fn signal_everybody(signal: libc::c_int) {
    // SAFETY: kill() touches no memory. -1 is everybody but process 1 and kernel threads.
    unsafe { libc::kill(-1, signal) };
}

/// Where file systems that a disk holds are mounted, the innermost first.
fn mounted() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut places: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, place) = (words.next()?, words.next()?);
            device.starts_with("/dev/").then(|| place.to_owned())
        })
        .collect();
    places.reverse();
    places
}

/// Asks whoever is process 1 to end the machine.
pub fn ask(end: End) -> io::Result<()> {
    freeze::thaw();
    match std::process::id() {
        1 => {
            // Its other thread does it.
            ask_process_one(end);
            Ok(())
        }
        _ => ask_init(end),
    }
}

/// Asks the root's own init.
fn ask_init(end: End) -> io::Result<()> {
    let word = match end {
        End::PowerOff => "poweroff",
        End::Reboot => "reboot",
    };
    let systemd = children::spawn(Command::new("systemctl").args(["--no-block", word]));
    let (name, child) = match systemd {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (word, children::spawn(&mut Command::new(word))?)
        }
        child => ("systemctl", child?),
    };
    match children::failure(child.wait()) {
        None => Ok(()),
        Some(how) => Err(io::Error::other(format!("{name}: {how}"))),
    }
}

/// Asks process 1, which is this agent or understands the same signals.
pub fn ask_process_one(end: End) {
    let signal = match end {
        End::PowerOff => libc::SIGUSR2,
        End::Reboot => libc::SIGTERM,
    };
    // SAFETY: kill() touches no memory.
    unsafe { libc::kill(1, signal) };
}
