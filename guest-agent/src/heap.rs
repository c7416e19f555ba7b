//! The C library's heap, which the agent shares between its threads.

/// Has all threads share a heap, for each has a few pages of its own otherwise; to be called before
/// there are others.
pub fn share() {
    // SAFETY: mallopt(3) takes two numbers, and no other thread is there that allocates meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
