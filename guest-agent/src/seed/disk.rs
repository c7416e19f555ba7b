//! A disk that is a seed, by its label.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Found, label};

const MOUNT_POINT: &str = "/run/peapod/seed";

/// What `read` makes of the last disk with one of the labels, and the disk's name.
pub fn find(
    labels: &[String],
    read: fn(&Path) -> Result<Found, String>,
) -> Result<Option<(String, Found)>, String> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    // cloud-init looks at the last first.
    names.sort_unstable_by(|a, b| b.cmp(a));
    for name in names {
        let device = Path::new("/dev").join(name);
        // A drive without a disk cannot be read, and has no seed.
        let found = File::open(&device).and_then(|mut file| label::read(&mut file));
        if let Ok(Some(found)) = found
            && labels.contains(&found.label)
        {
            let seed = mounted(&device, found.kind, read)
                .map_err(|why| format!("{}: {why}", device.display()))?;
            return Ok(Some((device.display().to_string(), seed)));
        }
    }
    Ok(None)
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
