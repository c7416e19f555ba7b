//! The system calls of each kind of thread. What a thread may do is the sum of a few sets, so
//! that a set can be named after what it is for.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Kind;

/// Memory, locks, time, an end, and a log: any thread of ours.
const ANY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Waiting for descriptors, and the descriptors that are made for that.
const WAIT: &[c_long] = &[
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_ppoll,
];

/// Timers that are waited for as descriptors.
const TIMER: &[c_long] = &[libc::SYS_timerfd_create, libc::SYS_timerfd_settime];

/// Files that are open.
const FILE: &[c_long] = &[
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_statx,
];

/// Names of files; Landlock says which.
const NAME: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_getdents64,
    libc::SYS_mkdir,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// A ring that there is.
const RING: &[c_long] = &[libc::SYS_io_uring_enter];

/// Sockets that there are.
const SOCKET: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// A thread that starts others.
const THREAD: &[c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
];

/// KVM's ioctls have this in their second byte (linux/include/uapi/linux/kvm.h).
const KVM_TYPE: u64 = 0xae00;
const KVM_RUN: u64 = 0xae80;
const KVM_IRQFD: u64 = 0x4020_ae76;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
/// What a vCPU asks of KVM while it runs.
const VCPU_IOCTLS: &[u64] = &[
    KVM_RUN,
    KVM_IRQFD,
    KVM_IOEVENTFD,
    KVM_SET_GSI_ROUTING,
    KVM_KVMCLOCK_CTRL,
    KVM_GET_REGS,
    KVM_GET_SREGS,
];
const TCGETS: u64 = libc::TCGETS;
const FIONBIO: u64 = libc::FIONBIO;
const FIONREAD: u64 = libc::FIONREAD;
const TIOCOUTQ: u64 = libc::TIOCOUTQ;
/// Descriptors that do not block, and what is in a socket.
const FD_IOCTLS: &[u64] = &[FIONBIO, FIONREAD, TIOCOUTQ];

const UNIX: &[u64] = &[libc::AF_UNIX as u64];
/// Every way into the pod's network and what is known of it.
const NETWORK: &[u64] = &[
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// A filter before it is a program.
#[derive(Default)]
pub struct Filter(BTreeMap<c_long, Vec<SeccompRule>>);

impl Filter {
    fn allow(mut self, calls: &[c_long]) -> Self {
        // No rule is every argument.
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows `call` only where its argument `index` is one of `values` in the bits of `mask`.
    fn allow_if(mut self, call: c_long, index: u8, mask: u64, values: &[u64]) -> Self {
        let rules = values.iter().filter_map(|value| {
            let masked = SeccompCmpOp::MaskedEq(mask);
            let is = SeccompCondition::new(index, SeccompCmpArgLen::Dword, masked, *value);
            SeccompRule::new(vec![is.ok()?]).ok()
        });
        self.0.entry(call).or_default().extend(rules);
        self
    }

    fn sockets(self, families: &[u64]) -> Self {
        self.allow(SOCKET)
            .allow_if(libc::SYS_socket, 0, u64::MAX, families)
            .allow_if(libc::SYS_socketpair, 0, u64::MAX, UNIX)
            .ioctls(FD_IOCTLS)
    }

    fn ioctls(self, requests: &[u64]) -> Self {
        self.allow_if(libc::SYS_ioctl, 1, u64::MAX, requests)
    }

    fn threads(self) -> Self {
        const NAMED: u64 = libc::PR_SET_NAME as u64;
        const NO_MORE: u64 = libc::PR_SET_NO_NEW_PRIVS as u64;
        self.allow(THREAD)
            .allow_if(libc::SYS_prctl, 0, u64::MAX, &[NAMED, NO_MORE])
    }

    /// What any thread may do, memory that can be executed excepted: there is no code but ours.
    fn any() -> Self {
        const EXECUTED: u64 = libc::PROT_EXEC as u64;
        let own = u64::from(std::process::id());
        Self::default()
            .allow(ANY)
            .allow_if(libc::SYS_mmap, 2, EXECUTED, &[0])
            .allow_if(libc::SYS_mprotect, 2, EXECUTED, &[0])
            // An abort, a kick of a vCPU, and the API's SIGTERM.
            .allow_if(libc::SYS_tgkill, 0, u64::MAX, &[own])
            .allow_if(libc::SYS_kill, 0, u64::MAX, &[own])
    }

    /// Confines the calling thread, and those that it starts. A call that is not allowed is not
    /// made, and ends the process.
    pub fn install(self) -> io::Result<()> {
        let filter = SeccompFilter::new(
            self.0,
            SeccompAction::Trap,
            SeccompAction::Allow,
            TargetArch::x86_64,
        );
        let program: BpfProgram = filter
            .and_then(TryInto::try_into)
            .map_err(io::Error::other)?;
        seccompiler::apply_filter(&program).map_err(io::Error::other)
    }
}

/// What the threads may do together; the main thread, which makes the machine, and the one that
/// starts threads have only this.
pub fn process() -> Filter {
    Filter::any()
        .allow(WAIT)
        .allow(TIMER)
        .allow(FILE)
        .allow(RING)
        .allow(NAME)
        .allow(&[libc::SYS_rt_sigtimedwait, libc::SYS_uname, libc::SYS_umask])
        .sockets(NETWORK)
        .threads()
        .ioctls(&[TCGETS])
        .allow_if(libc::SYS_ioctl, 1, 0xff00, &[KVM_TYPE])
}

/// What a thread of that kind may do.
pub fn thread(kind: Kind) -> Filter {
    let any = Filter::any();
    match kind {
        // Setting a device up makes and watches its descriptors.
        Kind::Vcpu => any.allow(WAIT).ioctls(VCPU_IOCTLS),
        // A limited disk sets its timer, which is there; another has a ring, which does no more than
        // read, write and flush.
        Kind::Block => any
            .allow(WAIT)
            .allow(FILE)
            .allow(RING)
            .allow(&[libc::SYS_timerfd_settime]),
        // It waits for a lock's sake only, and tells the process what SIGTERM would.
        Kind::Watchdog => any,
        // Memory goes back by madvise, which any thread may call.
        Kind::Rng | Kind::Balloon => any.allow(WAIT),
        // Its one stream is there.
        Kind::Console => any
            .allow(WAIT)
            .allow(&[libc::SYS_recvfrom, libc::SYS_sendto]),
        Kind::Vsock => any.allow(WAIT).sockets(UNIX),
        // It reads resolv.conf again when that has changed, and its rates have a timer.
        Kind::Net => any
            .allow(WAIT)
            .allow(TIMER)
            .allow(FILE)
            .allow(NAME)
            .sockets(NETWORK),
        // The ports that it reports are listened on by whoever is told of them.
        Kind::Agent => any.allow(WAIT).sockets(NETWORK),
        Kind::Signals => any
            .allow(WAIT)
            .allow(&[libc::SYS_rt_sigtimedwait])
            .sockets(UNIX),
        // A capture is a file, and a thread that writes it.
        Kind::Api => any
            .allow(WAIT)
            .allow(FILE)
            .allow(NAME)
            .sockets(NETWORK)
            .threads(),
    }
}
