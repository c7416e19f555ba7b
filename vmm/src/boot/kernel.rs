//! Kernel images: a bzImage is unpacked to the ELF image in it, and the ELF image is entered
//! through PVH (Xen's `hvm_start_info` boot protocol).
//!
//! Sources: Documentation/arch/x86/boot.rst (setup header), xen/include/public/arch-x86/hvm/
//! start_info.h, the ELF-64 specification.

use std::fs::{File, Metadata};
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use sha2::{Digest, Sha256};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::hex::hex;

/// No kernel is larger than this, packed or not.
const MAX_KERNEL: u64 = 512 << 20;
/// scripts/Makefile.lib has at most 128 MiB for xz; the decoder takes a little more.
const MAX_DICTIONARY_KIB: u32 = 160 << 10;
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// A file that was changed since then could be changed again, and its times not tell: they are those of
/// the kernel's last tick.
const SETTLED: Duration = Duration::from_millis(20);
/// "HdrS", at 0x202 of a bzImage.
const SETUP_MAGIC: &[u8] = b"HdrS";

/// Why a kernel cannot be started. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("kernel {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Neither a bzImage nor an ELF image.
    #[error("kernel {0}: neither a bzImage nor an ELF image")]
    Format(PathBuf),
    /// A length in the file points past its end.
    #[error("kernel {0}: truncated or damaged ({1})")]
    Damaged(PathBuf, String),
    /// Packed in a way that is not read here.
    #[error(
        "kernel {0}: its payload is packed with {1}, which is not supported yet; give its vmlinux"
    )]
    Packing(PathBuf, &'static str),
    /// A file that is no firmware.
    #[error(
        "firmware {0}: no ELF image; what starts here is CLOUDHV.fd, as Debian's package cloudhv-efi-x86-64 has it"
    )]
    NoFirmware(PathBuf),
    /// No PVH entry point.
    #[error("kernel {0}: it has no PVH entry (CONFIG_PVH), which is needed to start it")]
    NoPvh(PathBuf),
    /// The unpacked kernel cannot be kept.
    #[error("kernel {0}: cannot keep the unpacked image as {1}: {2}")]
    Cache(PathBuf, PathBuf, std::io::Error),
}

/// An ELF kernel on the host, ready to be loaded; its file stays open, so that a machine which
/// starts anew is given the same.
#[derive(Debug, Clone)]
pub struct Kernel {
    path: PathBuf,
    elf: Arc<File>,
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// The PVH entry point.
    pub entry: GuestAddress,
    /// The first address behind the kernel.
    pub end: GuestAddress,
}

impl Kernel {
    /// Reads the kernel at `path`. A bzImage is unpacked once, into `cache`, under its content's
    /// hash; while the file stays as it is, it is not read again.
    pub fn open(path: &Path, cache: &Path) -> Result<Self, KernelError> {
        let failed = |error| KernelError::Read(path.to_owned(), error);
        let (file, magic) = begin(path).map_err(failed)?;
        if magic == ELF_MAGIC {
            return Ok(Self::of(path, file));
        }
        let known = known(&file.metadata().map_err(failed)?);
        let known = known.map(|name| cache.join(name));
        if let Some(elf) = known.as_ref().and_then(|known| File::open(known).ok()) {
            return Ok(Self::of(path, elf));
        }
        let mut image = magic.to_vec();
        file.take(MAX_KERNEL)
            .read_to_end(&mut image)
            .map_err(failed)?;
        let name = unpacked(&image);
        let kernel = Self::unpack_as(&name, path, &image, cache)?;
        if let Some(known) = known {
            // Where this fails it is read the next time too.
            let _ = std::fs::remove_file(&known);
            let _ = symlink(name, known);
        }
        Ok(kernel)
    }

    /// Firmware that is entered as a kernel is: an ELF image, which needs no unpacking.
    pub fn firmware(path: &Path) -> Result<Self, KernelError> {
        let (file, magic) =
            begin(path).map_err(|error| KernelError::Read(path.to_owned(), error))?;
        match magic == ELF_MAGIC {
            true => Ok(Self::of(path, file)),
            false => Err(KernelError::NoFirmware(path.to_owned())),
        }
    }

    fn of(path: &Path, elf: File) -> Self {
        Self {
            path: path.to_owned(),
            elf: Arc::new(elf),
        }
    }

    /// The kernel in `image`, which is no file of the host's; `path` is what it is called. It is
    /// kept in `cache`, unpacked, under its hash.
    pub fn from_image(path: &Path, image: &[u8], cache: &Path) -> Result<Self, KernelError> {
        Self::unpack_as(&unpacked(image), path, image, cache)
    }

