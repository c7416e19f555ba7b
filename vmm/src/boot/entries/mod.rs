//! What a disk's own boot loader would start: the kernel, the initramfs and the command line, found
//! in the loader's configuration.
//!
//! An image is hostile: whatever is read has a bound, and a damaged table or file system is an
//! error or an entry less.

mod bls;
mod grub;
mod partitions;
mod source;
#[cfg(test)]
mod tests;
mod uki;
mod version;
mod volume;

use std::fmt;

use partitions::{Purpose, Table};
pub use source::ReadAt;
use source::Window;
use volume::Volume;

/// More entries are not read.
const MAX_ENTRIES: usize = 256;
/// No configuration is longer.
const MAX_TEXT: u64 = 1 << 20;
/// No kernel is larger.
const MAX_KERNEL: u64 = 128 << 20;
/// What an entry's initramfs may have in all.
const MAX_INITRD: u64 = 512 << 20;
/// Partitions that are looked at.
const MAX_VOLUMES: usize = 64;
/// Where GRUB's configuration lies on a root, or on a partition that is mounted at /boot.
const GRUB: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Where there may be entries of type 1 that no loader is configured to read.
const ENTRIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// Where UEFI looks for a loader on a disk of which it knows nothing (UEFI 2.10, section 3.5.1.1).
const EFI_LOADER: (&str, &str) = ("/EFI/BOOT", "BOOTX64.EFI");

/// Where a kernel or a part of an initramfs lies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// A file of the volume with this index.
    File { volume: usize, path: String },
    /// A section of a unified kernel image.
    Section {
        volume: usize,
        path: String,
        name: &'static str,
    },
}

impl Part {
    fn file(volume: usize, path: &str) -> Self {
        Self::File {
            volume,
            path: path.to_owned(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => f.write_str(path),
            Self::Section { path, name, .. } => write!(f, "{path}:{name}"),
        }
    }
}

/// Something that the disk's loader would start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What a person is shown.
    pub title: String,
    /// What the loader's configuration calls it; may be empty.
    pub id: String,
    kernel: Option<Part>,
    initrd: Vec<Part>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where it was found: `partition 1 (ext4): /boot/grub/grub.cfg`.
    pub source: String,
    /// Why it cannot be started, where it cannot.
    pub why_not: Option<String>,
}

impl Entry {
    /// The kernel's path on the disk.
    pub fn kernel(&self) -> Option<String> {
        self.kernel.as_ref().map(Part::to_string)
    }

    /// The paths of what makes up the initramfs.
    pub fn initrd(&self) -> Vec<String> {
        self.initrd.iter().map(Part::to_string).collect()
    }
}

/// Why an entry's files could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// What a kernel is started with.
#[derive(Debug)]
pub struct Loaded {
    /// As the file has it: a bzImage or an ELF image.
    pub kernel: Vec<u8>,
    /// The archives one after the other; `None` where the entry has none.
    pub initramfs: Option<Vec<u8>>,
}

/// What was found on a disk.
pub struct Disk {
    table: Table,
    volumes: Vec<Volume>,
    /// In the order of the loader's menu.
    pub entries: Vec<Entry>,
    /// The index of the one that would be started.
    pub default: usize,
    /// What is wrong with the disk, a sentence each.
    problems: Vec<String>,
    looked: Vec<String>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({:?}, {:?})", self.entries, self.default)
    }
}

impl Disk {
    /// Looks for what the disk's loader would start.
    pub fn read(bytes: Box<dyn ReadAt>) -> Self {
        let window = Window::whole(bytes);
        let mut disk = Self {
            table: Table::None,
            volumes: Vec::new(),
            entries: Vec::new(),
            default: 0,
            problems: Vec::new(),
            looked: Vec::new(),
        };
        match partitions::read(&window) {
            Ok((table, partitions)) => {
                disk.table = table;
                let partitions = partitions.iter().take(MAX_VOLUMES);
                disk.volumes = partitions.filter_map(|p| Volume::open(table, p)).collect();
            }
            Err(problem) => disk.problems.push(problem),
        }
        for volume in &disk.volumes {
            if let Some(why) = volume.unread() {
                disk.problems.push(format!("{}: {why}", volume.place()));
            }
        }
        disk.find();
        disk
    }

