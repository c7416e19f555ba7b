//! A manifest's disks: what holds their bytes, found and looked at before anything starts, and
//! opened when it does.
//!
//! A disk is read as what KubeVirt reads it as. A container image's disk is raw or qcow2 by its
//! content, for no guest has ever written it. Every other disk is raw unless the command line
//! says otherwise: a guest can write what it likes to the front of its raw disk, and would, if
//! that were believed, choose files of the host to read at its next start.

pub mod entries;
pub mod handed;
pub mod keys;
pub mod mounted;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::agent::seed::Files;
use crate::devices::virtio::block::cow::CowDisk;
use crate::devices::virtio::block::disk::{Disk, DiskError, RawDisk};
use crate::devices::virtio::block::limit::Limits;
use crate::devices::virtio::block::qcow2::{self, BackingFiles, Qcow2Disk};
use crate::plan::{Backing, Format, PlannedDisk};
use crate::snapshot::SavedDisk;
use crate::snapshot::directory::Restored;
use crate::snapshot::layer::Written;
use crate::vmi::{self, HostDiskType, Keyed, Machine, Source, SshKeys};
use crate::{checks, containerdisk, kubevirt, seed, vfat};

/// Where a launcher finds what its claims stand for: a file system's image, a block device.
const CLAIMS: [(&str, &str); 2] = [(kubevirt::CLAIMS, "disk.img"), ("/dev", "")];

/// The least bytes a second: at less a guest's file system takes its disk for broken.
const LEAST_RATE: u64 = 4 << 10;

/// How disks are found and read.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Read a hostDisk or claim of the manifest as such an image [default: raw]; may be repeated
    #[arg(long, value_name = "DISK=raw|qcow2", value_parser = parse_format)]
    pub format: Vec<(String, Format)>,
    /// Let qcow2 images have backing files below this directory; may be repeated
    #[arg(long, value_name = "DIR")]
    pub backing_dir: Vec<PathBuf>,
    /// The disk image or block device that a PersistentVolumeClaim stands for [default: where
    /// KubeVirt mounts it]; may be repeated
    #[arg(long, value_name = "CLAIM=PATH", value_parser = parse_claim)]
    pub claim: Vec<(String, PathBuf)>,
    /// Hold a disk to so many bytes a second, read and written; may be repeated
    #[arg(long, value_name = "DISK=SIZE", value_parser = parse_bytes)]
    pub disk_rate: Vec<(String, u64)>,
    /// Hold a disk to so many requests a second; may be repeated
    #[arg(long, value_name = "DISK=COUNT", value_parser = parse_requests)]
    pub disk_iops: Vec<(String, u64)>,
}

fn parse_format(text: &str) -> Result<(String, Format), String> {
    let (name, kind) = text.split_once('=').ok_or("expected DISK=raw|qcow2")?;
    Ok((name.to_owned(), parse_kind(kind)?))
}

/// Reads a format's name.
pub fn parse_kind(name: &str) -> Result<Format, String> {
    match name {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(format!("`{other}` is neither raw nor qcow2")),
    }
}

fn parse_bytes(text: &str) -> Result<(String, u64), String> {
    let (name, size) = text.split_once('=').ok_or("expected DISK=SIZE")?;
    let size = vmi::parse_quantity(size).filter(|size| *size >= LEAST_RATE);
    let size = size.ok_or("expected a size a second of at least 4Ki, such as 50Mi")?;
    Ok((name.to_owned(), size))
}

fn parse_requests(text: &str) -> Result<(String, u64), String> {
    let (name, count) = text.split_once('=').ok_or("expected DISK=COUNT")?;
    let count = count.parse().ok().filter(|count| *count > 0);
    Ok((
        name.to_owned(),
        count.ok_or("expected a number of at least 1")?,
    ))
}

fn parse_claim(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected CLAIM=PATH")?;
    Ok((name.to_owned(), PathBuf::from(path)))
}

