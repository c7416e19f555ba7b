//! A small vfat image, made in memory: what Linux and cloud-init mount without a word of ours.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// A quarter for the file system's own tables; rounded up to this, which is less than a huge page: an
/// image that is mostly zeros is not to take one.
const GRAIN: usize = 256 << 10;
/// Far above what a manifest may hold (1 MiB).
const MAX_CONTENT: usize = 16 << 20;
/// Entries of a sector.
const ENTRIES: usize = 16;
const LEAST_ENTRIES: usize = 512;
/// The largest that a disk of this size has.
const CLUSTER: usize = 8192;
/// Bytes of a label.
const LABEL: usize = 11;

/// Builds an image with this label, of which 11 bytes count, and these files in a folder of it.
pub fn image<'a>(
    label: &str,
    folder: &str,
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> io::Result<Vec<u8>> {
    let files: Vec<_> = files.into_iter().collect();
    let content: usize = files.iter().map(|(_, data)| data.len()).sum();
    if content > MAX_CONTENT {
        return Err(io::Error::other(format!(
            "{content} bytes are too many for a disk of files"
        )));
    }
    // A name takes an entry for every 13 characters and one besides; so does the label.
    let entries: usize = files.iter().map(|(name, _)| name.len() / 13 + 2).sum();
    let entries = (entries + 1).next_multiple_of(ENTRIES).max(LEAST_ENTRIES);
    let entries = u16::try_from(entries).map_err(io::Error::other)?;
    // A file takes a cluster at least.
    let slack = files.len() * CLUSTER + usize::from(entries) * 32;
    let size = (content + content / 4 + slack + GRAIN).next_multiple_of(GRAIN);
    let mut disk = Cursor::new(vec![0u8; size]);
    let mut padded = [b' '; LABEL];
    for (to, from) in padded.iter_mut().zip(label.bytes()) {
        *to = from;
    }
    // The serial number is of no use to anybody; fixed, it keeps images comparable.
    let options = FormatVolumeOptions::new()
        .volume_label(padded)
        .volume_id(0x7065_6170)
        .max_root_dir_entries(entries);
    format_volume(&mut disk, options)?;
    {
        let fs = FileSystem::new(&mut disk, FsOptions::new())?;
        {
            let mut place = fs.root_dir();
            for name in folder.split('/').filter(|name| !name.is_empty()) {
                place = place.create_dir(name)?;
            }
            for (name, data) in files {
                place.create_file(name)?.write_all(data)?;
            }
        }
        fs.unmount()?;
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;

    /// What an image has in a file.
    pub(crate) fn read(image: &[u8], name: &str) -> io::Result<Vec<u8>> {
        let fs = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new())?;
        let mut data = Vec::new();
        fs.root_dir().open_file(name)?.read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn large_and_many_files_fit_and_absurd_ones_are_refused() {
        let data = vec![b'x'; 3 << 20];
        let large = image("a", "", [("big", &data[..])]).unwrap();
        assert_eq!(read(&large, "big").unwrap(), data);
        let names: Vec<String> = (0..500)
            .map(|n| format!("a-longer-name-than-dos-has.{n}"))
            .collect();
        let many = image("a", "", names.iter().map(|name| (&**name, &b"y"[..]))).unwrap();
        assert_eq!(read(&many, &names[499]).unwrap(), b"y");
        let absurd = vec![0; MAX_CONTENT + 1];
        assert!(image("a", "", [("big", &absurd[..])]).is_err());
        assert!(image("a", "", [("a", &b""[..]), ("../b", b"")]).is_err());
    }

    #[test]
    fn fsck_finds_nothing_to_repair() {
        let Ok(image) = image("cidata", "", [("user-data", &b"#cloud-config\n"[..])]) else {
            panic!("no image")
        };
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        for tool in ["/usr/sbin/fsck.vfat", "/sbin/fsck.vfat"] {
            if let Ok(out) = std::process::Command::new(tool)
                .arg("-n")
                .arg(file.path())
                .output()
            {
                assert!(
                    out.status.success(),
                    "{}",
                    String::from_utf8_lossy(&out.stdout)
                );
                return;
            }
        }
    }
}