    /// The first of: a loader that reads the boot partitions, GRUB, entries that nobody reads,
    /// kernels that nobody names.
    fn find(&mut self) {
        let boot = self.boot_volumes();
        self.look(&boot, &["/loader/entries/*.conf", "/EFI/Linux/*.efi"]);
        self.entries = bls::find(&self.volumes, &boot);
        // What has variables is written for GRUB, which knows them.
        if !self.entries.is_empty() && !self.entries.iter().any(|e| e.cmdline.contains('$')) {
            return;
        }
        self.entries.clear();
        let all: Vec<usize> = (0..self.volumes.len()).collect();
        self.look(&all, &GRUB);
        for &index in &all {
            for path in GRUB {
                let Some(volume) = self.volumes.get(index) else {
                    continue;
                };
                let Ok(text) = volume.read(path, MAX_TEXT) else {
                    continue;
                };
                let source = format!("{}: {path}", volume.place());
                match grub::menu(&self.volumes, index, path, &String::from_utf8_lossy(&text)) {
                    Ok((entries, default)) if !entries.is_empty() => {
                        (self.entries, self.default) = (entries, default);
                        return;
                    }
                    Ok(_) => self.problems.push(format!("{source}: has no menu entry")),
                    Err(why) => self.problems.push(format!("{source}:{why}")),
                }
            }
        }
        self.look(
            &all,
            &["/loader/entries/*.conf", "/boot/loader/entries/*.conf"],
        );
        for (index, volume) in self.volumes.iter().enumerate() {
            for directory in ENTRIES {
                for snippet in bls::snippets(volume, directory) {
                    let options = snippet.options.join(" ");
                    self.entries
                        .push(bls::entry(&snippet, index, volume, options));
                }
            }
        }
        self.entries.sort_by(|a, b| version::compare(&b.id, &a.id));
        if self.entries.is_empty() {
            self.look(&all, &["/boot/vmlinuz-*"]);
            self.entries = self.kernels();
        }
    }

    fn look(&mut self, volumes: &[usize], paths: &[&str]) {
        let volumes = volumes.iter().filter_map(|i| self.volumes.get(*i));
        let readable: Vec<_> = volumes
            .filter(|v| v.unread().is_none())
            .map(Volume::place)
            .collect();
        if !readable.is_empty() {
            self.looked
                .push(format!("{} on {}", paths.join(", "), readable.join(", ")));
        }
    }

    /// The volumes that a loader started by firmware reads: the extended boot loader partition
    /// first, whose files shadow the system partition's.
    fn boot_volumes(&self) -> Vec<usize> {
        let with = |purpose| {
            let all = self.volumes.iter().enumerate();
            all.filter(move |(_, v)| v.purpose == purpose)
                .map(|(i, _)| i)
        };
        with(Purpose::Xbootldr).chain(with(Purpose::Esp)).collect()
    }

    /// A root's kernels, the newest first, where no loader is configured.
    fn kernels(&self) -> Vec<Entry> {
        let mut found = Vec::new();
        for (index, volume) in self.volumes.iter().enumerate() {
            let Some(uuid) = &volume.uuid else { continue };
            let names = volume.list("/boot");
            for name in names.iter().take(MAX_ENTRIES) {
                let Some(version) = name.strip_prefix("vmlinuz-") else {
                    continue;
                };
                let candidates = [
                    format!("initrd.img-{version}"),
                    format!("initramfs-{version}.img"),
                ];
                let initrd = candidates.iter().find(|c| names.contains(c));
                let path = |name: &String| Part::file(index, &format!("/boot/{name}"));
                found.push(Entry {
                    title: name.clone(),
                    id: version.to_owned(),
                    kernel: Some(path(name)),
                    initrd: initrd.map(path).into_iter().collect(),
                    cmdline: format!("root=UUID={uuid} ro"),
                    source: format!("{}: /boot", volume.place()),
                    why_not: None,
                });
            }
        }
        found.sort_by(|a, b| version::compare(&b.id, &a.id));
        found
    }

