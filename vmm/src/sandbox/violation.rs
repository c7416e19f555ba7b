//! What becomes of a thread that makes a system call which its job has no need of: the kernel
//! does not make the call and sends SIGSYS, and the process ends with a line that names both.

use std::cell::Cell;
use std::io;

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

/// The status that the process then ends with.
pub const STATUS: libc::c_int = 6;
/// Where `siginfo_t` has the number of the call (linux/include/uapi/asm-generic/siginfo.h).
const CALL: usize = 24;

thread_local! {
    static NAME: Cell<&'static str> = const { Cell::new("main") };
}

/// The calling thread is called that in the line.
pub fn name_thread(name: &'static str) {
    NAME.set(name);
}

/// Installs what says the line.
pub fn report() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, forbidden).map_err(io::Error::from)
}

/// Allocates nothing and takes no lock: the thread was in the midst of anything.
extern "C" fn forbidden(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a whole siginfo_t, whose size is 128.
    let call = unsafe { info.cast::<u8>().add(CALL).cast::<i32>().read_unaligned() };
    let number = usize::try_from(call).unwrap_or(usize::MAX);
    let name = Sysno::new(number).map_or("a system call that has no name", |call| call.name());
    for part in [
        "peapod: sandbox: the thread ",
        NAME.get(),
        " wanted to make a system call that is not its to make: ",
        name,
        "; nothing was done and the process ends\n",
    ] {
        // SAFETY: the bytes are the string's own. Where standard error is gone so is the line.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process; nothing of it is used after.
    unsafe { libc::_exit(STATUS) }
}
