//! Where the guest's set-up comes from: a NoCloud seed (cloud-init's DataSourceNoCloud), a disk
//! labelled `cidata`.

mod label;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::Deserialize;

const LABELS: [&str; 2] = ["cidata", "CIDATA"];
const MOUNT_POINT: &str = "/run/peapod/seed";
/// A Kubernetes Secret holds no more.
const MAX_FILE: u64 = 1 << 20;
/// cloud-init's, where the meta-data have none.
const DEFAULT_INSTANCE: &str = "nocloud";

/// A seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Which instance this is; what is done once is done once for each.
    pub instance_id: String,
    /// The guest's name, where the seed has one.
    pub hostname: Option<String>,
    /// What its user wants done.
    pub user_data: Vec<u8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData {
    instance_id: Option<String>,
    local_hostname: Option<String>,
}

/// The seed of this guest, if it has one. An error names the disk and the file.
pub fn find() -> Result<Option<Seed>, String> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    // cloud-init looks at the last first.
    names.sort_unstable_by(|a, b| b.cmp(a));
    for name in names {
        let device = Path::new("/dev").join(name);
        // A drive without a disk cannot be read, and has no seed.
        let found = File::open(&device).and_then(|mut file| label::read(&mut file));
        if let Ok(Some(found)) = found
            && LABELS.contains(&&*found.label)
        {
            return from_disk(&device, found.kind).map(Some);
        }
    }
    Ok(None)
}

fn from_disk(device: &Path, kind: &str) -> Result<Seed, String> {
    let failed = |error: io::Error| format!("{}: {error}", device.display());
    fs::create_dir_all(MOUNT_POINT).map_err(failed)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(device, MOUNT_POINT, kind, flags, c"").map_err(|error| failed(error.into()))?;
    let seed = from_folder(Path::new(MOUNT_POINT));
    // One that is still in use goes when it is not.
    let _ = unmount(MOUNT_POINT, UnmountFlags::DETACH);
    seed.map_err(|why| format!("{}: {why}", device.display()))
}

fn from_folder(folder: &Path) -> Result<Seed, String> {
    let meta_data = read(&folder.join("meta-data"))?;
    let user_data = read(&folder.join("user-data"))?;
    let text = std::str::from_utf8(&meta_data).map_err(|error| format!("meta-data: {error}"))?;
    let meta: MetaData = if text.trim().is_empty() {
        MetaData::default()
    } else {
        serde_saphyr::from_str(text).map_err(|error| {
            let error = error.to_string();
            format!("meta-data: {}", error.lines().next().unwrap_or_default())
        })?
    };
    Ok(Seed {
        instance_id: meta
            .instance_id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned()),
        hostname: meta.local_hostname.filter(|name| !name.is_empty()),
        user_data,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let failed = |error: io::Error| format!("{name}: {error}");
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(format!("{name}: {size} bytes; it may have {MAX_FILE}"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(meta: &str, user: &[u8]) -> Result<Seed, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("meta-data"), meta).unwrap();
        fs::write(folder.path().join("user-data"), user).unwrap();
        from_folder(folder.path())
    }

    #[test]
    fn meta_data_may_be_json_yaml_or_empty() {
        let json = seed(
            r#"{"instance-id":"i-1","local-hostname":"d","x":[1]}"#,
            b"u",
        )
        .unwrap();
        assert_eq!(
            json,
            Seed {
                instance_id: "i-1".to_owned(),
                hostname: Some("d".to_owned()),
                user_data: b"u".to_vec()
            }
        );
        assert_eq!(seed("instance-id: i-2\n", b"").unwrap().instance_id, "i-2");
        assert_eq!(seed("\n", b"").unwrap().instance_id, "nocloud");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(
            seed("instance-id: [", b"")
                .unwrap_err()
                .starts_with("meta-data: ")
        );
        let long = seed("", &vec![b'x'; (1 << 20) + 1]).unwrap_err();
        assert_eq!(long, "user-data: 1048577 bytes; it may have 1048576");
        let folder = tempfile::tempdir().unwrap();
        let missing = from_folder(folder.path()).unwrap_err();
        assert!(missing.starts_with("meta-data: No such file"), "{missing}");
    }
}
