//! cloud-init's seed: a small vfat image that cloud-init and our agent both look for. NoCloud's is
//! labelled `cidata` (cloud-init, DataSourceNoCloud), OpenStack's config drive `config-2`
//! (DataSourceConfigDrive).

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::json;

use crate::vmi::SeedForm;

/// A quarter for the file system's own tables; rounded up to whole MiB.
const GRAIN: usize = 1 << 20;
/// Far above what a manifest may hold (1 MiB).
const MAX_CONTENT: usize = 16 << 20;

/// Builds the image.
pub fn image(
    form: SeedForm,
    instance_id: &str,
    hostname: &str,
    user_data: &[u8],
    network_data: Option<&[u8]>,
) -> io::Result<Vec<u8>> {
    let (label, folder, [user, meta, network], meta_data) = match form {
        SeedForm::NoCloud => (
            *b"cidata     ",
            None,
            ["user-data", "meta-data", "network-config"],
            json!({ "instance-id": instance_id, "local-hostname": hostname }),
        ),
        SeedForm::ConfigDrive => (
            *b"config-2   ",
            Some("openstack/latest"),
            ["user_data", "meta_data.json", "network_data.json"],
            json!({ "uuid": instance_id, "hostname": hostname }),
        ),
    };
    let meta_data = meta_data.to_string();
    let mut files = vec![(user, user_data), (meta, meta_data.as_bytes())];
    files.extend(network_data.map(|data| (network, data)));
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
        .volume_label(label)
        .volume_id(0x7065_6170);
    format_volume(&mut disk, options)?;
    {
        let fs = FileSystem::new(&mut disk, FsOptions::new())?;
        {
            let mut place = fs.root_dir();
            for name in folder.into_iter().flat_map(|path: &str| path.split('/')) {
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
mod tests {
    use std::io::Read;

    use super::SeedForm::{ConfigDrive, NoCloud};
    use super::*;

    fn read(image: &[u8], name: &str) -> io::Result<Vec<u8>> {
        let fs = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new())?;
        let mut data = Vec::new();
        fs.root_dir().open_file(name)?.read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn what_is_put_in_is_read_back() {
        let image = image(
            NoCloud,
            "id-1",
            "details",
            b"#!/bin/sh\n",
            Some(b"version: 2\n"),
        )
        .unwrap();
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
    fn a_config_drive_has_openstack_s_names() {
        let image = image(ConfigDrive, "id-1", "details", b"#!/bin/sh\n", Some(b"{}")).unwrap();
        let fs = FileSystem::new(Cursor::new(image.clone()), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label().trim_end(), "config-2");
        let file = |name: &str| read(&image, &format!("openstack/latest/{name}")).unwrap();
        assert_eq!(file("user_data"), b"#!/bin/sh\n");
        assert_eq!(file("network_data.json"), b"{}");
        let meta: serde_json::Value = serde_json::from_slice(&file("meta_data.json")).unwrap();
        assert_eq!(meta, json!({"uuid": "id-1", "hostname": "details"}));
    }

    #[test]
    fn without_network_data_there_is_no_network_config() {
        let image = image(NoCloud, "i", "h", b"", None).unwrap();
        assert_eq!(image.len() % 512, 0);
        assert!(read(&image, "network-config").is_err());
    }

    #[test]
    fn large_user_data_fit_and_absurd_ones_are_refused() {
        let data = vec![b'x'; 3 << 20];
        let image = image(NoCloud, "i", "h", &data, None).unwrap();
        assert_eq!(read(&image, "user-data").unwrap(), data);
        assert!(super::image(NoCloud, "i", "h", &vec![0; MAX_CONTENT + 1], None).is_err());
    }

    #[test]
    fn fsck_finds_nothing_to_repair() {
        let Ok(image) = image(NoCloud, "i", "h", b"#cloud-config\n", None) else {
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
