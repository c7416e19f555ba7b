//! Signals that a thread waits for instead of being interrupted.

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks the signals for this thread and those that it starts from now on. A child's own
    /// mask is cleared by [`std::process::Command`].
    pub fn block(signals: &[libc::c_int]) -> Self {
        // SAFETY: sigemptyset initialises the set, which is plain data and outlives the calls.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Self(set)
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) -> libc::c_int {
        let mut signal = 0;
        // SAFETY: both pointers are to data that outlives the call.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        signal
    }
}
