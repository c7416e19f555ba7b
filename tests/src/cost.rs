//! What a pod costs beyond its guest, by the kernel's own account of its control group.
//!
//! Counted are all processes of the group, and what the kernel holds for them: their own memory, the
//! program's pages that they have mapped (as though no other pod had them too), page tables of the
//! host and of KVM, stacks, sockets, slabs. Apart are the guest's own memory, as far as it is there,
//! and page cache, of disks above all, which the kernel takes back when somebody wants memory.

use std::fs;
use std::io;

use crate::group::Group;

/// Bytes, by what they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// The guest's own. Apart.
    pub guest: u64,
    /// Page cache. Apart.
    pub cache: u64,
    /// Heap, stacks and buffers of the processes, and files in memory.
    pub own: u64,
    /// What they have mapped of files: the program.
    pub program: u64,
    /// Page tables, of the host and of KVM.
    pub tables: u64,
    /// What else the kernel holds, but for sockets' data.
    pub kernel: u64,
    /// Data in sockets.
    pub sockets: u64,
    /// What the kernel has taken ahead, a few pages for each CPU.
    pub ahead: u64,
}

impl Cost {
    /// As it is now. The kernel's figures are two seconds old at most.
    pub fn of(group: &Group) -> io::Result<Self> {
        let stat = group.numbers("memory.stat")?;
        let all = group.number("memory.current")?;
        let get = |name: &str| stat.get(name).copied().unwrap_or(0);
        let tables = get("pagetables") + get("sec_pagetables");
        let (mut guest, mut program) = (0, 0);
        for process in group.processes()? {
            let maps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
            for map in maps_of(&maps) {
                if map.guest {
                    guest += map.resident;
                } else {
                    program += map.resident.saturating_sub(map.anonymous);
                }
            }
        }
        let known = get("anon") + get("file") + get("kernel") + get("sock");
        Ok(Self {
            guest,
            cache: get("file") - get("shmem"),
            own: (get("anon") + get("shmem")).saturating_sub(guest),
            program,
            tables,
            kernel: get("kernel").saturating_sub(tables),
            sockets: get("sock"),
            ahead: all.saturating_sub(known),
        })
    }

    /// All that is counted.
    pub fn beyond_the_guest(&self) -> u64 {
        self.own + self.program + self.tables + self.kernel + self.sockets + self.ahead
    }
}

/// A mapping of a process.
#[derive(Debug, Default, PartialEq)]
struct Map {
    resident: u64,
    anonymous: u64,
    /// Kept out of core dumps, as only the guest's memory is.
    guest: bool,
}

/// What proc_pid_smaps(5) says.
fn maps_of(smaps: &str) -> Vec<Map> {
    let (mut all, mut map) = (Vec::new(), Map::default());
    for line in smaps.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let bytes = || {
            let kib = value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            Some(kib << 10)
        };
        match name {
            "Rss" => map.resident = bytes().unwrap_or(0),
            "Anonymous" => map.anonymous = bytes().unwrap_or(0),
            // The last line of each.
            "VmFlags" => {
                map.guest = value.split(' ').any(|flag| flag == "dd");
                all.push(std::mem::take(&mut map));
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_memory_is_told_from_ours() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0 \nRss:     8 kB\nAnonymous:   8 kB\n\
            VmFlags: rd wr mr mw me ac dd \n\
            5500-5600 r-xp 00000000 08:01 7    /usr/bin/peapod\nRss:    12 kB\nAnonymous:  4 kB\n\
            VmFlags: rd ex mr mw me \n";
        let map = |resident, anonymous, guest| Map {
            resident,
            anonymous,
            guest,
        };
        let all = [map(8192, 8192, true), map(12288, 4096, false)];
        assert_eq!(maps_of(smaps), all);
    }
}