/// Why a disk will not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file will not do.
    #[error(transparent)]
    Check(#[from] checks::Error),
    /// An image will not do.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A containerDisk cannot be had.
    #[error("disk `{disk}`: {source}")]
    ContainerDisk {
        /// Its name.
        disk: String,
        /// Why.
        source: containerdisk::Error,
    },
    /// A containerDisk is not where a pod has it.
    #[error("disk `{disk}`: its containerDisk: {source}")]
    Mounted {
        /// Its name.
        disk: String,
        /// Why.
        source: mounted::Error,
    },
    /// A claim's image is nowhere.
    #[error("disk `{disk}`: claim `{claim}`: looked for {looked}; --claim {claim}=PATH names it")]
    Claim {
        /// The disk's name.
        disk: String,
        /// The claim's.
        claim: String,
        /// The paths tried.
        looked: String,
    },
    /// The command line speaks of a disk that is not there.
    #[error("--{option} {name}: the manifest has no such {what}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it names.
        name: String,
        /// `disk`, `hostDisk or claim`, or `claim`.
        what: &'static str,
    },
    /// There is no such ConfigMap or Secret.
    #[error(
        "disk `{disk}`: {of} `{name}` is neither in the manifest's file nor mounted; put it beside the VMI"
    )]
    NoKeys {
        /// The disk.
        disk: String,
        /// What it is.
        of: Keyed,
        /// Its name.
        name: String,
    },
    /// There is nothing that could go without a disk.
    #[error(
        "--seed vsock: the manifest has no cloudInitNoCloud, and no other seed goes without a disk"
    )]
    NoSeed,
    /// A mounted one cannot be read.
    #[error("{path}: {cause}")]
    Keys {
        /// Where.
        path: PathBuf,
        /// Said by the system.
        cause: io::Error,
    },
    /// A file cannot be made.
    #[error("cannot make {path}: {cause}")]
    Make {
        /// Its path.
        path: PathBuf,
        /// Said by the system.
        cause: io::Error,
    },
}

/// What disks are found with.
#[derive(Debug)]
pub struct Finder<'a> {
    /// The command line's.
    pub options: &'a Options,
    /// Where container disks are looked for.
    pub images: &'a [PathBuf],
    /// Where they are unpacked.
    pub cache: &'a Path,
    /// Where a pod has its container images mounted, which are then not looked for elsewhere.
    pub mounted: Option<&'a Path>,
    /// Make no disk that is not there.
    pub dry_run: bool,
}

