//! Looks at the files and ports a run will need, before anything starts.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use netdev::config::Forward;
use netdev::counters::Counters;
use netdev::forward::{ForwardError, ListeningPort};

use crate::devices::virtio::block::disk::read_padded;
use crate::devices::virtio::block::qcow2;
use crate::plan::Format;

/// Sector of a virtio-blk device (VIRTIO 1.2, 5.2).
const SECTOR: u64 = 512;

/// A file or port that will not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error("{what} {path}: {cause}")]
    Io {
        /// "kernel", "initramfs", "disk `root`".
        what: String,
        /// The file.
        path: PathBuf,
        /// Said by the system.
        cause: &'static str,
    },
    /// Its content is not what it should be.
    #[error("{what} {path}: {why}")]
    Content {
        /// As above.
        what: String,
        /// The file.
        path: PathBuf,
        /// One sentence.
        why: String,
    },
    /// A port is taken or may not be used.
    #[error("port {forward}: {why}")]
    Port {
        /// Which.
        forward: Forward,
        /// One sentence.
        why: String,
    },
}

/// An I/O error in words, without the number.
pub(crate) fn cause(e: &io::Error) -> &'static str {
    match e.kind() {
        ErrorKind::NotFound => "no such file",
        ErrorKind::PermissionDenied => "permission denied",
        ErrorKind::IsADirectory => "is a directory",
        ErrorKind::ReadOnlyFilesystem => "lies on a read-only file system",
        ErrorKind::UnexpectedEof => "truncated",
        ErrorKind::NotADirectory => "a part of the path is no directory",
        _ => "cannot be read",
    }
}

/// A file under inspection.
struct Subject<'a> {
    what: &'a str,
    path: &'a Path,
}

impl Subject<'_> {
    fn io(&self, e: &io::Error) -> Error {
        Error::Io {
            what: self.what.to_owned(),
            path: self.path.to_owned(),
            cause: cause(e),
        }
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        Error::Content {
            what: self.what.to_owned(),
            path: self.path.to_owned(),
            why: why.into(),
        }
    }

    fn open(&self, write: bool) -> Result<(File, Metadata), Error> {
        let file = OpenOptions::new().read(true).write(write).open(self.path);
        let file = file.map_err(|e| self.io(&e))?;
        let metadata = file.metadata().map_err(|e| self.io(&e))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(self.bad("is neither a file nor a block device"));
        }
        Ok((file, metadata))
    }

    /// Bytes at an offset, zeros beyond the end of the file.
    fn peek<const N: usize>(&self, file: &File, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        read_padded(file, &mut bytes, offset).map_err(|e| self.io(&e))?;
        Ok(bytes)
    }

    fn u32_at(&self, file: &File, offset: u64) -> Result<u64, Error> {
        Ok(u32::from_le_bytes(self.peek(file, offset)?).into())
    }

    fn u64_at(&self, file: &File, offset: u64) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.peek(file, offset)?))
    }

    fn whole(&self, said: u64, has: u64) -> Result<(), Error> {
        if said > has {
            return Err(self.bad(format!(
                "truncated: it should have {said} bytes and has {has}"
            )));
        }
        Ok(())
    }
}

/// An ELF or bzImage kernel, whole.
pub fn kernel(path: &Path) -> Result<(), Error> {
    let subject = Subject {
        what: "kernel",
        path,
    };
    let (file, metadata) = subject.open(false)?;
    let has = metadata.len();
    if subject.peek::<4>(&file, 0)? == *b"\x7fELF" {
        // Elf64_Ehdr: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
        let table = subject.u64_at(&file, 32)?;
        let size = u64::from(u16::from_le_bytes(subject.peek(&file, 54)?));
        let count = u64::from(u16::from_le_bytes(subject.peek(&file, 56)?));
        subject.whole(table.saturating_add(size * count).max(64), has)?;
        for header in (0..count).map(|i| table.saturating_add(i * size)) {
            // Elf64_Phdr: p_offset at 8, p_filesz at 32.
            let offset = subject.u64_at(&file, header.saturating_add(8))?;
            let length = subject.u64_at(&file, header.saturating_add(32))?;
            subject.whole(offset.saturating_add(length), has)?;
        }
        return Ok(());
    }
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202, setup_sects at 0x1f1, syssize at 0x1f4.
    if subject.peek::<4>(&file, 0x202)? == *b"HdrS" {
        let [sectors] = subject.peek::<1>(&file, 0x1f1)?;
        let setup = (u64::from(if sectors == 0 { 4 } else { sectors }) + 1) * SECTOR;
        let protected = subject.u32_at(&file, 0x1f4)? * 16;
        // syssize counts up to the last 16 bytes begun.
        return subject.whole((setup + protected).saturating_sub(15), has);
    }
    Err(subject.bad("is neither an ELF vmlinux nor a bzImage"))
}

