//! What is booted: a kernel that was given, the root disk's own, or Peapod's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::{Args, Error, cache, find};
use crate::boot::kernel::Kernel;
use crate::devices::virtio::block::disk;
use crate::plan::{OwnKernel, PlannedDisk};
use crate::vmi::Machine;
use crate::{checks, disks};

/// Kernel and initramfs that are no disk's own.
pub(super) fn files(args: &Args, images: &[PathBuf]) -> Result<(PathBuf, PathBuf), Error> {
    let kernel = find(
        args.kernel.as_ref(),
        "kernel",
        &["vmlinux", "vmlinuz"],
        images,
    )?;
    checks::kernel(&kernel)?;
    let initramfs = find(
        args.initramfs.as_ref(),
        "initramfs",
        &["initramfs.cpio"],
        images,
    )?;
    checks::initramfs(&initramfs)?;
    Ok((kernel, initramfs))
}

/// What is booted: the kernel that was given, or the root disk's own, or for a plain root ours.
pub(super) fn choose(
    args: &Args,
    machine: &Machine,
    disks: &[PlannedDisk],
    given: Option<(PathBuf, PathBuf)>,
    images: &[PathBuf],
) -> Result<(Kernel, Option<PathBuf>, Option<OwnKernel>), Error> {
    let root = machine.root_disk().and_then(|root| disks.get(root));
    let own = match (&given, root) {
        (None, Some(root)) => disks::entries::own(root, &args.disks.backing_dir)?,
        _ => None,
    };
    let kernels = cache("kernels");
    let Some((entry, loaded)) = own else {
        let (kernel, initramfs) = match given {
            Some(given) => given,
            None => files(args, images)?,
        };
        return Ok((Kernel::open(&kernel, &kernels)?, Some(initramfs), None));
    };
    let name = PathBuf::from(entry.kernel().unwrap_or_default());
    let kernel = Kernel::from_image(&name, &loaded.kernel, &kernels)?;
    let unnamed = match &loaded.initramfs {
        Some(bytes) if args.initramfs.is_none() => {
            Some(keep(bytes).map_err(|(path, cause)| Error::Make { path, cause })?)
        }
        _ => None,
    };
    let initramfs = match &unnamed {
        Some(file) => Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))),
        None => args.initramfs.clone(),
    };
    let own = OwnKernel {
        title: entry.title,
        cmdline: entry.cmdline,
        initramfs: unnamed,
    };
    Ok((kernel, initramfs, Some(own)))
}

/// The bytes in a file without a name, which goes with the process.
fn keep(bytes: &[u8]) -> Result<File, (PathBuf, io::Error)> {
    let directory = cache("kernels");
    let about = |cause| (directory.clone(), cause);
    fs::create_dir_all(&directory).map_err(about)?;
    let mut file = disk::unnamed(&directory).map_err(|e| about(io::Error::other(e)))?;
    file.write_all(bytes).map_err(about)?;
    Ok(file)
}
