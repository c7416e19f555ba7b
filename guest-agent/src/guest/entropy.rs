//! The kernel's random numbers, which two guests of one snapshot would have alike (random(4)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// linux/include/uapi/linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// The most that is taken: more than the kernel makes use of.
const MOST: usize = 64;

/// `struct rand_pool_info`, with room for what is taken.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; MOST],
}

/// Mixes in a seed that nobody else has, and has every number after it depend on it.
pub fn reseed(seed: &[u8]) -> Result<(), String> {
    let mut pool = Pool {
        entropy_bits: 0,
        bytes: 0,
        seed: [0; MOST],
    };
    for (to, from) in pool.seed.iter_mut().zip(seed) {
        *to = *from;
        pool.bytes += 1;
        pool.entropy_bits += 8;
    }
    let add = || {
        let device = File::open("/dev/random")?;
        // SAFETY: the kernel reads so many bytes of the structure as it says, which are there.
        let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call touches no memory of ours.
        if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    add().map_err(|error| format!("the random numbers: {error}"))
}