/// A cpio archive, plain or compressed.
pub fn initramfs(path: &Path) -> Result<(), Error> {
    let subject = Subject {
        what: "initramfs",
        path,
    };
    let (mut file, metadata) = subject.open(false)?;
    let magic = subject.peek::<6>(&file, 0)?;
    if magic == *b"070701" || magic == *b"070702" {
        // Its last entry is named TRAILER!!!; padding may follow.
        const TAIL: u64 = 64 << 10;
        let tail = metadata.len().min(TAIL);
        let mut end = Vec::new();
        let read = file
            .seek(SeekFrom::Start(metadata.len() - tail))
            .and_then(|_| file.take(TAIL).read_to_end(&mut end));
        read.map_err(|e| subject.io(&e))?;
        let mut names = end.windows(10).rev();
        if !names.any(|name| name == b"TRAILER!!!") && !is_compressed(&end) {
            return Err(subject.bad("truncated: the cpio archive has no end"));
        }
        return Ok(());
    }
    if is_compressed(&magic) {
        Ok(())
    } else {
        Err(subject.bad("is no cpio archive"))
    }
}

/// gzip, LZ4 legacy, zstd or xz.
fn is_compressed(bytes: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [
        &[0x1f, 0x8b],
        &[0x02, 0x21, 0x4c, 0x18],
        &[0x28, 0xb5, 0x2f, 0xfd],
        b"\xfd7zXZ",
    ];
    magics.iter().any(|magic| bytes.starts_with(magic))
}

/// A disk: readable, writable if it must be, and where it is raw, whole sectors and as long as the
/// partition table or the file system at its front says. What nobody has said the `format` of is
/// raw, and refused where it looks like something else.
pub fn disk(name: &str, path: &Path, write: bool, format: Option<Format>) -> Result<(), Error> {
    let what = format!("disk `{name}`");
    let subject = Subject { what: &what, path };
    let (mut file, metadata) = subject.open(write)?;
    let has = if metadata.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(|e| subject.io(&e))?
    } else {
        metadata.len()
    };
    if format == Some(Format::Qcow2) {
        return Ok(());
    }
    if format.is_none() && subject.peek(&file, 0)? == qcow2::MAGIC {
        return Err(subject.bad(format!(
            "begins as a qcow2 image does: --format {name}=qcow2 reads it as one, \
             --format {name}=raw as it is"
        )));
    }
    if has == 0 {
        return Err(subject.bad("is empty"));
    }
    if has % SECTOR != 0 {
        return Err(subject.bad(format!(
            "truncated: {has} bytes are not a multiple of {SECTOR}"
        )));
    }
    if let Some(said) = said_length(&subject, &file)? {
        subject.whole(said, has)?;
    }
    Ok(())
}

/// The length that a GPT or an ext2/3/4 file system claims.
fn said_length(subject: &Subject, file: &File) -> Result<Option<u64>, Error> {
    // UEFI 2.10, 5.3.2: the header is sector 1, its AlternateLBA (the disk's last) at 32.
    if subject.peek::<8>(file, SECTOR)? == *b"EFI PART" {
        let last = subject.u64_at(file, SECTOR + 32)?;
        return Ok(last.checked_add(1).and_then(|n| n.checked_mul(SECTOR)));
    }
    // Documentation/filesystems/ext4/super.rst: the superblock is at 1024; s_magic at 0x38,
    // s_blocks_count_lo at 0x4, s_log_block_size at 0x18, s_feature_incompat at 0x60 (64bit is
    // 0x80), s_blocks_count_hi at 0x150.
    if subject.peek::<2>(file, 1024 + 0x38)? == [0x53, 0xef] {
        let mut blocks = subject.u32_at(file, 1024 + 0x4)?;
        if subject.u32_at(file, 1024 + 0x60)? & 0x80 != 0 {
            blocks |= subject.u32_at(file, 1024 + 0x150)? << 32;
        }
        let shift = subject.u32_at(file, 1024 + 0x18)?;
        let size = u32::try_from(shift)
            .ok()
            .and_then(|shift| 1024u64.checked_shl(shift));
        return Ok(size
            .filter(|s| *s <= 65536)
            .and_then(|size| blocks.checked_mul(size)));
    }
    Ok(None)
}