impl Finder<'_> {
    /// Looks at the disks that are there already; writes nothing.
    pub fn check(&self, machine: &Machine) -> Result<(), Error> {
        let unknown = |option, what, name: &String| Error::Option {
            option,
            name: name.clone(),
            what,
        };
        for (name, _) in &self.options.format {
            // A container image's disk says what it is, and others are made here.
            let has = |d: &vmi::Disk| {
                d.name == *name
                    && matches!(d.source, Source::HostDisk { .. } | Source::Claim { .. })
            };
            if !machine.disks.iter().any(has) {
                return Err(unknown("format", "hostDisk or claim", name));
            }
        }
        for (name, _) in &self.options.claim {
            let named =
                |d: &vmi::Disk| matches!(&d.source, Source::Claim { claim, .. } if claim == name);
            if !machine.disks.iter().any(named) {
                return Err(unknown("claim", "claim", name));
            }
        }
        for (option, list) in [
            ("disk-rate", &self.options.disk_rate),
            ("disk-iops", &self.options.disk_iops),
        ] {
            let mut names = list.iter().map(|(name, _)| name);
            let lost = names.find(|name| machine.disks.iter().all(|d| d.name != **name));
            if let Some(name) = lost {
                return Err(unknown(option, "disk", name));
            }
        }
        for disk in &machine.disks {
            match &disk.source {
                Source::HostDisk { path, kind, .. }
                    if *kind == HostDiskType::Disk || path.exists() =>
                {
                    self.check_file(disk, path, !disk.readonly)?;
                }
                Source::Claim { ephemeral, .. } => {
                    let path = self.claim(disk)?;
                    self.check_file(disk, &path, !disk.readonly && !ephemeral)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn said(&self, disk: &vmi::Disk) -> Option<Format> {
        last(&self.options.format, &disk.name)
    }

    fn check_file(&self, disk: &vmi::Disk, path: &Path, write: bool) -> Result<(), Error> {
        let format = self.said(disk);
        checks::disk(&disk.name, path, write, format)?;
        if format == Some(Format::Qcow2) {
            let backing = BackingFiles::Below(&self.options.backing_dir);
            Qcow2Disk::open(path, true, backing)?;
        }
        Ok(())
    }

    fn claim(&self, disk: &vmi::Disk) -> Result<PathBuf, Error> {
        let Source::Claim { volume, claim, .. } = &disk.source else {
            return Ok(PathBuf::new());
        };
        if let Some((_, path)) = self.options.claim.iter().find(|(name, _)| name == claim) {
            return Ok(path.clone());
        }
        let candidates = CLAIMS.map(|(place, file)| {
            let path = Path::new(place).join(volume);
            // What is joined with nothing ends in a slash.
            if file.is_empty() {
                path
            } else {
                path.join(file)
            }
        });
        let found = candidates.iter().find(|path| path.exists()).cloned();
        found.ok_or_else(|| Error::Claim {
            disk: disk.name.clone(),
            claim: claim.clone(),
            looked: candidates
                .map(|path| path.display().to_string())
                .join(" and "),
        })
    }

    /// All disks, in the manifest's order. Container disks are unpacked and `DiskOrCreate` disks
    /// made.
    pub fn plan(&self, machine: &Machine) -> Result<Vec<PlannedDisk>, Error> {
        let planned = machine.disks.iter().map(|disk| {
            Ok(PlannedDisk {
                name: disk.name.clone(),
                backing: self.backing(machine, disk)?,
                readonly: disk.readonly,
                serial: disk.serial.clone(),
                threads: disk.threads,
                limits: Limits {
                    bytes: last(&self.options.disk_rate, &disk.name),
                    requests: last(&self.options.disk_iops, &disk.name),
                },
            })
        });
        planned.collect()
    }

    /// Takes NoCloud's seed out of the machine's disks: its files.
    pub fn take_seed(&self, machine: &mut Machine) -> Result<Files, Error> {
        let no_cloud = |disk: &vmi::Disk| match disk.source {
            Source::Seed { form, .. } => form == vmi::SeedForm::NoCloud,
            _ => false,
        };
        let at = machine.disks.iter().position(no_cloud);
        let disk = machine.disks.remove(at.ok_or(Error::NoSeed)?);
        let Source::Seed {
            user_data,
            network_data,
            keys,
            ..
        } = &disk.source
        else {
            return Err(Error::NoSeed);
        };
        let instance = self.instance(machine, &disk, keys)?;
        Ok(seed::files(&instance, user_data, network_data.as_deref()))
    }

    /// Whose seed it is that a disk holds.
    fn instance<'a>(
        &self,
        machine: &'a Machine,
        disk: &vmi::Disk,
        keys: &[SshKeys],
    ) -> Result<seed::Instance<'a>, Error> {
        Ok(seed::Instance {
            id: &machine.uuid,
            hostname: &machine.hostname,
            keys: self.public_keys(disk, keys)?,
        })
    }

    fn backing(&self, machine: &Machine, disk: &vmi::Disk) -> Result<Backing, Error> {
        let make = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Make { path, cause }
        };
        let format = self.said(disk).unwrap_or(Format::Raw);
        match &disk.source {
            Source::HostDisk { path, capacity, .. } => {
                if !path.exists() && !self.dry_run {
                    // Sparse, whole sectors, and never over a file that appears meanwhile.
                    let size = capacity.unwrap_or(0).next_multiple_of(512);
                    let file = File::options().write(true).create_new(true).open(path);
                    file.and_then(|f| f.set_len(size)).map_err(make(path))?;
                }
                Ok(Backing::File(path.clone(), format))
            }
            Source::Claim { ephemeral, .. } => {
                let path = self.claim(disk)?;
                Ok(if *ephemeral {
                    Backing::Base(path, format)
                } else {
                    Backing::File(path, format)
                })
            }
            Source::EmptyDisk { capacity } => Ok(Backing::Empty(capacity.next_multiple_of(512))),
            Source::ContainerDisk {
                volume: (volume, index),
                image,
                path,
            } => {
                let name = disk.name.clone();
                let base = match self.mounted {
                    Some(below) => mounted::disk(below, (volume, *index), path.as_deref())
                        .map_err(|source| Error::Mounted { disk: name, source }),
                    None => self
                        .unpack(image, path.as_deref())
                        .map_err(|source| Error::ContainerDisk { disk: name, source }),
                };
                container_disk(disk, base?)
            }
            Source::Keys {
                volume,
                of,
                name,
                optional,
                label,
                files,
                ..
            } => {
                let files = self.keys(files, || keys::mounted(*of, volume))?;
                let files = match (files, optional) {
                    (Some(files), _) => files,
                    (None, true) => keys::Keys::new(),
                    (None, false) => {
                        return Err(Error::NoKeys {
                            disk: disk.name.clone(),
                            of: *of,
                            name: name.clone(),
                        });
                    }
                };
                let files = files.iter().map(|(name, data)| (&**name, &**data));
                vfat::image(label, "", files)
                    .map(Backing::Memory)
                    .map_err(make(Path::new(&format!("the disk of {of} {name}"))))
            }
            Source::Seed {
                form,
                user_data,
                network_data,
                keys,
            } => {
                let instance = self.instance(machine, disk, keys)?;
                let network = network_data.as_deref();
                seed::image(*form, &instance, user_data, network)
                    .map(Backing::Memory)
                    .map_err(make(Path::new("the seed")))
            }
        }
    }

    /// Keys that are in the manifest's own file, or mounted where there is a pod.
    fn keys(
        &self,
        files: &Option<keys::Keys>,
        mounted: impl FnOnce() -> Result<Option<keys::Keys>, keys::Unread>,
    ) -> Result<Option<keys::Keys>, Error> {
        match files {
            Some(files) => Ok(Some(files.clone())),
            None if self.mounted.is_some() => {
                mounted().map_err(|(path, cause)| Error::Keys { path, cause })
            }
            None => Ok(None),
        }
    }

    /// The public keys of SSH that a seed carries: what each of their Secrets has.
    fn public_keys(&self, disk: &vmi::Disk, all: &[SshKeys]) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for SshKeys { secret, files } in all {
            let keys = self.keys(files, || keys::credentials(secret))?;
            let keys = keys.ok_or_else(|| Error::NoKeys {
                disk: disk.name.clone(),
                of: Keyed::Secret,
                name: secret.clone(),
            })?;
            let texts = keys.values().map(|key| String::from_utf8_lossy(key));
            found.extend(
                texts
                    .map(|key| key.trim().to_owned())
                    .filter(|key| !key.is_empty()),
            );
        }
        Ok(found)
    }

    /// A file of a container image, unpacked: the one at `path`, or the one in its /disk.
    pub fn unpack(&self, image: &str, path: Option<&str>) -> Result<PathBuf, containerdisk::Error> {
        let mut images = self.images.iter();
        let present = images.find(|dir| dir.join("containerdisks").is_dir());
        let dir = present
            .or(self.images.first())
            .map_or(Path::new("."), PathBuf::as_path);
        containerdisk::unpack(image, path, dir, self.cache)
    }
}