    /// Whether the disk is one file system, which can be read, with no kernel in it.
    pub fn is_plain_root(&self) -> bool {
        let readable = |v: &Volume| v.unread().is_none();
        self.table == Table::None && self.entries.is_empty() && self.volumes.iter().any(readable)
    }

    /// What would be started; the error says what was looked for, and where.
    pub fn default_entry(&self) -> Result<&Entry, Error> {
        let Some(entry) = self.entries.get(self.default) else {
            return Err(Error(self.nothing()));
        };
        match (&entry.why_not, &entry.kernel) {
            (Some(why), _) => Err(Error(format!("{}: `{}`: {why}", entry.source, entry.title))),
            (None, None) => Err(Error(format!(
                "{}: `{}` starts no Linux kernel",
                entry.source, entry.title
            ))),
            (None, Some(_)) => Ok(entry),
        }
    }

    /// The loader that UEFI would start: `partition 1 (vfat): /EFI/BOOT/BOOTX64.EFI`.
    pub fn efi_loader(&self) -> Result<String, Error> {
        let (directory, name) = EFI_LOADER;
        let volumes: Vec<_> = self.volumes.iter().filter(|v| v.kind == "vfat").collect();
        let has = |volume: &&&Volume| {
            let names = volume.list(directory);
            names.iter().any(|found| found.eq_ignore_ascii_case(name))
        };
        if let Some(volume) = volumes.iter().find(has) {
            return Ok(format!("{}: {directory}/{name}", volume.place()));
        }
        let places: Vec<_> = volumes.iter().map(|v| v.place()).collect();
        let place = match &*places.join(", ") {
            "" => "no vfat".to_owned(),
            places => places.to_owned(),
        };
        Err(Error(format!(
            "has nothing for UEFI to boot; looked for {directory}/{name} on {place}"
        )))
    }

    fn nothing(&self) -> String {
        let mut text = match (self.table, self.volumes.is_empty()) {
            (Table::None, true) => {
                "has neither a partition table nor a file system that is known".to_owned()
            }
            (_, true) => "has no file system that is known".to_owned(),
            _ => "has nothing to boot".to_owned(),
        };
        if !self.looked.is_empty() {
            text += &format!("; looked for {}", self.looked.join("; "));
        }
        for problem in &self.problems {
            text += &format!("; {problem}");
        }
        text
    }

    /// Reads an entry's files.
    pub fn load(&self, entry: &Entry) -> Result<Loaded, Error> {
        let Some(kernel) = &entry.kernel else {
            return Err(Error(format!("`{}` starts no Linux kernel", entry.title)));
        };
        let kernel = self.part(entry, kernel, MAX_KERNEL)?;
        let mut initramfs: Option<Vec<u8>> = None;
        for part in &entry.initrd {
            let whole = initramfs.get_or_insert_default();
            let left = MAX_INITRD.saturating_sub(whole.len() as u64);
            whole.extend(self.part(entry, part, left)?);
            // The kernel looks for the next archive at a multiple of four.
            whole.resize(whole.len().next_multiple_of(4), 0);
        }
        Ok(Loaded { kernel, initramfs })
    }

    fn part(&self, entry: &Entry, part: &Part, max: u64) -> Result<Vec<u8>, Error> {
        let (volume, path, name, max) = match part {
            Part::File { volume, path } => (*volume, path, None, max),
            Part::Section { volume, path, name } => (*volume, path, Some(name), uki::MAX),
        };
        let failed = |place: &str, why: String| {
            Error(format!(
                "{}: `{}`: {place}{path}: {why}",
                entry.source, entry.title
            ))
        };
        let on = self
            .volumes
            .get(volume)
            .ok_or_else(|| failed("", "is on no partition".to_owned()))?;
        let place = format!("{}: ", on.place());
        let bytes = on
            .read(path, max)
            .map_err(|error| failed(&place, error.to_string()))?;
        let Some(name) = name else { return Ok(bytes) };
        let image = uki::Uki::parse(&bytes).map_err(|why| failed(&place, why))?;
        let section = image.section(name).unwrap_or_default();
        Ok(section.to_vec())
    }
}