/// Binds every port for a moment, as the network will. Somebody may still take one before the network does; then the
/// network says so, as early.
pub fn ports(forwards: &[Forward]) -> Result<(), Error> {
    // Held until all are bound, so that the same port given twice is found as well.
    let counters = Counters::default();
    let mut held = Vec::new();
    for forward in forwards {
        held.push(ListeningPort::bind(forward, &counters).map_err(|error| {
            let why = match error {
                ForwardError::InUse(_) => {
                    "already taken (--publish HOSTPORT:GUESTPORT chooses another)".to_owned()
                }
                ForwardError::Bind(_, e) => match e.kind() {
                    ErrorKind::PermissionDenied => {
                        "no right to listen on it (--publish HOSTPORT:GUESTPORT chooses another)"
                            .to_owned()
                    }
                    ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
                    _ => format!("cannot listen on it: {e}"),
                },
            };
            Error::Port {
                forward: *forward,
                why,
            }
        })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use netdev::config::Transport;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn why(result: Result<(), Error>) -> String {
        match result.unwrap_err() {
            Error::Content { why, .. } | Error::Port { why, .. } => why,
            Error::Io { cause, .. } => cause.to_owned(),
        }
    }

    fn patched(len: usize, patches: &[(usize, &[u8])]) -> tempfile::NamedTempFile {
        let mut bytes = vec![0; len];
        for (at, patch) in patches {
            bytes[*at..*at + patch.len()].copy_from_slice(patch);
        }
        file(&bytes)
    }

    #[test]
    fn a_truncated_kernel_is_found() {
        let bz = [
            (0x1f1usize, &[1u8][..]),
            (0x1f4, &[64, 0, 0, 0]),
            (0x202, b"HdrS"),
        ];
        assert!(kernel(patched(2048, &bz).path()).is_ok());
        let cut = why(kernel(patched(2000, &bz).path()));
        assert_eq!(cut, "truncated: it should have 2033 bytes and has 2000");
        let elf = [
            (0usize, &b"\x7fELF"[..]),
            (32, &[64]),
            (54, &[56]),
            (56, &[1]),
            (64 + 32, &[0, 2]),
        ];
        assert!(kernel(patched(1024, &elf).path()).is_ok());
        assert!(why(kernel(patched(300, &elf).path())).starts_with("truncated"));
        assert_eq!(
            why(kernel(file(b"#!/bin/sh").path())),
            "is neither an ELF vmlinux nor a bzImage"
        );
        assert_eq!(why(kernel(Path::new("/nonexistent"))), "no such file");
    }

    #[test]
    fn a_truncated_initramfs_is_found() {
        assert!(initramfs(file(b"070701...TRAILER!!!\0\0").path()).is_ok());
        assert!(initramfs(file(&[0x1f, 0x8b, 8]).path()).is_ok());
        assert!(why(initramfs(file(b"070701...").path())).starts_with("truncated"));
        assert_eq!(why(initramfs(file(b"x").path())), "is no cpio archive");
    }

    #[test]
    fn a_disk_that_is_shorter_than_it_says_is_found() {
        assert_eq!(why(disk("d", file(b"").path(), true, None)), "is empty");
        let odd = why(disk("d", file(&[0; 513]).path(), true, None));
        assert_eq!(odd, "truncated: 513 bytes are not a multiple of 512");
        let qcow2 = file(b"QFI\xfb");
        let said = why(disk("d", qcow2.path(), false, None));
        assert!(said.contains("--format d=qcow2"), "{said}");
        assert!(disk("d", qcow2.path(), false, Some(Format::Qcow2)).is_ok());
        assert!(why(disk("d", qcow2.path(), false, Some(Format::Raw))).starts_with("truncated"));
        let ext4 = [
            (1024 + 0x38, &[0x53u8, 0xef][..]),
            (1024 + 4, &[4]),
            (1024 + 0x18, &[0]),
        ];
        assert!(disk("d", patched(4096, &ext4).path(), true, None).is_ok());
        assert!(why(disk("d", patched(3584, &ext4).path(), true, None)).starts_with("truncated"));
        let gpt = [(512usize, &b"EFI PART"[..]), (512 + 32, &[7])];
        assert!(disk("d", patched(4096, &gpt).path(), true, None).is_ok());
        assert!(why(disk("d", patched(3584, &gpt).path(), true, None)).starts_with("truncated"));
        assert!(why(disk("d", Path::new("/"), false, None)).starts_with("is neither a file"));
        assert_eq!(
            why(disk("d", Path::new("/nonexistent/x"), false, None)),
            "no such file"
        );
    }

    #[test]
    fn a_taken_port_and_one_given_twice_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bind = listener.local_addr().unwrap();
        let forward = Forward {
            transport: Transport::Tcp,
            bind,
            guest_port: 1,
        };
        assert!(why(ports(&[forward])).starts_with("already taken"));
        drop(listener);
        assert!(ports(&[forward]).is_ok());
        assert!(ports(&[forward, forward]).is_err());
        assert!(
            ports(&[
                forward,
                Forward {
                    transport: Transport::Udp,
                    ..forward
                }
            ])
            .is_ok()
        );
    }
}
