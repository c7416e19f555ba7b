//! `growpart` and `resizefs`: the root grows with its disk.

use std::fs;
use std::path::{Path, PathBuf};

use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::yaml::Node;

/// As little is not worth the growing.
const WORTH: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A file system that is mounted.
struct Mounted {
    device: PathBuf,
    kind: String,
}

fn mounted_at(place: &str) -> Option<Mounted> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        let (device, at, kind) = (words.next()?, words.next()?, words.next()?);
        (at == place && device.starts_with("/dev/")).then(|| Mounted {
            device: real(device),
            kind: kind.to_owned(),
        })
    })
}

/// `/dev/root` is whatever the kernel was told.
fn real(device: &str) -> PathBuf {
    fs::canonicalize(device).unwrap_or_else(|_| device.into())
}

/// Gives the root's partition the rest of its disk.
pub fn grow_partitions(context: &Context) -> Result<(), String> {
    let config = context.get("growpart");
    let mode = config.and_then(|config| config.entry("mode"));
    if mode.is_some_and(|mode| mode.is_false() || mode.text() == Some("off")) {
        return Ok(());
    }
    if Path::new("/etc/growroot-disabled").exists()
        && !config.is_some_and(|config| config.flag("ignore_growroot_disabled", false))
    {
        return Ok(());
    }
    let devices = config
        .and_then(|config| config.get("devices"))
        .map(Node::scalars);
    let devices = devices.unwrap_or_else(|| vec!["/".to_owned()]);
    for device in devices {
        if let Err(why) = grow(&device) {
            context.failed("growpart", &format!("{device}: {why}"));
        }
    }
    Ok(())
}

fn grow(device: &str) -> Result<(), String> {
    let device = match device.starts_with("/dev/") {
        true => real(device),
        // A root that is no disk's does not grow.
        false => match mounted_at(device) {
            Some(mounted) => mounted.device,
            None => return Ok(()),
        },
    };
    let name = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let class = Path::new("/sys/class/block").join(&name);
    let number =
        |path: &Path| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let Some(partition) = number(&class.join("partition")) else {
        return Ok(());
    };
    let folder = fs::canonicalize(&class).map_err(|error| error.to_string())?;
    let disk = folder.parent().unwrap_or(&folder);
    let (Some(all), Some(start), Some(size)) = (
        number(&disk.join("size")),
        number(&class.join("start")),
        number(&class.join("size")),
    ) else {
        return Ok(());
    };
    if all.saturating_sub(start + size) * SECTOR <= WORTH {
        return Ok(());
    }
    if !exists("growpart") {
        let free = ((all - start - size) * SECTOR) >> 20;
        return Err(format!(
            "{free} MiB of the disk are free, and the guest has no growpart (package cloud-guest-utils)"
        ));
    }
    let disk = Path::new("/dev").join(disk.file_name().unwrap_or_default());
    let disk = disk.display().to_string();
    // 1 is growpart's word for nothing to do.
    match Program::new(&["growpart", &disk, &partition.to_string()]).run() {
        Err(why) if why.ends_with("exit status 1") => Ok(()),
        other => other,
    }
}

/// Gives the root's file system the rest of its partition.
pub fn resize_root(context: &Context) -> Result<(), String> {
    let resize = context.config.entry("resize_rootfs");
    if resize.is_some_and(Node::is_false) {
        return Ok(());
    }
    let Some(root) = mounted_at("/") else {
        return Ok(());
    };
    let device = root.device.display().to_string();
    let words: Vec<&str> = match &*root.kind {
        "ext2" | "ext3" | "ext4" => vec!["resize2fs", &device],
        "xfs" => vec!["xfs_growfs", "/"],
        "btrfs" => vec!["btrfs", "filesystem", "resize", "max", "/"],
        _ => return Ok(()),
    };
    match words.first().is_some_and(|name| exists(name)) {
        true => Program::new(&words).run(),
        // As with cloud-init, a small root without the tool stays as it is.
        false => Ok(()),
    }
}
