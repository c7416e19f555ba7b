//! cloud-init's seed: a small vfat image that cloud-init and our agent both look for. NoCloud's is
//! labelled `cidata` (cloud-init, DataSourceNoCloud), OpenStack's config drive `config-2`
//! (DataSourceConfigDrive).

use std::io;

use serde_json::{Map, json};

use crate::vfat;
use crate::vmi::SeedForm;

/// NoCloud's names.
const NO_CLOUD: [&str; 3] = ["user-data", "meta-data", "network-config"];

/// Whose seed it is.
#[derive(Debug)]
pub struct Instance<'a> {
    /// What tells it from others.
    pub id: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Public keys of SSH.
    pub keys: Vec<String>,
}

/// Builds the image.
pub fn image(
    form: SeedForm,
    machine: &Instance<'_>,
    user_data: &[u8],
    network_data: Option<&[u8]>,
) -> io::Result<Vec<u8>> {
    let (label, folder, names) = match form {
        SeedForm::NoCloud => ("cidata", "", NO_CLOUD),
        SeedForm::ConfigDrive => (
            "config-2",
            "openstack/latest",
            ["user_data", "meta_data.json", "network_data.json"],
        ),
    };
    let meta_data = meta_data(form, machine);
    let files = named(names, user_data, meta_data.as_bytes(), network_data);
    vfat::image(label, folder, files)
}

/// NoCloud's files, for who hands them out without a disk.
pub fn files(
    machine: &Instance<'_>,
    user_data: &[u8],
    network_data: Option<&[u8]>,
) -> Vec<(&'static str, Vec<u8>)> {
    let meta_data = meta_data(SeedForm::NoCloud, machine);
    named(NO_CLOUD, user_data, meta_data.as_bytes(), network_data)
        .into_iter()
        .map(|(name, data)| (name, data.to_vec()))
        .collect()
}

fn named<'a>(
    [user, meta, network]: [&'static str; 3],
    user_data: &'a [u8],
    meta_data: &'a [u8],
    network_data: Option<&'a [u8]>,
) -> Vec<(&'static str, &'a [u8])> {
    let mut files = vec![(user, user_data), (meta, meta_data)];
    files.extend(network_data.map(|data| (network, data)));
    files
}

fn meta_data(form: SeedForm, machine: &Instance<'_>) -> String {
    let Instance { id, hostname, keys } = machine;
    let mut meta_data = match form {
        SeedForm::NoCloud => json!({ "instance-id": id, "local-hostname": hostname }),
        SeedForm::ConfigDrive => json!({ "uuid": id, "hostname": hostname }),
    };
    if let (false, Some(meta_data)) = (keys.is_empty(), meta_data.as_object_mut()) {
        let numbered = keys.iter().enumerate();
        let numbered: Map<_, _> = numbered
            .map(|(n, key)| (n.to_string(), json!(key)))
            .collect();
        // cloud-init reads the one name in either; OpenStack has the other.
        let name = match form {
            SeedForm::NoCloud => "public-keys",
            SeedForm::ConfigDrive => "public_keys",
        };
        meta_data.insert(name.to_owned(), numbered.into());
    }
    meta_data.to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fatfs::{FileSystem, FsOptions};

    use super::SeedForm::{ConfigDrive, NoCloud};
    use super::*;
    use crate::vfat::tests::read;

    fn instance(keys: &[&str]) -> Instance<'static> {
        Instance {
            id: "id-1",
            hostname: "details",
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        }
    }

    #[test]
    fn public_keys_are_in_the_meta_data_of_either_form() {
        for (form, file, name) in [
            (NoCloud, "meta-data", "public-keys"),
            (
                ConfigDrive,
                "openstack/latest/meta_data.json",
                "public_keys",
            ),
        ] {
            let image = image(form, &instance(&["ssh-rsa A", "ssh-rsa B"]), b"", None).unwrap();
            let meta: serde_json::Value =
                serde_json::from_slice(&read(&image, file).unwrap()).unwrap();
            assert_eq!(meta[name], json!({"0": "ssh-rsa A", "1": "ssh-rsa B"}));
        }
    }

    #[test]
    fn what_is_put_in_is_read_back() {
        let image = image(
            NoCloud,
            &instance(&[]),
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
        let image = image(ConfigDrive, &instance(&[]), b"#!/bin/sh\n", Some(b"{}")).unwrap();
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
        let image = image(NoCloud, &instance(&[]), b"", None).unwrap();
        assert_eq!(image.len() % 512, 0);
        assert!(read(&image, "network-config").is_err());
    }
}
