//! File systems that stand still while somebody takes a snapshot of their disks (ioctl_fs(2),
//! `FIFREEZE`): what was written is on the disk, and whoever writes waits.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::filesystems::{self, Mount};
use super::guard::Guard;
use crate::say;
use crate::userdata::files;

/// Which places stand still, each with a NUL after it, for an agent that starts anew.
const RECORD: &str = "/run/peapod/frozen";

/// linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xc004_5877u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878u32 as libc::Ioctl;

/// What is frozen, and by which call.
#[derive(Debug, Default)]
struct Frozen {
    call: u64,
    /// In the order in which they were frozen.
    places: Vec<File>,
    guard: Option<Guard>,
}

static FROZEN: Mutex<Frozen> = Mutex::new(Frozen {
    call: 0,
    places: Vec::new(),
    guard: None,
});

fn frozen() -> MutexGuard<'static, Frozen> {
    FROZEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether they stand still.
pub fn is_frozen() -> bool {
    !frozen().places.is_empty()
}

/// Has every file system of a disk that can be written to stand still, until [`thaw`] or for so many
/// seconds. How many do. Where one does not, none does.
pub fn freeze(seconds: u32) -> Result<u32, String> {
    freeze_these(&filesystems::mounts(), seconds)
}

/// As [`freeze`], of these file systems only.
pub fn freeze_these(mounts: &[Mount], seconds: u32) -> Result<u32, String> {
    let mut frozen = frozen();
    if !frozen.places.is_empty() {
        return Err("the file systems are frozen already".to_owned());
    }
    let mounts: Vec<_> = mounts.iter().filter(|mount| !mount.read_only).collect();
    if mounts.is_empty() {
        return Ok(0);
    }
    frozen.call += 1;
    let call = frozen.call;
    let unguarded = |error| format!("who would have them go on cannot start: {error}");
    // Before anything stands still that a process or a thread may need for its start.
    record(&mounts)
        .and_then(|()| Guard::post(&mounts, seconds))
        .map(|guard| frozen.guard = Some(guard))
        .map_err(unguarded)?;
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(seconds.into()));
        thaw_of(Some(call));
    });
    // What is mounted later may lie on what was mounted before.
    for mount in mounts.iter().rev() {
        let why = match File::open(&mount.place).and_then(|at| stop(&at).map(|()| at)) {
            Ok(at) => {
                frozen.places.push(at);
                continue;
            }
            // It cannot stand still at all.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                "somebody else has frozen it".to_owned()
            }
            Err(error) => error.to_string(),
        };
        go_on(&mut frozen);
        return Err(format!("{}: {why}", mount.place));
    }
    Ok(frozen.places.len() as u32)
}

/// Has them go on. How many do.
pub fn thaw() -> u32 {
    thaw_of(None)
}

/// Has those of one call go on, or whatever is frozen.
fn thaw_of(call: Option<u64>) -> u32 {
    let mut frozen = frozen();
    match call.is_none_or(|call| call == frozen.call) {
        true => go_on(&mut frozen),
        false => 0,
    }
}

/// The last that was frozen first: what it lies on may be another one.
fn go_on(frozen: &mut Frozen) -> u32 {
    let places = std::mem::take(&mut frozen.places);
    let gone_on = places.iter().rev().filter(|at| start(at).is_ok());
    let count = gone_on.count() as u32;
    frozen.guard = None;
    // Without one there is nothing to mend.
    let _ = fs::remove_file(RECORD);
    count
}

fn record(mounts: &[&Mount]) -> io::Result<()> {
    let places: String = mounts.iter().map(|m| m.place.clone() + "\0").collect();
    files::write(Path::new(RECORD), places.as_bytes(), 0o600)
}

/// Has those go on that an agent before this one has left behind, its guard with it.
pub fn mend() {
    let places = fs::read_to_string(RECORD).unwrap_or_default();
    for place in places.split_terminator('\0') {
        if File::open(place).and_then(|at| start(&at)).is_ok() {
            say!("{place} stood still since the last agent's end; it goes on");
        }
    }
    let _ = fs::remove_file(RECORD);
}

fn stop(at: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel does not look at what would be the argument.
    match unsafe { libc::ioctl(at.as_raw_fd(), FIFREEZE, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has one go on.
pub(super) fn start(at: &File) -> io::Result<()> {
    // SAFETY: as in `stop`.
    match unsafe { libc::ioctl(at.as_raw_fd(), FITHAW, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
