//! The NoCloud seed: a small vfat image labelled `cidata`, which cloud-init and our agent both
//! look for (cloud-init, DataSourceNoCloud).

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// A quarter for the file system's own tables; rounded up to whole MiB.
const GRAIN: usize = 1 << 20;
/// Far above what a manifest may hold (1 MiB).
const MAX_CONTENT: usize = 16 << 20;

/// Builds the image.
pub fn image(
    instance_id: &str,
    hostname: &str,
    user_data: &[u8],
    network_data: Option<&[u8]>,
) -> io::Result<Vec<u8>> {
    let meta = serde_json::json!({ "instance-id": instance_id, "local-hostname": hostname });
    let meta = meta.to_string();
    let mut files = vec![("user-data", user_data), ("meta-data", meta.as_bytes())];
    files.extend(network_data.map(|data| ("network-config", data)));
    let content: usize = files.iter().map(|(_, data)| data.len()).sum();
    if content > MAX_CONTENT {
        return Err(io::Error::other(format!(
            "cloud-init data of {content} bytes is too large"
        )));
    }
    let size = (content + content / 4 + GRAIN).next_multiple_of(GRAIN);
    let mut disk = Cursor::new(vec![0u8; size]);
    // The serial number is of no use to anybody; fixed, it keeps images comparable.
    let options = FormatVolumeOptions::new()
        .volume_label(*b"cidata     ")
        .volume_id(0x7065_6170);
    format_volume(&mut disk, options)?;
    {
        let fs = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, data) in files {
            let mut file = fs.root_dir().create_file(name)?;
            file.write_all(data)?;
        }
        fs.unmount()?;
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(image: &[u8], name: &str) -> io::Result<Vec<u8>> {
        let fs = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new())?;
        let mut data = Vec::new();
        fs.root_dir().open_file(name)?.read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn what_is_put_in_is_read_back() {
        let image = image("id-1", "details", b"#!/bin/sh\n", Some(b"version: 2\n")).unwrap();
        let fs = FileSystem::new(Cursor::new(image.clone()), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label().trim_end(), "cidata");
        assert_eq!(read(&image, "user-data").unwrap(), b"#!/bin/sh\n");
        assert_eq!(read(&image, "network-config").unwrap(), b"version: 2\n");
        let meta: serde_json::Value =
            serde_json::from_slice(&read(&image, "meta-data").unwrap()).unwrap();
        assert_eq!(meta["instance-id"], "id-1");
        assert_eq!(meta["local-hostname"], "details");
    }

    #[test]
    fn without_network_data_there_is_no_network_config() {
        let image = image("i", "h", b"", None).unwrap();
        assert_eq!(image.len() % 512, 0);
        assert!(read(&image, "network-config").is_err());
    }

    #[test]
    fn large_user_data_fit_and_absurd_ones_are_refused() {
        let data = vec![b'x'; 3 << 20];
        let image = image("i", "h", &data, None).unwrap();
        assert_eq!(read(&image, "user-data").unwrap(), data);
        assert!(super::image("i", "h", &vec![0; MAX_CONTENT + 1], None).is_err());
    }

    #[test]
    fn fsck_finds_nothing_to_repair() {
        let Ok(image) = image("i", "h", b"#cloud-config\n", None) else {
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
