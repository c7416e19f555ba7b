//! Container disks in a pod: the images are there as volumes, and nothing has to be unpacked.
//!
//! Below one directory (KubeVirt's `container-disks`) is either the image itself, an image volume
//! mounted under the volume's name; or only its disk, which KubeVirt's virt-handler mounts as
//! `disk_<index>.img`; or the socket of the image's own container, `<volume>.sock`, by which that hands
//! its files over.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::handed;
use crate::kubevirt::{HANDED, KERNEL_BOOT};

/// Where KubeVirt's images have their disk.
const DISK: &str = "disk";

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is nowhere.
    #[error("looked for {0}")]
    Missing(String),
    /// Which of several?
    #[error("{0} has {1} files; say which by `path`")]
    Several(PathBuf, usize),
    /// A path that leads out of the image.
    #[error("`{0}` is no path in the image")]
    Path(String),
    /// A directory or a file cannot be read, or a socket asked.
    #[error("{0}: {1}")]
    Read(PathBuf, io::Error),
    /// The image's own container has no such file.
    #[error("{0}: {1}")]
    Refused(PathBuf, String),
}

/// The disk of a volume, by its name and its index among the manifest's volumes: the file at `path`
/// in its image, or the only one in its /disk.
pub fn disk(below: &Path, volume: (&str, usize), path: Option<&str>) -> Result<PathBuf, Error> {
    let image = inside(below, volume.0)?;
    let alone = below.join(format!("disk_{}.img", volume.1));
    let socket = below.join(format!("{}{HANDED}", volume.0));
    if image.is_dir() {
        in_image(&image, path)
    } else if alone.exists() {
        Ok(alone)
    } else if socket.exists() {
        handed::ask(&socket, path)
    } else {
        Err(missing(&[&image, &alone, &socket]))
    }
}

/// A file of an image that is at `image`: the one at `path`, or the only one in its /disk.
pub fn in_image(image: &Path, path: Option<&str>) -> Result<PathBuf, Error> {
    let Some(path) = path else {
        return only(&image.join(DISK));
    };
    let file = inside(image, path.trim_start_matches('/'))?;
    match file.exists() {
        true => Ok(file),
        false => Err(missing(&[&file])),
    }
}

/// A file of the image that `firmware.kernelBoot` names.
pub fn kernel(below: &Path, path: &str) -> Result<PathBuf, Error> {
    let image = below.join(KERNEL_BOOT);
    let whole = inside(&image, path.trim_start_matches('/'))?;
    // virt-handler mounts just the files.
    let alone = image.join(whole.file_name().unwrap_or_default());
    let socket = below.join(format!("{KERNEL_BOOT}{HANDED}"));
    match [&whole, &alone].into_iter().find(|file| file.is_file()) {
        Some(file) => Ok(file.clone()),
        None if socket.exists() => handed::ask(&socket, Some(path)),
        None => Err(missing(&[&whole, &alone, &socket])),
    }
}

/// `path` below `folder`; it must not lead elsewhere by its words.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, Error> {
    let plain = |part| matches!(part, Component::Normal(_));
    if path.is_empty() || !Path::new(path).components().all(plain) {
        return Err(Error::Path(path.escape_debug().to_string()));
    }
    Ok(folder.join(path))
}

fn only(folder: &Path) -> Result<PathBuf, Error> {
    let failed = |error| Error::Read(folder.to_owned(), error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    match &files[..] {
        [file] => Ok(file.clone()),
        [] => Err(missing(&[folder])),
        several => Err(Error::Several(folder.to_owned(), several.len())),
    }
}

fn missing(looked: &[&Path]) -> Error {
    let looked: Vec<_> = looked
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Error::Missing(looked.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_in_its_image_or_was_handed_in_by_virt_handler() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path();
        let say = |path| disk(below, ("root", 0), path).map_err(|error| error.to_string());
        assert!(say(None).unwrap_err().contains("disk_0.img, "));
        fs::write(below.join("disk_0.img"), "").unwrap();
        assert_eq!(say(None).unwrap(), below.join("disk_0.img"));
        fs::create_dir_all(below.join("root/disk")).unwrap();
        assert!(say(None).unwrap_err().starts_with("looked for "));
        fs::write(below.join("root/disk/a.qcow2"), "").unwrap();
        assert_eq!(say(None).unwrap(), below.join("root/disk/a.qcow2"));
        fs::write(below.join("root/disk/b.qcow2"), "").unwrap();
        assert!(say(None).unwrap_err().contains("has 2 files"));
        assert_eq!(
            say(Some("/disk/b.qcow2")).unwrap(),
            below.join("root/disk/b.qcow2")
        );
        for path in ["../x", "disk/../../x", "", "/"] {
            assert!(
                say(Some(path))
                    .unwrap_err()
                    .contains("no path in the image"),
                "{path}"
            );
        }
        assert!(disk(below, ("../root", 0), None).is_err());
    }

    #[test]
    fn a_kernel_is_in_its_image_or_alone() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path();
        fs::create_dir_all(below.join("kernel-boot/boot")).unwrap();
        assert!(kernel(below, "/boot/vmlinuz").is_err());
        fs::write(below.join("kernel-boot/vmlinuz"), "").unwrap();
        assert_eq!(
            kernel(below, "/boot/vmlinuz").unwrap(),
            below.join("kernel-boot/vmlinuz")
        );
        fs::write(below.join("kernel-boot/boot/vmlinuz"), "").unwrap();
        assert!(
            kernel(below, "/boot/vmlinuz")
                .unwrap()
                .ends_with("boot/vmlinuz")
        );
    }
}
