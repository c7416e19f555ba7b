//! What the guest is and has, as the agent tells it. A field that a speaker does not know is empty.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything that is told at once.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestInfo {
    /// Its name.
    pub hostname: String,
    /// Its operating system.
    pub os: Os,
    /// Its time zone.
    pub timezone: Timezone,
    /// Milliseconds since its kernel started its clock.
    pub uptime_ms: u64,
    /// Processes that run or wait for a disk: the last minute's, five minutes' and fifteen's mean.
    pub load: [f64; 3],
    /// Its processors that are in use.
    pub vcpus: u32,
    /// Its memory.
    pub memory: Memory,
    /// The file systems of its disks that are mounted.
    pub filesystems: Vec<Filesystem>,
    /// Whether they stand still, for a snapshot.
    pub frozen: bool,
    /// Who is logged in.
    pub users: Vec<User>,
    /// Its links to networks.
    pub interfaces: Vec<Interface>,
}

/// An operating system, in the words of os-release(5) and uname(2).
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Os {
    /// `ID`
    pub id: String,
    /// `NAME`
    pub name: String,
    /// `PRETTY_NAME`
    pub pretty_name: String,
    /// `VERSION`
    pub version: String,
    /// `VERSION_ID`
    pub version_id: String,
    /// The kernel's release.
    pub kernel_release: String,
    /// The kernel's version.
    pub kernel_version: String,
    /// What the kernel was built for.
    pub machine: String,
}

/// A time zone.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timezone {
    /// Its name of today.
    pub name: String,
    /// Seconds east of UTC.
    pub offset_seconds: i64,
}

/// Memory, in bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What there is.
    pub total: u64,
    /// What a program can have without swapping.
    pub available: u64,
    /// Swap.
    pub swap_total: u64,
    /// Swap that is unused.
    pub swap_free: u64,
}

/// A file system of a disk.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filesystem {
    /// The disk's device, or the partition's, as the kernel names it: `vda1`.
    pub device: String,
    /// Where it is mounted first.
    pub mountpoint: String,
    /// Its kind: `ext4`.
    pub kind: String,
    /// Its size in bytes.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that others than root can still have.
    pub available: u64,
    /// Nobody can write to it.
    pub read_only: bool,
}

/// Somebody who is logged in.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// The name.
    pub name: String,
    /// The terminal, if there is one.
    pub terminal: String,
    /// From where, if not from here.
    pub host: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// A link to a network.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware's address.
    pub mac: String,
    /// Somebody has brought it up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// What came.
    pub received: Traffic,
    /// What went.
    pub sent: Traffic,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
}

/// What has gone through a link, one way.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were broken.
    pub errors: u64,
    /// Packets for which there was no room.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version that tells of it does, which must be understood for ever.
    const FIRST: &str = r#"{"hostname":"h","os":{"id":"debian","name":"Debian","pretty_name":"Debian 12","version":"12 (bookworm)","version_id":"12","kernel_release":"6.1","kernel_version":"n1","machine":"x86_64"},"timezone":{"name":"CET","offset_seconds":3600},"uptime_ms":5,"load":[0.5,0.25,0.0],"vcpus":2,"memory":{"total":9,"available":8,"swap_total":7,"swap_free":6},"filesystems":[{"device":"vda1","mountpoint":"/","kind":"ext4","total":5,"used":4,"available":1,"read_only":false}],"frozen":false,"users":[{"name":"anna","terminal":"tty1","host":"","since_ms":3}],"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","up":true,"addresses":[{"ip":"10.0.2.2","prefix":24}],"received":{"bytes":1,"packets":1,"errors":0,"dropped":0},"sent":{"bytes":2,"packets":1,"errors":0,"dropped":0}}]}"#;

    #[test]
    fn what_the_first_version_tells_keeps_its_form() {
        let info: GuestInfo = serde_json::from_str(FIRST).unwrap();
        assert_eq!(info.os.pretty_name, "Debian 12");
        assert_eq!(info.interfaces[0].addresses[0].prefix, 24);
        assert_eq!(serde_json::to_string(&info).unwrap(), FIRST);
    }

    #[test]
    fn what_is_not_told_is_empty_and_what_is_new_is_passed_over() {
        let info: GuestInfo =
            serde_json::from_str(r#"{"hostname":"h","weather":{},"users":[{"mood":1}]}"#).unwrap();
        assert_eq!((&*info.hostname, info.vcpus, info.users.len()), ("h", 0, 1));
    }
}
