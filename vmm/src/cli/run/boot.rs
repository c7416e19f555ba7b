//! What is booted: a kernel that was given, the root disk's own, or Peapod's.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::{Args, Error, cache, find};
use crate::boot::entries::Entry;
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

/// What is booted.
pub(super) struct Chosen {
    kernel: Kernel,
    own: Option<Entry>,
    initramfs: Initramfs,
}

enum Initramfs {
    None,
    File(PathBuf),
    /// The disk's own.
    Bytes(Vec<u8>),
}

/// The kernel that was given, or the root disk's own, or for a plain root ours.
pub(super) fn choose(
    args: &Args,
    machine: &Machine,
    disks: &[PlannedDisk],
    given: Option<(PathBuf, PathBuf)>,
    images: &[PathBuf],
) -> Result<Chosen, Error> {
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
        return Ok(Chosen {
            kernel: Kernel::open(&kernel, &kernels)?,
            own: None,
            initramfs: Initramfs::File(initramfs),
        });
    };
    let name = PathBuf::from(entry.kernel().unwrap_or_default());
    Ok(Chosen {
        kernel: Kernel::from_image(&name, &loaded.kernel, &kernels)?,
        initramfs: match (&args.initramfs, loaded.initramfs) {
            (Some(given), _) => Initramfs::File(given.clone()),
            (None, Some(bytes)) => Initramfs::Bytes(bytes),
            (None, None) => Initramfs::None,
        },
        own: Some(entry),
    })
}

impl Chosen {
    /// The initramfs, and how the disk's own kernel is started if it is that. The disk's
    /// initramfs goes into an unnamed file of the state directory.
    pub(super) fn keep(
        self,
        state_dir: &Path,
    ) -> Result<(Kernel, Option<PathBuf>, Option<OwnKernel>), Error> {
        let mut unnamed = None;
        let initramfs = match &self.initramfs {
            Initramfs::None => None,
            Initramfs::File(path) => Some(path.clone()),
            Initramfs::Bytes(bytes) => {
                let mut file = disk::unnamed(state_dir).map_err(disks::Error::from)?;
                file.write_all(bytes).map_err(|cause| Error::Make {
                    path: state_dir.to_owned(),
                    cause,
                })?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                unnamed = Some(file);
                Some(PathBuf::from(path))
            }
        };
        let own = self.own.map(|entry| OwnKernel {
            title: entry.title,
            cmdline: entry.cmdline,
            initramfs: unnamed,
        });
        Ok((self.kernel, initramfs, own))
    }
}
