//! The root: found, mounted, and made the root of this process.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_move, unmount};
use rustix::process::{chdir, chroot};

use super::cmdline::CommandLine;

/// Where the root is mounted before it is entered.
pub const NEW_ROOT: &str = "/root";
/// How long its device may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is mounted on the initramfs.
const MOUNTED: [&str; 4] = ["dev", "proc", "sys", "run"];
const FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "squashfs"];
/// What systemd's own program is called, below a root.
pub const SYSTEMD: [&str; 2] = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];

/// Mounts the root that the command line names on [`NEW_ROOT`].
pub fn mount_root(line: &CommandLine) -> Result<(), String> {
    let device = line
        .root
        .as_deref()
        .ok_or("the kernel's command line has no root=")?;
    if !device.starts_with("/dev/") {
        return Err(format!("root={device}: only a path of a device is known"));
    }
    wait_for(Path::new(device))?;
    let flags = if line.read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let given = line.rootfstype.as_deref().map(|kind| kind.split(','));
    let kinds: Vec<&str> = match given {
        Some(kinds) => kinds.collect(),
        None => FILE_SYSTEMS.to_vec(),
    };
    let mut reasons = Vec::new();
    for kind in kinds {
        match mount(device, NEW_ROOT, kind, flags, c"") {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{kind}: {error}")),
        }
    }
    Err(format!(
        "root={device} cannot be mounted: {}",
        reasons.join(", ")
    ))
}

fn wait_for(device: &Path) -> Result<(), String> {
    let start = Instant::now();
    while !device.exists() {
        if start.elapsed() > PATIENCE {
            return Err(format!(
                "root={}: no such device after {} s",
                device.display(),
                PATIENCE.as_secs()
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The init that the root at [`NEW_ROOT`] would start, if it is systemd: its path in there.
pub fn systemd(line: &CommandLine) -> Option<PathBuf> {
    let init = PathBuf::from(line.init.as_deref().unwrap_or("/sbin/init"));
    let found = resolve(&init).ok()?;
    let programs = SYSTEMD
        .iter()
        .filter_map(|path| resolve(Path::new(path)).ok());
    let same = |program: (u64, u64)| program == found;
    programs.into_iter().any(same).then_some(init)
}

/// Device and inode of what `path` is in the new root, whose links lead nowhere else.
fn resolve(path: &Path) -> io::Result<(u64, u64)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, NEW_ROOT, flags | OFlags::DIRECTORY, Mode::empty())?;
    let file = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let metadata = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes [`NEW_ROOT`] this process's root, with what was mounted on the old one. Other threads find that
/// at its place at every moment.
pub fn enter() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    for place in MOUNTED {
        let target = Path::new(NEW_ROOT).join(place);
        // A root that lacks it, and cannot get it, goes without.
        let _ = fs::create_dir(&target);
        mount_bind_recursive(Path::new("/").join(place), &target)?;
    }
    free_initramfs();
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    for place in MOUNTED {
        let place = format!("/proc/self/fd/{}/{place}", old.as_raw_fd());
        unmount(place, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// What the initramfs holds is memory that the guest is better off with.
fn free_initramfs() {
    let here = fs::metadata("/").map(|m| m.dev()).ok();
    let entries = fs::read_dir("/").into_iter().flatten().flatten();
    for entry in entries {
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        // Only what is the initramfs's own, and no mount point's.
        if Some(metadata.dev()) == here {
            let _ = if metadata.is_dir() {
                remove_below(&entry.path(), metadata.dev())
            } else {
                fs::remove_file(entry.path())
            };
        }
    }
}

fn remove_below(folder: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let metadata = fs::symlink_metadata(entry.path())?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_below(&entry.path(), device)?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
