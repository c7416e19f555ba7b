//! Peapod's guest agent: /init of an initramfs, process 1 of a plain root, or a service of a
//! distribution's own init. It does what cloud-init does, and speaks for the guest.
//!
//! [`protocol`] is what the VMM uses too.

pub mod accounts;
pub mod calendar;
pub mod children;
pub mod cli;
pub mod guest;
pub mod heap;
pub mod http;
pub mod init;
mod labels;
pub mod netconfig;
pub mod network;
pub mod os;
pub mod pattern;
pub mod ports;
pub mod power;
pub mod protocol;
pub mod qga;
pub mod seed;
pub mod service;
pub mod session;
pub mod signals;
pub mod sshd;
pub mod userdata;
pub mod voice;
pub mod yaml;

/// Says one line on the console, which is standard error everywhere here.
#[macro_export]
macro_rules! say {
    ($($word:tt)*) => { eprintln!("peapod-agent: {}", format_args!($($word)*)) };
}

/// Milliseconds since the kernel started its clock.
pub fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // The clock starts at 0 and nanoseconds are below a second.
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
