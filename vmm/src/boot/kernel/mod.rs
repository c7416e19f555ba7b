//! Kernel images: a bzImage is unpacked to the ELF image in it, which is entered through PVH (Xen's
//! `hvm_start_info` boot protocol) where the kernel has that entry, and by Linux's 64-bit boot
//! protocol where it has not. So is a bzImage that is to unpack itself, or has to.
//!
//! Sources: Documentation/arch/x86/boot.rst, xen/include/public/arch-x86/hvm/start_info.h, the
//! ELF-64 specification.

mod packed;

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use linux_loader::loader::bootparam::{XLF_CAN_BE_LOADED_ABOVE_4G, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{self, Elf, KernelLoader, elf::PvhBootCapability};
use sha2::{Digest, Sha256};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::hex::hex;
use crate::sparse;
use packed::Packed;

/// No kernel is larger than this, packed or not.
const MAX_KERNEL: u64 = 512 << 20;
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// A file that was changed since then could be changed again, and its times not tell: they are those of
/// the kernel's last tick.
const SETTLED: Duration = Duration::from_millis(20);
/// So much of zeros is a hole in an unpacked kernel, in bytes; smaller ones would tear it to pieces.
const HOLE: usize = 64 << 10;
/// Where the protocol's 64-bit entry lies behind the start of the code.
const ENTRY_64: u64 = 0x200;

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
    /// Packed in a way that is not read here, and of no 64 bits.
    #[error(
        "kernel {0}: its payload is packed with {1}, which is not read here, and it has no 64-bit \
         entry to unpack itself from; give its vmlinux"
    )]
    Packing(PathBuf, &'static str),
    /// What cannot choose its own place.
    #[error(
        "kernel {0}: --kaslr needs a bzImage with a 64-bit entry, which unpacks itself where it \
         likes; leave it out, or give one"
    )]
    Kaslr(PathBuf),
    /// It has no room to unpack itself.
    #[error(
        "kernel {0}: it needs {1} bytes to unpack itself, for which the guest's memory is too small"
    )]
    Room(PathBuf, u32),
    /// A file that is no firmware.
    #[error(
        "firmware {0}: no ELF image; what starts here is CLOUDHV.fd, as Debian's package cloudhv-efi-x86-64 has it"
    )]
    NoFirmware(PathBuf),
    /// No PVH entry point.
    #[error("firmware {0}: it has no PVH entry, which is needed to start it")]
    NoPvh(PathBuf),
    /// The unpacked kernel cannot be kept.
    #[error("kernel {0}: cannot keep the unpacked image as {1}: {2}")]
    Cache(PathBuf, PathBuf, std::io::Error),
}

/// A kernel on the host, ready to be loaded; its file stays open, so that a machine which starts
/// anew is given the same.
#[derive(Debug, Clone)]
pub struct Kernel {
    path: PathBuf,
    file: Arc<File>,
    form: Form,
}

/// What the file is.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// A kernel that needs no unpacking.
    Elf,
    /// The same of something that does not know Linux's boot protocol.
    Firmware,
    /// What unpacks itself.
    BzImage(setup_header),
}

/// Who unpacks a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpacked {
    /// The host, once, where it can: the guest starts sooner, and always at the same address.
    Here,
    /// The kernel itself, which chooses an address (KASLR).
    ByItself,
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Where it begins.
    pub entry: Entry,
    /// The first address behind the kernel, and behind what it unpacks itself to.
    pub end: GuestAddress,
    /// The first address that no initramfs may reach.
    pub initramfs_end: u64,
}

/// Where a kernel is entered, and by which protocol.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// PVH.
    Pvh(GuestAddress),
    /// Linux's 64-bit boot protocol, and the kernel's own header, which only a bzImage has.
    Linux64(GuestAddress, Option<setup_header>),
}