/// What was said last of that name.
fn last<T: Copy>(said: &[(String, T)], name: &str) -> Option<T> {
    let mut said = said.iter().rev();
    said.find(|(of, _)| of == name).map(|(_, what)| *what)
}

fn container_disk(disk: &vmi::Disk, base: PathBuf) -> Result<Backing, Error> {
    let format = content(&base).map_err(|e| DiskError::Open(base.clone(), e))?;
    checks::disk(&disk.name, &base, false, Some(format))?;
    if format == Format::Qcow2 {
        Qcow2Disk::open(&base, true, BackingFiles::None)?;
    }
    Ok(Backing::ContainerDisk(base, format))
}

/// What a file that no guest has written is.
fn content(path: &Path) -> io::Result<Format> {
    let mut magic = Vec::new();
    let file = File::open(path)?;
    file.take(qcow2::MAGIC.len() as u64)
        .read_to_end(&mut magic)?;
    Ok(if magic == qcow2::MAGIC {
        Format::Qcow2
    } else {
        Format::Raw
    })
}

/// Opens a disk, for the machine to read and write. Backing files may lie below `backing_dirs`;
/// what does not outlive the machine lies in `scratch`, over what it was in a VM that is restored.
pub fn open(
    disk: &PlannedDisk,
    backing_dirs: &[PathBuf],
    scratch: &Path,
    restored: Option<&Restored>,
) -> Result<Box<dyn Disk>, DiskError> {
    let below = BackingFiles::Below(backing_dirs);
    let saved = restored.and_then(|restored| restored.disk(&disk.name));
    if restored.is_some() && saved.is_none() && disk.goes_with_the_vm() {
        return Err(not_saved(disk, "is none of its own"));
    }
    let over = |base| -> Result<Box<dyn Disk>, DiskError> {
        if disk.readonly {
            return Ok(base);
        }
        let base = match saved {
            None => base,
            Some((saved, file)) => as_saved(disk, base, saved, file)?,
        };
        Ok(Box::new(CowDisk::new(base, scratch)?))
    };
    match &disk.backing {
        Backing::File(path, format) => open_file(path, *format, disk.readonly, below),
        Backing::Base(path, format) => over(open_file(path, *format, true, below)?),
        Backing::ContainerDisk(path, format) => {
            over(open_file(path, *format, true, BackingFiles::None)?)
        }
        Backing::Empty(size) => {
            let empty: Box<dyn Disk> = Box::new(RawDisk::empty(*size, scratch)?);
            if saved.is_some() {
                over(empty)
            } else {
                Ok(empty)
            }
        }
        Backing::Memory(bytes) => Ok(Box::new(RawDisk::from_bytes(&disk.name, bytes)?)),
    }
}

