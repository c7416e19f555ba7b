//! The file system of a partition, read only: ext2/3/4 and vfat; others are known by name.

use std::io::{self, Read};

use super::partitions::{Partition, Purpose, Table};
use super::source::Window;

/// A directory with more entries is read no further.
const MAX_NAMES: usize = 10_000;

enum FileSystem {
    Ext4(Box<ext4_view::Ext4>),
    Fat(Box<fatfs::FileSystem<Window>>),
    /// Known, and not read here; or damaged. A sentence's end.
    Unread(String),
}

/// A partition, or a whole disk, with what is on it.
pub(super) struct Volume {
    /// The partition's number, 0 for a whole disk.
    pub(super) number: u32,
    table: Table,
    pub(super) purpose: Purpose,
    /// `ext4`, `vfat`, `xfs`, ...
    pub(super) kind: &'static str,
    /// As `blkid` shows it; in lower case.
    pub(super) uuid: Option<String>,
    /// The file system's label.
    pub(super) label: Option<String>,
    files: FileSystem,
}

impl Volume {
    /// What is on the partition; `None` where nothing is known there.
    pub(super) fn open(table: Table, partition: &Partition) -> Option<Self> {
        let window = &partition.window;
        let (kind, uuid, label) = identify(window)?;
        let files = match kind {
            "ext4" => match ext4_view::Ext4::load(Box::new(window.clone())) {
                Ok(files) => FileSystem::Ext4(Box::new(files)),
                Err(error) => FileSystem::Unread(error.to_string()),
            },
            "vfat" => match fatfs::FileSystem::new(window.clone(), fatfs::FsOptions::new()) {
                Ok(files) => FileSystem::Fat(Box::new(files)),
                Err(error) => FileSystem::Unread(error.to_string()),
            },
            _ => FileSystem::Unread("it is not read here".to_owned()),
        };
        Some(Self {
            number: partition.number,
            table,
            purpose: partition.purpose,
            kind,
            uuid,
            label: label.filter(|l| !l.is_empty()),
            files,
        })
    }

    /// Why nothing of it can be read.
    pub(super) fn unread(&self) -> Option<&str> {
        match &self.files {
            FileSystem::Unread(why) => Some(why),
            _ => None,
        }
    }

    /// What GRUB calls it.
    pub(super) fn grub_name(&self) -> String {
        match self.table {
            Table::Gpt => format!("hd0,gpt{}", self.number),
            Table::Mbr => format!("hd0,msdos{}", self.number),
            Table::None => "hd0".to_owned(),
        }
    }

    /// What a person calls it: `partition 2 (ext4)`.
    pub(super) fn place(&self) -> String {
        match self.number {
            0 => self.kind.to_owned(),
            number => format!("partition {number} ({})", self.kind),
        }
    }

