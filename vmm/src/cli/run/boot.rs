//! What is booted: a kernel that was given, the manifest's, the root disk's own, or Peapod's.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Error, Options, find};
use crate::boot::initramfs::Initramfs;
use crate::boot::kernel::Kernel;
use crate::devices::virtio::block::disk;
use crate::disks::Finder;
use crate::plan::{OwnKernel, PlannedDisk};
use crate::vmi::{KernelBoot, Machine};
use crate::{checks, disks};

/// Kernel and initramfs that are no disk's own.
pub(super) fn files(args: &Options, images: &[PathBuf]) -> Result<(PathBuf, PathBuf), Error> {
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
    own: Option<OwnKernel>,
    initramfs: Source,
}

enum Source {
    None,
    File(PathBuf),
    /// The disk's own.
    Bytes(Vec<u8>),
}

/// The kernel that was given, or the manifest's, or the root disk's own, or for a plain root ours.
pub(super) fn choose(
    args: &Options,
    machine: &Machine,
    finder: &Finder<'_>,
    disks: &[PlannedDisk],
    given: Option<(PathBuf, PathBuf)>,
    cache: &Path,
) -> Result<Chosen, Error> {
    let kernels = cache.join("kernels");
    if let (None, Some(boot)) = (&given, &machine.kernel_boot) {
        return from_image(args, finder, boot, &kernels);
    }
    let root = machine.root_disk().and_then(|root| disks.get(root));
    let own = match (&given, root) {
        (None, Some(root)) => disks::entries::own(root, &args.disks.backing_dir)?,
        _ => None,
    };
    let Some((entry, loaded)) = own else {
        let (kernel, initramfs) = match given {
            Some(given) => given,
            None => files(args, finder.images)?,
        };
        return Ok(Chosen {
            kernel: Kernel::open(&kernel, &kernels)?,
            own: None,
            initramfs: Source::File(initramfs),
        });
    };
    let name = PathBuf::from(entry.kernel().unwrap_or_default());
    Ok(Chosen {
        kernel: Kernel::from_image(&name, &loaded.kernel, &kernels)?,
        initramfs: match (&args.initramfs, loaded.initramfs) {
            (Some(given), _) => Source::File(given.clone()),
            (None, Some(bytes)) => Source::Bytes(bytes),
            (None, None) => Source::None,
        },
        own: Some(OwnKernel {
            what: format!("the disk's `{}`", entry.title.escape_debug()),
            cmdline: entry.cmdline,
        }),
    })
}

/// `firmware.kernelBoot`.
fn from_image(
    args: &Options,
    finder: &Finder<'_>,
    boot: &KernelBoot,
    kernels: &Path,
) -> Result<Chosen, Error> {
    let file = |path: &str| match finder.mounted {
        Some(mounted) => disks::mounted::kernel(mounted, path).map_err(Error::KernelMounted),
        None => finder
            .unpack(&boot.image, Some(path))
            .map_err(Error::KernelBoot),
    };
    let kernel = file(&boot.kernel)?;
    checks::kernel(&kernel)?;
    let initramfs = match (&args.initramfs, &boot.initrd) {
        (Some(given), _) => Some(given.clone()),
        (None, Some(path)) => Some(file(path)?),
        (None, None) => None,
    };
    if let Some(initramfs) = &initramfs {
        checks::initramfs(initramfs)?;
    }
    Ok(Chosen {
        kernel: Kernel::open(&kernel, kernels)?,
        own: Some(OwnKernel {
            what: format!("{}'s {}", boot.image, boot.kernel),
            cmdline: boot.arguments.clone(),
        }),
        initramfs: initramfs.map_or(Source::None, Source::File),
    })
}

impl Chosen {
    /// The initramfs, and how the disk's own kernel is started if it is that. The disk's
    /// initramfs goes into an unnamed file of the state directory.
    pub(super) fn keep(
        self,
        state_dir: &Path,
    ) -> Result<(Kernel, Option<Initramfs>, Option<OwnKernel>), Error> {
        let initramfs = match &self.initramfs {
            Source::None => None,
            Source::File(path) => Some(Initramfs::open(path)?),
            Source::Bytes(bytes) => {
                let mut file = disk::unnamed(state_dir).map_err(disks::Error::from)?;
                file.write_all(bytes).map_err(|cause| Error::Make {
                    path: state_dir.to_owned(),
                    cause,
                })?;
                Some(Initramfs::new(Path::new("of the disk"), file))
            }
        };
        Ok((self.kernel, initramfs, self.own))
    }
}
