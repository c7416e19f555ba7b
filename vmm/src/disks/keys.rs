//! ConfigMaps and Secrets in a pod: Kubernetes mounts each as a folder, a file a key.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::kubevirt::{CONFIG_MAPS, CREDENTIALS, DOWNWARD_APIS, SECRETS, SERVICE_ACCOUNT};
use crate::vmi::Keyed;

/// What Kubernetes lets one of them have, and a byte.
const MOST: u64 = (1 << 20) + 1;

/// Keys and what is under them.
pub type Keys = BTreeMap<String, Vec<u8>>;

/// What cannot be read, and why.
pub type Unread = (PathBuf, io::Error);

/// All keys of what is mounted for a volume; `None` where nothing is.
pub fn mounted(of: Keyed, volume: &str) -> Result<Option<Keys>, Unread> {
    let below = match of {
        Keyed::ConfigMap => CONFIG_MAPS,
        Keyed::Secret => SECRETS,
        Keyed::DownwardApi => DOWNWARD_APIS,
        // A pod has one.
        Keyed::ServiceAccount => return read(Path::new(SERVICE_ACCOUNT)),
    };
    read(&Path::new(below).join(volume))
}

/// The keys of a Secret with public keys of SSH, which KubeVirt mounts under another name.
pub fn credentials(secret: &str) -> Result<Option<Keys>, Unread> {
    read(&Path::new(SECRETS).join(format!("{secret}{CREDENTIALS}")))
}

fn read(folder: &Path) -> Result<Option<Keys>, Unread> {
    let failed = |error| (folder.to_owned(), error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut keys = Keys::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // The folder that the keys are links into, and what leads to it.
        if name.starts_with("..") || !path.is_file() {
            continue;
        }
        let mut data = Vec::new();
        let file = File::open(&path).and_then(|file| file.take(MOST).read_to_end(&mut data));
        file.map_err(|error| (path.clone(), error))?;
        keys.insert(name.into_owned(), data);
    }
    Ok(Some(keys))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_as_kubernetes_mounts_it_has_a_file_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..2026")).unwrap();
        fs::write(at("..2026/app.conf"), "a=1").unwrap();
        symlink("..2026", at("..data")).unwrap();
        symlink("..data/app.conf", at("app.conf")).unwrap();
        let keys = read(folder.path()).unwrap().unwrap();
        assert_eq!(keys, [("app.conf".to_owned(), b"a=1".to_vec())].into());
        assert_eq!(read(&at("none")).unwrap(), None);
    }
}
