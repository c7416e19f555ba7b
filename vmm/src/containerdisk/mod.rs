//! `containerDisk`: a disk image in a container image (KubeVirt's docs/container-disk), read from
//! an OCI image layout, as a directory or an archive. Nothing is pulled.
//!
//! The disk is unpacked once, sparse, into a cache under its layer's digest; the cached file is a
//! read-only base for any number of machines.

mod layer;
mod layout;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use layout::Layout;

/// Why a disk could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is at the place where the reference leads.
    #[error("image `{image}` is not here: looked for {looked}; `make images` builds it")]
    Missing {
        /// The reference.
        image: String,
        /// The paths tried.
        looked: String,
    },
    /// The image is not as OCI says, or not as KubeVirt wants it.
    #[error("image {path}: {why}")]
    Bad {
        /// The layout or archive.
        path: PathBuf,
        /// One sentence.
        why: String,
    },
    /// The system failed.
    #[error("image {path}: {source}")]
    Io {
        /// The layout or archive.
        path: PathBuf,
        /// Said by the system.
        source: io::Error,
    },
}

/// Why, before it is known of which file.
enum Fault {
    Bad(String),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        // A short or malformed stream is the image's fault, not the system's.
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Bad("truncated".to_owned()),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Self::Bad(e.to_string()),
            _ => Self::Io(e),
        }
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Bad(why.into()))
}

/// The path of the file at `disk` in `image`, or of the one in its /disk, unpacked into `cache` if it was not yet. `images` holds
/// what references lead to, at `containerdisks/<reference with / and : as _>[.tar]`.
pub fn unpack(
    image: &str,
    disk: Option<&str>,
    images: &Path,
    cache: &Path,
) -> Result<PathBuf, Error> {
    let path = locate(image, images)?;
    let unpacked = Layout::open(&path).and_then(|layout| unpack_from(&layout, disk, cache));
    unpacked.map_err(|fault| match fault {
        Fault::Bad(why) => Error::Bad { path, why },
        Fault::Io(source) => Error::Io { path, source },
    })
}

fn locate(image: &str, images: &Path) -> Result<PathBuf, Error> {
    let explicit = image
        .strip_prefix("oci-archive:")
        .or_else(|| image.strip_prefix("oci:"));
    let explicit = explicit.or_else(|| {
        ["/", "./", "../"]
            .iter()
            .any(|start| image.starts_with(start))
            .then_some(image)
    });
    let candidates = match explicit {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let name = image.replace(['/', ':', '@'], "_");
            let base = images.join("containerdisks");
            vec![base.join(format!("{name}.tar")), base.join(name)]
        }
    };
    candidates
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or_else(|| {
            let looked: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            Error::Missing {
                image: image.to_owned(),
                looked: looked.join(" and "),
            }
        })
}

fn unpack_from(layout: &Layout, disk: Option<&str>, cache: &Path) -> Result<PathBuf, Fault> {
    let layers = layout.layers()?;
    let key: Vec<&str> = layers.iter().map(|l| l.digest.hex()).collect();
    // One layer is the rule (FROM scratch, ADD disk); several make a key of all.
    let key =
        layout::Digest::of(format!("{} {}", key.join(" "), disk.unwrap_or("/disk/")).as_bytes());
    let target = cache.join(format!("{}.disk", key.hex()));
    if target.exists() {
        return Ok(target);
    }
    fs::create_dir_all(cache)?;
    let found = layer::find(layout, &layers, disk)?;
    let partial = cache.join(format!(".{}.partial", key.hex()));
    let mut file = lock(&partial)?;
    if target.exists() {
        // Somebody else made it while this waited.
        fs::remove_file(&partial)?;
        return Ok(target);
    }
    file.set_len(0)?;
    let done = layer::extract(layout, &found, &mut file).and_then(|()| {
        // Whole and read-only before it has its name.
        let mut permissions = file.metadata()?.permissions();
        permissions.set_readonly(true);
        file.set_permissions(permissions)?;
        Ok(fs::rename(&partial, &target)?)
    });
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done.map(|()| target)
}

/// Opens the file that a disk is unpacked into, for this process alone. One that was cut off
/// amid it has left the file, but not the lock.
fn lock(partial: &Path) -> io::Result<File> {
    loop {
        let mut options = File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial)?;
        file.lock()?;
        // Whoever had the lock before may have given the file its name, or removed it.
        let same = fs::metadata(partial)
            .is_ok_and(|named| file.metadata().is_ok_and(|held| held.ino() == named.ino()));
        if same {
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests;