impl Kernel {
    /// Reads the kernel at `path`. A bzImage is unpacked once, into `cache`, under its content's
    /// hash; while the file stays as it is, it is not read again.
    pub fn open(path: &Path, cache: &Path, by: Unpacked) -> Result<Self, KernelError> {
        let failed = |error| KernelError::Read(path.to_owned(), error);
        let (file, magic) = begin(path).map_err(failed)?;
        let rest = |most| {
            let mut image = magic.to_vec();
            let read = (&file).take(most).read_to_end(&mut image);
            read.map(|_| image).map_err(failed)
        };
        if by == Unpacked::ByItself {
            let begins = rest(packed::PREFIX)?;
            let why = KernelError::Kaslr(path.to_owned());
            return Self::by_itself(path, &begins, why, || Ok(file));
        }
        if magic == ELF_MAGIC {
            return Ok(Self::of(path, file, Form::Elf));
        }
        let known = known(&file.metadata().map_err(failed)?);
        let known = known.map(|name| cache.join(name));
        if let Some(elf) = known.as_ref().and_then(|known| File::open(known).ok()) {
            return Ok(Self::of(path, elf, Form::Elf));
        }
        let image = rest(MAX_KERNEL)?;
        let name = unpacked(&image);
        let elf = match unpack_as(&name, path, &image, cache) {
            Err(why @ KernelError::Packing(..)) => {
                return Self::by_itself(path, &image, why, || Ok(file));
            }
            elf => elf?,
        };
        if let Some(known) = known {
            // Where this fails it is read the next time too.
            let _ = std::fs::remove_file(&known);
            let _ = symlink(name, known);
        }
        Ok(Self::of(path, elf, Form::Elf))
    }

    /// Firmware that is entered as a kernel is: an ELF image, which needs no unpacking.
    pub fn firmware(path: &Path) -> Result<Self, KernelError> {
        let (file, magic) =
            begin(path).map_err(|error| KernelError::Read(path.to_owned(), error))?;
        match magic == ELF_MAGIC {
            true => Ok(Self::of(path, file, Form::Firmware)),
            false => Err(KernelError::NoFirmware(path.to_owned())),
        }
    }

    /// The kernel in `image`, which is no file of the host's; `path` is what it is called. It is
    /// kept in `cache` under its hash, and unpacked unless it does that by itself.
    pub fn from_image(
        path: &Path,
        image: &[u8],
        cache: &Path,
        by: Unpacked,
    ) -> Result<Self, KernelError> {
        let as_it_is = || {
            let name = format!("bzimage-{}", hash(image));
            keep(&cache.join(name), path, || Ok(image.into()))
        };
        if by == Unpacked::ByItself {
            let why = KernelError::Kaslr(path.to_owned());
            return Self::by_itself(path, image, why, as_it_is);
        }
        match unpack_as(&unpacked(image), path, image, cache) {
            Err(why @ KernelError::Packing(..)) => Self::by_itself(path, image, why, as_it_is),
            elf => Ok(Self::of(path, elf?, Form::Elf)),
        }
    }

    /// The bzImage in `file`, which begins so, to be entered as it is; where it cannot be, `why` it
    /// would have had to.
    fn by_itself(
        path: &Path,
        begins: &[u8],
        why: KernelError,
        file: impl FnOnce() -> Result<File, KernelError>,
    ) -> Result<Self, KernelError> {
        let header = packed::header(begins).filter(packed::has_64_bit_entry);
        let header = header.ok_or(why)?;
        Ok(Self::of(path, file()?, Form::BzImage(header)))
    }

    fn of(path: &Path, file: File, form: Form) -> Self {
        Self {
            path: path.to_owned(),
            file: Arc::new(file),
            form,
        }
    }

