//! What is booted: a kernel that was given, the manifest's, the root disk's own, firmware, or
//! Peapod's kernel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Agent, Error, Options, find, firmware};
use crate::boot::initramfs::{Initramfs, InitramfsError};
use crate::boot::kernel::Kernel;
use crate::devices::virtio::block::disk;
use crate::disks::Finder;
use crate::disks::entries::Own;
use crate::plan::PlannedDisk;
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
    /// For a person.
    pub(super) what: String,
    cmdline: Option<String>,
    initramfs: Source,
    /// Whether Peapod's agent goes in with it.
    pub(super) has_agent: bool,
}

/// The same with its files open.
pub(super) struct Booted {
    pub(super) kernel: Kernel,
    pub(super) initramfs: Option<Initramfs>,
    /// For a person.
    pub(super) what: String,
    /// Whether Peapod's agent goes in with it.
    pub(super) has_agent: bool,
    /// The kernel's own command line, where it is not Peapod's.
    pub(super) cmdline: Option<String>,
}

enum Source {
    None,
    File(PathBuf),
    /// The disk's own, and what goes ahead of it.
    Disk {
        agent: Option<PathBuf>,
        bytes: Vec<u8>,
    },
}

/// What starts the agent ahead of the initramfs's /init, and keeps the disk's cloud-init from doing
/// the same as it does.
const WITH_AGENT: &str = "rdinit=/peapod/agent cloud-init=disabled";
/// The kernel looks for the next archive at a multiple of this
/// (linux/Documentation/driver-api/early-userspace/buffer-format.rst).
const ALIGNMENT: u64 = 4;

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
    let backing_dirs = &args.disks.backing_dir;
    let by_firmware = |loader: &str| firmware::choose(args, machine, disks, finder.images, loader);
    let own = match (&given, root) {
        (None, Some(root)) if machine.efi || args.firmware.is_some() => {
            return by_firmware(&disks::entries::loader(root, backing_dirs)?);
        }
        (None, Some(root)) => disks::entries::own(root, backing_dirs)?,
        _ => Own::PlainRoot,
    };
    let (entry, loaded) = match own {
        Own::Kernel(entry, loaded) => (entry, loaded),
        Own::Loader(loader, why) => {
            return by_firmware(&loader).map_err(|error| Error::NeitherWay(why, Box::new(error)));
        }
        Own::PlainRoot => {
            let (kernel, initramfs) = match given {
                Some(given) => given,
                None => files(args, finder.images)?,
            };
            return Ok(Chosen {
                kernel: Kernel::open(&kernel, &kernels, args.unpacked())?,
                what: format!("{} with {}", kernel.display(), initramfs.display()),
                cmdline: None,
                initramfs: Source::File(initramfs),
                has_agent: true,
            });
        }
    };
    let name = PathBuf::from(entry.kernel().unwrap_or_default());
    let mut cmdline = entry.cmdline;
    let (initramfs, agent) = match (&args.initramfs, loaded.initramfs) {
        (Some(given), _) => (
            Source::File(given.clone()),
            "with --initramfs instead of its own".to_owned(),
        ),
        (None, Some(bytes)) => match agent(args, &cmdline, finder.images) {
            Ok(agent) => {
                checks::initramfs(&agent)?;
                cmdline = format!("{cmdline} {WITH_AGENT}");
                let agent = Some(agent);
                let what = "with the agent in cloud-init's place".to_owned();
                (Source::Disk { agent, bytes }, what)
            }
            Err(why) => {
                let agent = None;
                (
                    Source::Disk { agent, bytes },
                    format!("without the agent: {why}"),
                )
            }
        },
        (None, None) => (
            Source::None,
            "without the agent: the disk has no initramfs".to_owned(),
        ),
    };
    let has_agent = !matches!(&initramfs, Source::None | Source::Disk { agent: None, .. });
    Ok(Chosen {
        has_agent,
        kernel: Kernel::from_image(&name, &loaded.kernel, &kernels, args.unpacked())?,
        what: format!("the disk's `{}`, {agent}", entry.title.escape_debug()),
        cmdline: Some(cmdline.trim_start().to_owned()),
        initramfs,
    })
}

/// The archive with the agent that goes ahead of a disk's initramfs, or why none does.
fn agent(args: &Options, cmdline: &str, images: &[PathBuf]) -> Result<PathBuf, String> {
    if args.agent == Agent::Off {
        return Err("--agent off".to_owned());
    }
    let appended = args.append.as_deref().unwrap_or_default();
    let mut words = cmdline.split(' ').chain(appended.split(' '));
    if words.any(|word| word.starts_with("rdinit=")) {
        return Err("the command line has rdinit= already".to_owned());
    }
    let mut archives = images.iter().map(|dir| dir.join("agent.cpio"));
    archives.find(|path| path.exists()).ok_or_else(|| {
        let dirs: Vec<_> = images.iter().map(|dir| dir.display().to_string()).collect();
        format!("no agent.cpio in {}", dirs.join(" or "))
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
        kernel: Kernel::open(&kernel, kernels, args.unpacked())?,
        what: format!("{}'s {}, without the agent", boot.image, boot.kernel),
        cmdline: Some(boot.arguments.clone()),
        initramfs: initramfs.map_or(Source::None, Source::File),
        // Its own is Peapod's; the manifest's is anybody's.
        has_agent: args.initramfs.is_some(),
    })
}

impl Chosen {
    /// What is entered as a kernel is, and finds the rest by itself.
    pub(super) fn firmware(kernel: Kernel, what: String) -> Self {
        Self {
            kernel,
            what,
            cmdline: Some(String::new()),
            initramfs: Source::None,
            has_agent: false,
        }
    }

    /// Opens what there is to load. A disk's own initramfs goes into an unnamed file of the state
    /// directory.
    pub(super) fn keep(self, state_dir: &Path) -> Result<Booted, Error> {
        let initramfs = match &self.initramfs {
            Source::None => None,
            Source::File(path) => Some(Initramfs::open(path)?),
            Source::Disk { agent, bytes } => {
                let mut file = disk::unnamed(state_dir).map_err(disks::Error::from)?;
                if let Some(agent) = agent {
                    let unread = |cause| InitramfsError::Read(agent.clone(), cause);
                    go_ahead(agent, &mut file).map_err(unread)?;
                }
                file.write_all(bytes).map_err(|cause| Error::Make {
                    path: state_dir.to_owned(),
                    cause,
                })?;
                Some(Initramfs::new(Path::new("of the disk"), file))
            }
        };
        Ok(Booted {
            kernel: self.kernel,
            initramfs,
            what: self.what,
            has_agent: self.has_agent,
            cmdline: self.cmdline,
        })
    }
}

/// Copies the archive at `path`, and what is missing to where the next may begin.
fn go_ahead(path: &Path, file: &mut File) -> io::Result<()> {
    let copied = io::copy(&mut File::open(path)?, file)?;
    let missing = copied.next_multiple_of(ALIGNMENT) - copied;
    io::copy(&mut io::repeat(0).take(missing), file).map(drop)
}
