//! The host beside KVM: memory, descriptors, what confines a process, ports.

use std::path::Path;

use super::Check;
use crate::{checks, host};
use netdev::config::Forward;

/// A machine with several disks and a busy network stays below; each connection is one more.
const DESCRIPTORS: u64 = 1024;

/// All but the ports.
pub(super) fn all() -> Vec<Check> {
    vec![
        memory(),
        descriptors(),
        user_namespaces(),
        seccomp(),
        landlock(),
        node("vhost-net", "/dev/vhost-net"),
        node("vhost-vsock", "/dev/vhost-vsock"),
    ]
}

/// Whether a port is free.
pub(super) fn port(forward: &Forward) -> Check {
    let name = format!("port-{}/{}", forward.bind.port(), forward.transport);
    match checks::ports(std::slice::from_ref(forward)) {
        Ok(()) => Check::ok(&name, true, format!("{} is free", forward.bind)),
        Err(e) => Check::missing(&name, true, e.to_string(), None),
    }
}

fn memory() -> Check {
    match host::memory_limit() {
        Ok(limit) => Check::ok(
            "memory",
            true,
            format!("up to {} MiB, by {}", limit.bytes >> 20, limit.origin),
        ),
        Err(e) => Check::missing("memory", true, format!("limits cannot be read: {e}"), None),
    }
}

fn descriptors() -> Check {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one rlimit to the pointer, which is a local one.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0;
    let detail = format!("{} open files, at most {}", limit.rlim_cur, limit.rlim_max);
    if failed || limit.rlim_cur < DESCRIPTORS {
        return Check::missing(
            "descriptors",
            true,
            detail,
            Some("raise it: ulimit -n 1024"),
        );
    }
    Check::ok("descriptors", true, detail)
}

fn user_namespaces() -> Check {
    // Only a process of its own can try it and leave nothing behind.
    // SAFETY: the child calls unshare and _exit only, both async-signal-safe.
    let made = unsafe {
        match libc::fork() {
            0 => libc::_exit(libc::unshare(libc::CLONE_NEWUSER)),
            -1 => false,
            child => {
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0) == child && status == 0
            }
        }
    };
    if made {
        return Check::ok("userns", false, "user namespaces can be made");
    }
    Check::missing("userns", false, "no user namespaces for this user", None)
}

fn seccomp() -> Check {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: SECCOMP_GET_ACTION_AVAIL reads one u32 at the pointer, a local one (seccomp(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    match result {
        0 => Check::ok("seccomp", false, "filters can kill a process"),
        _ => Check::missing("seccomp", false, "no seccomp filters in this kernel", None),
    }
}

fn landlock() -> Check {
    /// landlock_create_ruleset(2): asks for the version of the ABI instead of a ruleset.
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the pointer must be null and the size 0; nothing is written.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if abi > 0 {
        return Check::ok("landlock", false, format!("ABI {abi}"));
    }
    Check::missing(
        "landlock",
        false,
        "not in this kernel, or not enabled",
        None,
    )
}

fn node(name: &str, path: &str) -> Check {
    if Path::new(path).exists() {
        return Check::ok(name, false, format!("{path}, which is not used"));
    }
    Check::missing(name, false, format!("no {path}"), None)
}
