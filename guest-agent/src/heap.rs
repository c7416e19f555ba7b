//! The C library's heap, which the agent shares between its threads and does not keep for itself.

/// Has all threads share a heap, for each has a few pages of its own otherwise; to be called before
/// there are others.
#[cfg(target_env = "gnu")]
pub fn share() {
    // SAFETY: mallopt(3) takes two numbers, and no other thread is there that allocates meanwhile.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the kernel what nothing lies in.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: malloc_trim(3) takes no pointer, and locks the heap as malloc itself does.
    unsafe { libc::malloc_trim(0) };
}
