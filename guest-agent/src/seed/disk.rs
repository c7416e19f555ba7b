//! A disk that is a seed, by its label.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Found;
use super::label::{self, FileSystem};

const MOUNT_POINT: &str = "/run/peapod/seed";

/// The vfat and iso9660 file systems on disks, and those, the last first, as cloud-init looks at them.
pub fn file_systems() -> impl Iterator<Item = (PathBuf, FileSystem)> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names.into_iter().filter_map(|name| {
        let device = Path::new("/dev").join(name);
        // A drive without a disk cannot be read, and has none.
        let found = File::open(&device).and_then(|mut file| label::read(&mut file));
        Some((device, found.ok().flatten()?))
    })
}

/// What `read` makes of the last disk with one of the labels, and the disk's name.
pub fn find(
    labels: &[String],
    read: fn(&Path) -> Result<Found, String>,
) -> Result<Option<(String, Found)>, String> {
    let Some((device, found)) = file_systems().find(|(_, found)| labels.contains(&found.label))
    else {
        return Ok(None);
    };
    let seed =
        mounted(&device, found.kind, read).map_err(|why| format!("{}: {why}", device.display()))?;
    Ok(Some((device.display().to_string(), seed)))
}

fn mounted(
    device: &Path,
    kind: &str,
    read: fn(&Path) -> Result<Found, String>,
) -> Result<Found, String> {
    let failed = |error: io::Error| error.to_string();
    fs::create_dir_all(MOUNT_POINT).map_err(failed)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(device, MOUNT_POINT, kind, flags, c"").map_err(|error| failed(error.into()))?;
    let seed = read(Path::new(MOUNT_POINT));
    // One that is still in use goes when it is not.
    let _ = unmount(MOUNT_POINT, UnmountFlags::DETACH);
    seed
}
