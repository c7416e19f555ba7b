//! What a process that is a network sets up for itself.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// From so many bytes on a buffer is large: malloc's own measure, before it changes it.
const LARGE_BUFFER: libc::c_int = 128 << 10;

/// For so many descriptors there is room at once.
const DESCRIPTORS: i32 = 1024;

/// Raises the soft limit of open files to the hard one: every flow is a socket. Where it fails the
/// limit stays, and flows beyond it are refused. It is for a process that has one thread: its table of
/// descriptors grows then, and once there are more the kernel waits for every processor whenever it does
/// (fs/file.c, `expand_fdtable`), which takes some 10 ms.
pub fn make_room_for_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("limit of open files: {error}");
    }
    // Where that is more than may be, the table grows when it has to.
    let _ = eventfd(0, EventfdFlags::CLOEXEC)
        .and_then(|any| rustix::io::fcntl_dupfd_cloexec(any, DESCRIPTORS - 1));
}

/// Has the C library map each large buffer by itself, which gives it back as soon as it is free, and
/// has of it in memory what was written. Left alone it takes the first one that is freed for a sign
/// that such come and go, and keeps all later ones in its heap: as many as there ever were at once.
pub fn give_large_buffers_back() {
    // SAFETY: mallopt(3) sets how malloc goes on and touches no memory of ours.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BUFFER) };
}

/// Blocks SIGTERM and SIGINT, from now on and for threads made later, and returns a descriptor
/// that can be read when one of them has come (signalfd(2)).
pub fn stop_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is a local one; sigemptyset makes it whole before it is used. The
    // descriptor is new, and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Goes on in a child with a session of its own and no terminal, and returns its number in the
/// parent. An error where there is more than one thread: the child has the calling one only.
pub fn go_to_background() -> io::Result<Option<u32>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there are threads already"));
    }
    // SAFETY: there is one thread only, so the child has all that it might wait for.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child > 0 {
        return Ok(Some(child.unsigned_abs()));
    }
    rustix::process::setsid()?;
    let nothing = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(None)
}
