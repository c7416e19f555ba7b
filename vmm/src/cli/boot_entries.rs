//! `peapod boot-entries`: what a disk's own boot loader would start.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::boot::entries::Disk;
use crate::devices::virtio::block::disk::DiskError;
use crate::disks::{self, entries};
use crate::plan::{Backing, Format, PlannedDisk};

/// Arguments of `peapod boot-entries`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A disk image or a block device
    pub disk: PathBuf,
    /// How the image holds the disk
    #[arg(long, value_name = "raw|qcow2", default_value = "raw", value_parser = disks::parse_kind)]
    pub format: Format,
    /// Let qcow2 images have backing files below this directory; may be repeated
    #[arg(long, value_name = "DIR")]
    pub backing_dir: Vec<PathBuf>,
}

/// Why nothing is listed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nothing is there to be booted.
    #[error("{0}: {1}")]
    Nothing(PathBuf, String),
}

/// Looks at the disk.
pub fn find(args: &Args) -> Result<Disk, Error> {
    let disk = PlannedDisk {
        limits: Default::default(),
        threads: false,
        name: args.disk.display().to_string(),
        backing: Backing::File(args.disk.clone(), args.format),
        readonly: true,
        serial: None,
    };
    let nothing = |why: &str| Error::Nothing(args.disk.clone(), why.to_owned());
    let found = entries::read(&disk, &args.backing_dir)?.ok_or_else(|| nothing("no such file"))?;
    match found.default_entry() {
        Err(error) if found.entries.is_empty() && found.efi_loader().is_err() => {
            Err(nothing(&error.to_string()))
        }
        _ => Ok(found),
    }
}

/// Prints the menu, the default with a star, and what UEFI would start in its place.
pub fn print(disk: &Disk) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (index, entry) in disk.entries.iter().enumerate() {
        let mark = if index == disk.default { '*' } else { ' ' };
        // A disk's text is not to move a terminal's cursor.
        let plain = |text: &str| text.escape_debug().to_string().replace("\\'", "'");
        writeln!(out, "{mark} {}", plain(&entry.title))?;
        let mut line = |name: &str, value: &str| match value {
            "" => Ok(()),
            value => writeln!(out, "    {name:<8} {}", plain(value)),
        };
        line("id", &entry.id)?;
        line("kernel", &entry.kernel().unwrap_or_default())?;
        line("initrd", &entry.initrd().join(" "))?;
        line("options", &entry.cmdline)?;
        line("from", &entry.source)?;
        line("but", entry.why_not.as_deref().unwrap_or_default())?;
    }
    if let Ok(loader) = disk.efi_loader() {
        writeln!(out, "  UEFI\n    {:<8} {loader}", "loader")?;
    }
    out.flush()
}