    fn unpack_as(name: &str, path: &Path, image: &[u8], cache: &Path) -> Result<Self, KernelError> {
        let elf = cache.join(name);
        if !elf.exists() {
            let failed = |e| KernelError::Cache(path.to_owned(), elf.clone(), e);
            if image.starts_with(ELF_MAGIC) {
                keep(&elf, image).map_err(failed)?;
            } else {
                keep(&elf, &unpack(path, image)?).map_err(failed)?;
            }
        }
        let file = File::open(&elf).map_err(|e| KernelError::Read(elf, e))?;
        Ok(Self::of(path, file))
    }

    /// Loads the kernel's segments into `memory`.
    pub fn load(&self, memory: &GuestMemoryMmap) -> Result<Loaded, KernelError> {
        // The loader seeks; nobody else reads.
        let file = self.elf.try_clone();
        let mut file = file.map_err(|error| KernelError::Read(self.path.clone(), error))?;
        let loaded = Elf::load(memory, None, &mut file, None)
            .map_err(|error| KernelError::Damaged(self.path.clone(), error.to_string()))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(KernelError::NoPvh(self.path.clone()));
        };
        Ok(Loaded {
            entry,
            end: GuestAddress(loaded.kernel_end),
        })
    }
}

/// A file and its first four bytes.
fn begin(path: &Path) -> std::io::Result<(File, [u8; 4])> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    Ok((file, magic))
}

/// What an image is called when it is unpacked.
fn unpacked(image: &[u8]) -> String {
    format!("vmlinux-{:.32}", hex(&Sha256::digest(image)))
}

/// What leads to the unpacked image of a file that is as it was; `None` while it may still change.
fn known(file: &Metadata) -> Option<String> {
    let changed = Duration::new(
        file.ctime().try_into().ok()?,
        file.ctime_nsec().try_into().ok()?,
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let is = format!(
        "{} {} {} {}.{} {changed:?}",
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec()
    );
    (changed + SETTLED < now).then(|| format!("of-{:.32}", hex(&Sha256::digest(is))))
}

/// Writes `data` as `path`, whole or not at all.
fn keep(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    File::create(&partial)?.write_all(data)?;
    std::fs::rename(&partial, path)
}

/// The ELF image that a bzImage's payload unpacks to.
fn unpack(path: &Path, image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let payload = payload(image).map_err(|reason| match reason {
        None => KernelError::Format(path.to_owned()),
        Some(reason) => KernelError::Damaged(path.to_owned(), reason.to_owned()),
    })?;
    let read = |reader: &mut dyn Read| {
        let mut elf = Vec::new();
        // A packed kernel ends with its length, which the unpacker may take for one more block:
        // what came before it is whole when the ELF image is.
        let result = reader.take(MAX_KERNEL).read_to_end(&mut elf);
        match result {
            Err(error) if !elf.starts_with(ELF_MAGIC) => {
                Err(KernelError::Damaged(path.to_owned(), error.to_string()))
            }
            _ => Ok(elf),
        }
    };
    let elf = match payload {
        [0x1f, 0x8b, ..] => read(&mut flate2::read::GzDecoder::new(Cursor::new(payload)))?,
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            // The last four bytes are the unpacked length (arch/x86/boot/compressed/mkpiggy.c).
            let whole = payload.len().saturating_sub(4);
            let frame = payload.get(..whole).unwrap_or_default();
            read(&mut lz4_flex::frame::FrameDecoder::new(Cursor::new(frame)))?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(Cursor::new(payload));
            read(&mut decoder.map_err(|e| KernelError::Damaged(path.to_owned(), e.to_string()))?)?
        }
        [0xfd, b'7', b'z', b'X', ..] => {
            let payload = Cursor::new(payload);
            read(&mut lzma_rust2::XzReader::new_mem_limit(
                payload,
                false,
                MAX_DICTIONARY_KIB,
            ))?
        }
        [0x5d, 0x00, 0x00, ..] => return Err(KernelError::Packing(path.to_owned(), "lzma")),
        [b'B', b'Z', b'h', ..] => return Err(KernelError::Packing(path.to_owned(), "bzip2")),
        _ => return Err(KernelError::Packing(path.to_owned(), "something unknown")),
    };
    if !elf.starts_with(ELF_MAGIC) {
        return Err(KernelError::Damaged(
            path.to_owned(),
            "its payload is no ELF image".to_owned(),
        ));
    }
    Ok(elf)
}