    /// Loads the kernel into `memory`, which is fresh.
    pub fn load(&self, memory: &GuestMemoryMmap) -> Result<Loaded, KernelError> {
        let failed = |error| KernelError::Read(self.path.clone(), error);
        // The loader seeks; nobody else reads.
        let mut file = self.file.try_clone().map_err(failed)?;
        let damaged =
            |error: loader::Error| KernelError::Damaged(self.path.clone(), error.to_string());
        if let Form::BzImage(header) = self.form {
            let start = GuestAddress(header.pref_address);
            let end = self.room(memory, &header)?;
            BzImage::load(memory, Some(start), &mut file, None).map_err(damaged)?;
            let anywhere = header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
            return Ok(Loaded {
                entry: Entry::Linux64(GuestAddress(start.0 + ENTRY_64), Some(header)),
                end,
                initramfs_end: match anywhere {
                    true => u64::MAX,
                    false => u64::from(header.initrd_addr_max) + 1,
                },
            });
        }
        // The machine is new, and so is its memory.
        let loaded = Elf::load(memory, None, &mut sparse::ToFresh(file), None);
        let loaded = loaded.map_err(damaged)?;
        let entry = match (loaded.pvh_boot_cap, self.form) {
            (PvhBootCapability::PvhEntryPresent(entry), _) => Entry::Pvh(entry),
            (_, Form::Firmware) => return Err(KernelError::NoPvh(self.path.clone())),
            _ => Entry::Linux64(loaded.kernel_load, None),
        };
        Ok(Loaded {
            entry,
            end: GuestAddress(loaded.kernel_end),
            initramfs_end: u64::MAX,
        })
    }

    /// The end of what a bzImage needs to unpack itself, which is in `memory`.
    fn room(
        &self,
        memory: &GuestMemoryMmap,
        header: &setup_header,
    ) -> Result<GuestAddress, KernelError> {
        let (start, len) = (header.pref_address, header.init_size);
        let fits = memory.check_range(GuestAddress(start), len as usize);
        match start.checked_add(len.into()).filter(|_| fits) {
            Some(end) => Ok(GuestAddress(end)),
            None => Err(KernelError::Room(self.path.clone(), len)),
        }
    }
}

/// A file and its first four bytes.
fn begin(path: &Path) -> std::io::Result<(File, [u8; 4])> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    Ok((file, magic))
}

fn hash(content: &[u8]) -> String {
    format!("{:.32}", hex(&Sha256::digest(content)))
}

/// What an image is called when it is unpacked.
fn unpacked(image: &[u8]) -> String {
    format!("vmlinux-{}", hash(image))
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
    (changed + SETTLED < now).then(|| format!("of-{}", hash(is.as_bytes())))
}

/// The ELF image in `image`, which `path` has, from `cache`, where it is called `name`.
fn unpack_as(name: &str, path: &Path, image: &[u8], cache: &Path) -> Result<File, KernelError> {
    keep(&cache.join(name), path, || {
        if image.starts_with(ELF_MAGIC) {
            return Ok(image.into());
        }
        let named = path.to_owned();
        packed::unpack(image)
            .map(Cow::Owned)
            .map_err(|why| match why {
                Packed::No => KernelError::Format(named),
                Packed::Damaged(how) => KernelError::Damaged(named, how),
                Packed::By(packer) => KernelError::Packing(named, packer),
            })
    })
}

/// The file `kept`; where there is none it is made first, whole or not at all. It is of the kernel
/// at `path`.
fn keep<'a>(
    kept: &Path,
    path: &Path,
    content: impl FnOnce() -> Result<Cow<'a, [u8]>, KernelError>,
) -> Result<File, KernelError> {
    if !kept.exists() {
        let content = content()?;
        let write = || {
            std::fs::create_dir_all(kept.parent().unwrap_or(Path::new(".")))?;
            let partial = kept.with_extension(format!("partial-{}", std::process::id()));
            sparse::write(&File::create(&partial)?, &content, HOLE)?;
            std::fs::rename(&partial, kept)
        };
        write().map_err(|error| KernelError::Cache(path.to_owned(), kept.to_owned(), error))?;
    }
    File::open(kept).map_err(|error| KernelError::Read(kept.to_owned(), error))
}

#[cfg(test)]
mod tests;