    /// The names in a directory; none where there is no such directory.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.files {
            FileSystem::Ext4(files) => {
                let entries = files.read_dir(absolute(path).as_str());
                let entries = entries.into_iter().flatten().take(MAX_NAMES);
                let name = |entry: Result<ext4_view::DirEntry, _>| {
                    let entry = entry.ok()?;
                    entry.file_name().as_str().ok().map(str::to_owned)
                };
                entries.map_while(name).collect()
            }
            FileSystem::Fat(files) => {
                let directory = match relative(path) {
                    "" => Ok(files.root_dir()),
                    path => files.root_dir().open_dir(path),
                };
                let entries = directory.into_iter().flat_map(|d| d.iter().take(MAX_NAMES));
                entries.map_while(|e| Some(e.ok()?.file_name())).collect()
            }
            FileSystem::Unread(_) => Vec::new(),
        };
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    /// A file's content. One that is longer than `max` is refused.
    pub(super) fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match &self.files {
            FileSystem::Ext4(files) => {
                let file = files.open(absolute(path).as_str()).map_err(of_ext4)?;
                Ext4File(file).take(max + 1).read_to_end(&mut bytes)?;
            }
            FileSystem::Fat(files) => {
                let file = files.root_dir().open_file(relative(path))?;
                file.take(max + 1).read_to_end(&mut bytes)?;
            }
            FileSystem::Unread(why) => {
                let error = format!("{}: {why}", self.kind);
                return Err(io::Error::new(io::ErrorKind::Unsupported, error));
            }
        }
        if bytes.len() as u64 > max {
            return Err(io::Error::other(format!("is larger than {max} bytes")));
        }
        Ok(bytes)
    }

    /// Whether there is such a file or directory, and its length.
    pub(super) fn stat(&self, path: &str) -> Option<(bool, u64)> {
        match &self.files {
            FileSystem::Ext4(files) => {
                let metadata = files.metadata(absolute(path).as_str()).ok()?;
                Some((metadata.is_dir(), metadata.len()))
            }
            FileSystem::Fat(files) => {
                let (parent, name) = relative(path)
                    .rsplit_once('/')
                    .unwrap_or(("", relative(path)));
                let parent = match parent {
                    "" => files.root_dir(),
                    parent => files.root_dir().open_dir(parent).ok()?,
                };
                let mut entries = parent.iter().take(MAX_NAMES).map_while(Result::ok);
                let entry = entries.find(|e| e.file_name().eq_ignore_ascii_case(name))?;
                Some((entry.is_dir(), entry.len()))
            }
            FileSystem::Unread(_) => None,
        }
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn relative(path: &str) -> &str {
    path.trim_matches('/')
}

fn of_ext4(error: ext4_view::Ext4Error) -> io::Error {
    match error {
        ext4_view::Ext4Error::NotFound => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error.to_string()),
    }
}

struct Ext4File(ext4_view::File);

impl Read for Ext4File {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read_bytes(to).map_err(of_ext4)
    }
}

/// Kind, UUID and label of what lies there, by its magic numbers.
fn identify(window: &Window) -> Option<(&'static str, Option<String>, Option<String>)> {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        Some(text.trim_end_matches(['\0', ' ']).to_owned())
    };
    // Documentation/filesystems/ext4/super.rst: s_magic at 0x38, s_uuid at 0x68, s_volume_name.
    if window.peek(1024 + 0x38) == [0x53, 0xef] {
        let label: [u8; 16] = window.peek(1024 + 0x78);
        return Some(("ext4", Some(uuid(window.peek(1024 + 0x68))), text(&label)));
    }
    // XFS: sb_magicnum at 0, sb_uuid at 32, sb_fname at 108.
    if window.peek(0) == *b"XFSB" {
        let label: [u8; 12] = window.peek(108);
        return Some(("xfs", Some(uuid(window.peek(32))), text(&label)));
    }
    // btrfs: the superblock is at 64 KiB, fsid at 0x20 in it, magic at 0x40, label at 0x12b.
    if window.peek((64 << 10) + 0x40) == *b"_BHRfS_M" {
        let label: [u8; 64] = window.peek((64 << 10) + 0x12b);
        let uuid = uuid(window.peek((64 << 10) + 0x20));
        return Some(("btrfs", Some(uuid), text(&label)));
    }
    let names: [(u64, &[u8], &str); 6] = [
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512 + 0x18, b"LVM2 001", "LVM"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (4096 - 10, b"SWAPSPACE2", "swap"),
        (0x8001, b"CD001", "iso9660"),
    ];
    for (at, magic, name) in names {
        let found: [u8; 10] = window.peek(at);
        if found.starts_with(magic) {
            return Some((name, None, None));
        }
    }
    // FAT: BS_FilSysType and the volume's serial number lie elsewhere in FAT32.
    for (kind, serial) in [(0x36, 0x27), (0x52, 0x43)] {
        if window.peek(kind) == *b"FAT" {
            let [a, b, c, d]: [u8; 4] = window.peek(serial);
            let label: [u8; 11] = window.peek(serial + 4);
            let uuid = format!("{d:02x}{c:02x}-{b:02x}{a:02x}");
            return Some(("vfat", Some(uuid), text(&label)));
        }
    }
    None
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}