/// The packed kernel in a bzImage; `Err(None)` where the image is none.
fn payload(image: &[u8]) -> Result<&[u8], Option<&'static str>> {
    let field = |offset: usize| -> Option<usize> {
        let bytes = image.get(offset..offset + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206) != Some(SETUP_MAGIC) {
        return Err(None);
    }
    let setup_sectors = match image.get(0x1f1) {
        None | Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let (Some(offset), Some(len)) = (field(0x248), field(0x24c)) else {
        return Err(Some("its setup header is cut short"));
    };
    let start = (setup_sectors + 1) * 512 + offset;
    image
        .get(start..start.saturating_add(len))
        .ok_or(Some("its payload goes past its end"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    /// A bzImage with one setup sector whose payload is `payload`.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(SETUP_MAGIC);
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn content(kernel: &Kernel) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&*kernel.elf).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_bz_image_is_unpacked_once_and_kept_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        std::fs::write(&path, bz_image(&gzip(b"\x7fELF and so on"))).unwrap();
        let cache = directory.path().join("cache");
        let kernel = Kernel::open(&path, &cache).unwrap();
        assert_eq!(content(&kernel), b"\x7fELF and so on");
        let inode = |kernel: &Kernel| kernel.elf.metadata().unwrap().ino();
        let again = Kernel::open(&path, &cache).unwrap();
        assert_eq!(inode(&again), inode(&kernel));
        let entries = std::fs::read_dir(&cache)
            .unwrap()
            .map(|e| e.unwrap().path());
        let unpacked = entries.filter(|path| !path.is_symlink());
        assert_eq!(unpacked.count(), 1);
    }

    #[test]
    fn a_file_is_read_again_only_where_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, cache) = (
            directory.path().join("vmlinuz"),
            directory.path().join("cache"),
        );
        let open = || content(&Kernel::open(&path, &cache).unwrap());
        let write = |text: &[u8]| {
            std::fs::write(&path, bz_image(&gzip(text))).unwrap();
            std::thread::sleep(2 * SETTLED);
        };
        write(b"\x7fELF one");
        assert_eq!(open(), b"\x7fELF one");
        let unpacked = cache.join(unpacked(&std::fs::read(&path).unwrap()));
        std::fs::write(&unpacked, b"\x7fELF known").unwrap();
        assert_eq!(open(), b"\x7fELF known");
        write(b"\x7fELF two");
        assert_eq!(open(), b"\x7fELF two");
        // Somebody has tidied the cache.
        std::fs::remove_dir_all(&cache).unwrap();
        assert_eq!(open(), b"\x7fELF two");
    }

    #[test]
    fn a_payload_is_unpacked_whatever_the_kernel_s_build_packed_it_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name| directory.path().join(name);
        let elf: Vec<u8> = (0..300_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let elf = [ELF_MAGIC, &elf].concat();
        std::fs::write(file("elf"), &elf).unwrap();
        // As scripts/Makefile.lib calls them; the length follows.
        for command in [
            "gzip -n -9 -c",
            "xz --check=crc32 --x86 --lzma2=dict=128MiB -c",
            "zstd -q --ultra -22 -c",
            "lz4 -q -l -9 -c",
        ] {
            let script = format!("cat elf | {command} >packed");
            let mut shell = std::process::Command::new("sh");
            let status = shell.args(["-c", &script]).current_dir(&directory).status();
            assert!(status.unwrap().success(), "{command}");
            let mut payload = std::fs::read(file("packed")).unwrap();
            payload.extend_from_slice(&(elf.len() as u32).to_le_bytes());
            std::fs::write(file("vmlinuz"), bz_image(&payload)).unwrap();
            let kernel = Kernel::open(&file("vmlinuz"), &file("cache")).unwrap();
            assert!(content(&kernel) == elf, "{command}");
        }
    }

    #[test]
    fn each_kind_of_bad_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        let mut cut = bz_image(&gzip(b"\x7fELF"));
        cut.truncate(1030);
        for (content, expected) in [
            (vec![0; 2048], "neither a bzImage nor an ELF image"),
            (cut, "its payload goes past its end"),
            (bz_image(b"\x28\xb5\x2f\xfd"), "truncated or damaged"),
            (bz_image(b"\xfd7zXZ\0"), "truncated or damaged"),
            (bz_image(b"BZh9"), "packed with bzip2"),
            (bz_image(&gzip(b"no kernel")), "no ELF image"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Kernel::open(&path, directory.path())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("vmlinuz") && error.contains(expected),
                "{error}"
            );
        }
        let missing = Kernel::open(Path::new("/nowhere"), directory.path()).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("kernel /nowhere: No such file"),
            "{missing}"
        );
    }

    proptest! {
        #[test]
        fn no_image_makes_the_reader_panic(mut image in prop::collection::vec(any::<u8>(), 0..4096)) {
            if let Some(magic) = image.get_mut(0x202..0x206) {
                magic.copy_from_slice(SETUP_MAGIC);
            }
            let _ = unpack(Path::new("x"), &image);
        }
    }
}
