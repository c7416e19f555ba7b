//! The folder of an instance, and what has been done for it already.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::seed::Seed;

/// An instance's folder, `instances/<id>`, with `instance` leading to it.
#[derive(Debug)]
pub struct Instance {
    folder: PathBuf,
}

impl Instance {
    /// Makes the folder below `state` where it is not there yet, and keeps the user-data in it.
    pub fn open(state: &Path, seed: &Seed) -> io::Result<Self> {
        let folder = state.join("instances").join(folder_name(&seed.instance_id));
        for part in ["scripts", "sem"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let link = state.join("instance");
        if fs::read_link(&link).ok().as_ref() != Some(&folder) {
            let new = state.join("instance.new");
            // One that a boot was cut off amid has left.
            let _ = fs::remove_file(&new);
            symlink(&folder, &new)?;
            fs::rename(&new, &link)?;
        }
        write_secret(&folder.join("user-data.txt"), &seed.user_data)?;
        Ok(Self { folder })
    }

    /// Where the user's scripts lie.
    pub fn scripts(&self) -> PathBuf {
        self.folder.join("scripts")
    }

    /// Calls `with` unless it was called for this instance before, under this name. It counts as
    /// called from its beginning: one that cuts the guest off is not called again.
    pub fn once(&self, name: &str, with: impl FnOnce()) -> io::Result<()> {
        let semaphore = self.folder.join("sem").join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&semaphore);
        let mut file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.unwrap_or_default().as_secs_f64();
        writeln!(file, "{}: {seconds}", std::process::id())?;
        file.sync_all()?;
        with();
        Ok(())
    }
}

/// An instance's id as one component of a path.
fn folder_name(id: &str) -> String {
    match id {
        "." | ".." => "_".to_owned(),
        // A name in a folder has at most 255 bytes.
        id => id.replace(['/', '\0'], "_").chars().take(60).collect(),
    }
}

/// Writes a file that only root may read.
fn write_secret(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(data)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn seed(id: &str) -> Seed {
        Seed {
            instance_id: id.to_owned(),
            hostname: None,
            user_data: b"secret".to_vec(),
        }
    }

    #[test]
    fn once_is_once_an_instance() {
        let state = tempfile::tempdir().unwrap();
        let count = Cell::new(0);
        let boot = |id: &str| {
            let instance = Instance::open(state.path(), &seed(id)).unwrap();
            let called = instance.once("config_x", || count.set(count.get() + 1));
            called.unwrap();
            count.get()
        };
        assert_eq!((boot("a"), boot("a"), boot("b"), boot("a")), (1, 1, 2, 2));
        let link = fs::read_link(state.path().join("instance")).unwrap();
        assert_eq!(link, state.path().join("instances/a"));
    }

    #[test]
    fn an_id_stays_below_the_folder_and_user_data_are_root_s() {
        let state = tempfile::tempdir().unwrap();
        for (id, name) in [("../../x", ".._.._x"), ("..", "_"), ("i-1", "i-1")] {
            Instance::open(state.path(), &seed(id)).unwrap();
            let file = state
                .path()
                .join("instances")
                .join(name)
                .join("user-data.txt");
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{id}");
        }
    }
}
