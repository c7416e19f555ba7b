//! Keeps two processes from writing one image, by the byte ranges that QEMU locks too
//! (block/file-posix.c): byte 100 + n is held by who uses permission n, byte 200 + n by who does
//! not share it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

const USES: i64 = 100;
const DOES_NOT_SHARE: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const UNSHARED: [i64; 2] = [WRITE, RESIZE];

/// How often it is tried again, and after how long. An owner that has closed its file may be starting
/// another program that moment, which holds the lock until it is that program.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Locks `file` until it is closed; false where another process's lock is in the way and stays.
pub fn lock(file: &File, read_only: bool) -> io::Result<bool> {
    for _ in 0..ATTEMPTS {
        if try_lock(file, read_only)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(false)
}

fn try_lock(file: &File, read_only: bool) -> io::Result<bool> {
    let used: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
    for byte in used
        .iter()
        .map(|n| USES + n)
        .chain(UNSHARED.map(|n| DOES_NOT_SHARE + n))
    {
        if !set(file, byte)? {
            return Ok(false);
        }
    }
    let others = used
        .iter()
        .map(|n| DOES_NOT_SHARE + n)
        .chain(UNSHARED.map(|n| USES + n));
    for byte in others {
        if is_held_elsewhere(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: all zeros is a valid flock.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = byte;
    range.l_len = 1;
    range
}

/// A shared lock on one byte; false where somebody has it for himself.
fn set(file: &File, byte: i64) -> io::Result<bool> {
    let range = range(libc::F_RDLCK, byte);
    // SAFETY: the pointer is to a flock that lives through the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}

fn is_held_elsewhere(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = range(libc::F_WRLCK, byte);
    // SAFETY: as above; the kernel writes the flock that it finds into it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(range.l_type) != libc::F_UNLCK)
}
