//! The file systems of disks that are mounted (proc_pid_mountinfo(5)).

use std::fs;
use std::path::Path;

use crate::protocol::Filesystem;

/// More are not told of.
const MOST: usize = 128;
/// Of each text at most so much is told.
const SHOWN: usize = 1024;

/// A file system, where it is mounted first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of it, `MAJOR:MINOR`.
    pub number: String,
    /// The device it is on.
    pub device: String,
    /// Where it is mounted.
    pub place: String,
    /// Its kind.
    pub kind: String,
    /// Nobody can write to it, wherever it is mounted.
    pub read_only: bool,
}

/// Those of devices, each once, in the order in which they were mounted.
pub fn mounts() -> Vec<Mount> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse(table: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in table.lines().filter_map(line) {
        if !mounts.iter().any(|known| known.number == mount.number) {
            mounts.push(mount);
        }
    }
    mounts
}

fn line(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut words = mount.split(' ').skip(2);
    let (number, place) = (words.next()?, words.nth(1)?);
    let mut words = filesystem.split(' ');
    let (kind, device, options) = (words.next()?, words.next()?, words.next()?);
    device.starts_with("/dev/").then(|| Mount {
        number: number.to_owned(),
        device: plain(device),
        place: plain(place),
        kind: kind.to_owned(),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// The kernel writes a blank as `\040`.
fn plain(word: &str) -> String {
    let mut pieces = word.split('\\');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(3).unwrap_or_default();
        bytes.extend(u8::from_str_radix(digits, 8));
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is told of them.
pub fn all() -> Vec<Filesystem> {
    mounts().iter().take(MOST).map(told).collect()
}

fn told(mount: &Mount) -> Filesystem {
    // One that cannot be asked is told of all the same.
    let room = rustix::fs::statvfs(&*mount.place).ok();
    let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
        room.as_ref()
            .map_or(0, |room| blocks(room).saturating_mul(room.f_frsize))
    };
    // The kernel may have been told of `/dev/root`, or of a link of udev's.
    let device = fs::canonicalize(&mount.device).unwrap_or_else(|_| mount.device.clone().into());
    let device = device.file_name().unwrap_or_default().to_string_lossy();
    Filesystem {
        device: cut(&device),
        mountpoint: cut(&mount.place),
        kind: mount.kind.clone(),
        total: bytes(|room| room.f_blocks),
        used: bytes(|room| room.f_blocks.saturating_sub(room.f_bfree)),
        available: bytes(|room| room.f_bavail),
        read_only: mount.read_only,
    }
}

/// The disk's own serial number, if the VMM has given it one.
pub fn serial(device: &str) -> Option<String> {
    let class = Path::new("/sys/class/block");
    let disk = fs::canonicalize(class.join(device)).ok()?;
    // A partition is a folder of its disk's.
    let text = [disk.join("serial"), disk.parent()?.join("serial")]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())?;
    let text = text.trim();
    (!text.is_empty()).then(|| cut(text))
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_of_a_disk_is_told_once() {
        let table = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:13 - proc proc rw
24 22 254:16 /x /mnt/a\\040b\\134 ro,relatime - vfat /dev/vdb rw,fmask=0022
25 22 254:16 / /again rw - vfat /dev/vdb rw
26 22 11:0 / /media ro - iso9660 /dev/sr0 ro,nojoliet
odd
27 22 - ext4
";
        let mounts = parse(table);
        let told: Vec<_> = mounts
            .iter()
            .map(|m| (&*m.number, &*m.device, &*m.place, &*m.kind, m.read_only))
            .collect();
        assert_eq!(
            told,
            [
                ("254:1", "/dev/vda1", "/", "ext4", false),
                ("254:16", "/dev/vdb", "/mnt/a b\\", "vfat", false),
                ("11:0", "/dev/sr0", "/media", "iso9660", true),
            ]
        );
    }
}
