//! The machine and its operating system, as the kernel and the root tell of them.

use std::fs;

use crate::os;
use crate::protocol::{Memory, Os, Timezone};

/// Its name.
pub fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// The operating system.
pub fn os() -> Os {
    let mut release = os::release();
    let mut word = |key: &str| release.remove(key).unwrap_or_default();
    let kernel = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Os {
        id: word("ID"),
        name: word("NAME"),
        pretty_name: word("PRETTY_NAME"),
        version: word("VERSION"),
        version_id: word("VERSION_ID"),
        kernel_release: text(kernel.release()),
        kernel_version: text(kernel.version()),
        machine: text(kernel.machine()),
    }
}

/// The zone that the root's C library would tell the time of.
pub fn timezone() -> Timezone {
    let now = (super::clock::now() / 1_000_000_000) as libc::time_t;
    let mut local = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to what lives here; the C library fills in all of the second, and
    // changes no other memory of ours: nobody here sets the environment.
    let told = unsafe { libc::localtime_r(&raw const now, local.as_mut_ptr()) };
    if told.is_null() {
        return Timezone::default();
    }
    // SAFETY: zeroed is a value of it already.
    let local = unsafe { local.assume_init() };
    let name = match local.tm_zone.is_null() {
        true => String::new(),
        // SAFETY: where it is not null it is the C library's own string, which stays.
        false => unsafe { std::ffi::CStr::from_ptr(local.tm_zone) }
            .to_string_lossy()
            .into_owned(),
    };
    Timezone {
        name,
        offset_seconds: local.tm_gmtoff,
    }
}

/// proc_loadavg(5)
pub fn load() -> [f64; 3] {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut words = text.split(' ').map(|word| word.parse().unwrap_or_default());
    [(); 3].map(|()| words.next().unwrap_or_default())
}

/// Processors that are in use.
pub fn vcpus() -> u32 {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    text.trim().split(',').filter_map(count).sum()
}

/// How many a range has.
fn count(range: &str) -> Option<u32> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

/// proc_meminfo(5)
pub fn memory() -> Memory {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.trim_end_matches(" kB").trim().parse::<u64>().ok());
        number.unwrap_or_default().saturating_mul(1024)
    };
    Memory {
        total: bytes("MemTotal:"),
        available: bytes("MemAvailable:"),
        swap_total: bytes("SwapTotal:"),
        swap_free: bytes("SwapFree:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_by_ranges() {
        let count = |text: &str| text.split(',').filter_map(count).sum::<u32>();
        assert_eq!(count("0"), 1);
        assert_eq!(count("0-3,6,8-9"), 7);
        assert_eq!(count(""), 0);
        assert_eq!(count("3-0,x"), 0);
    }

    #[test]
    fn this_machine_tells_of_itself() {
        assert!(vcpus() > 0);
        let memory = memory();
        assert!(memory.total > memory.available && memory.available > 0);
        let os = os();
        assert_eq!(os.machine, std::env::consts::ARCH);
        assert!(!os.kernel_release.is_empty() && !hostname().is_empty());
        assert!(load().iter().all(|load| *load >= 0.0));
        assert!(timezone().offset_seconds.abs() <= 15 * 3600);
    }
}