/// A disk as it was in the snapshot, over its base as it is now.
fn as_saved(
    disk: &PlannedDisk,
    base: Box<dyn Disk>,
    saved: &SavedDisk,
    file: &File,
) -> Result<Box<dyn Disk>, DiskError> {
    if saved.size != base.size() {
        return Err(not_saved(disk, "has another size"));
    }
    let file = file.try_clone();
    let file = file.map_err(|error| DiskError::Open(disk.name.clone().into(), error))?;
    Ok(match &saved.written {
        None => Box::new(RawDisk::saved(file, saved.size)),
        Some(words) => Box::new(CowDisk::over(base, file, Written::these(words, saved.size))),
    })
}

fn not_saved(disk: &PlannedDisk, what: &str) -> DiskError {
    let why = format!("the snapshot's disk of that name {what}");
    DiskError::Image(PathBuf::from(&disk.name), why)
}

fn open_file(
    path: &Path,
    format: Format,
    read_only: bool,
    backing: BackingFiles<'_>,
) -> Result<Box<dyn Disk>, DiskError> {
    Ok(match format {
        Format::Raw => Box::new(RawDisk::open(path, read_only)?),
        Format::Qcow2 => Box::new(Qcow2Disk::open(path, read_only, backing)?),
    })
}

#[cfg(test)]
mod tests;
