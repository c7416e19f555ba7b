//! The folder of an instance, and what has been done for it already.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::files;
use crate::say;
use crate::seed::Seed;

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequency {
    /// At every boot.
    Always,
    /// Once an instance.
    Instance,
    /// Once.
    Once,
}

impl Frequency {
    /// As configurations call it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "always" => Some(Self::Always),
            "once-per-instance" | "instance" => Some(Self::Instance),
            "once" => Some(Self::Once),
            _ => None,
        }
    }
}

/// An instance's folder, `instances/<id>`, with `instance` leading to it.
#[derive(Debug)]
pub struct Instance {
    state: PathBuf,
    folder: PathBuf,
    /// Something was begun that is not on stable storage yet.
    unsettled: AtomicBool,
}

impl Instance {
    /// Makes the folder below `state` where it is not there yet, and keeps the seed's data in it.
    pub fn open(state: &Path, seed: &Seed) -> io::Result<Self> {
        let folder = state.join("instances").join(folder_name(&seed.instance_id));
        for part in ["handlers", "scripts", "sem"] {
            files::make_folders(&folder.join(part))?;
        }
        for part in [
            "data",
            "handlers",
            "scripts/per-boot",
            "scripts/per-instance",
            "scripts/per-once",
            "scripts/vendor",
            "seed",
            "sem",
        ] {
            files::make_folders(&state.join(part))?;
        }
        let link = state.join("instance");
        if fs::read_link(&link).ok().as_ref() != Some(&folder) {
            let new = state.join("instance.new");
            // One that a boot was cut off amid has left.
            let _ = fs::remove_file(&new);
            symlink(&folder, &new)?;
            fs::rename(&new, &link)?;
        }
        let instance = Self {
            state: state.to_owned(),
            folder,
            unsettled: AtomicBool::new(false),
        };
        instance.remember(&seed.instance_id)?;
        let file = |name: &str| instance.folder.join(name);
        files::write(&file("user-data.txt"), &seed.user_data, 0o600)?;
        files::write(&file("vendor-data.txt"), &seed.vendor_data, 0o600)?;
        files::write(
            &file("datasource"),
            format!("{}\n", seed.origin).as_bytes(),
            0o644,
        )?;
        Ok(instance)
    }

    /// Keeps the id, and which was the one before.
    fn remember(&self, id: &str) -> io::Result<()> {
        let file = |name: &str| self.state.join("data").join(name);
        let before = fs::read_to_string(file("instance-id")).unwrap_or_default();
        let before = match before.trim() {
            "" => "NO_PREVIOUS_INSTANCE_ID",
            before => before,
        };
        files::write(
            &file("previous-instance-id"),
            format!("{before}\n").as_bytes(),
            0o644,
        )?;
        files::write(&file("instance-id"), format!("{id}\n").as_bytes(), 0o644)
    }

    /// A file or folder of the instance.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file or folder of every instance.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Where the user's scripts lie.
    pub fn scripts(&self) -> PathBuf {
        self.folder.join("scripts")
    }

    /// Calls `with` unless it was called before, under this name and so often. It counts as called
    /// from its beginning: one that cuts the guest off, and has called [`Instance::settle`] before, is not
    /// called again.
    pub fn run(&self, name: &str, frequency: Frequency, with: impl FnOnce()) -> io::Result<()> {
        let semaphore = match frequency {
            Frequency::Always => {
                with();
                return Ok(());
            }
            Frequency::Instance => self.folder.join("sem").join(name),
            Frequency::Once => self.state.join("sem").join(format!("{name}.once")),
        };
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
        self.unsettled.store(true, Ordering::Relaxed);
        with();
        Ok(())
    }

    /// Puts what was begun on stable storage: to be called before a command of the user's, which may cut
    /// the guest off. A wait for the disk is one of a guest's longest, so nothing else waits for it.
    pub fn settle(&self) {
        if self.unsettled.swap(false, Ordering::Relaxed) {
            let settled = File::open(&self.state)
                .and_then(|folder| rustix::fs::syncfs(folder).map_err(Into::into));
            if let Err(error) = settled {
                say!("{}: {error}", self.state.display());
            }
        }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn seed(id: &str) -> Seed {
        Seed {
            instance_id: id.to_owned(),
            user_data: b"secret".to_vec(),
            ..Seed::default()
        }
    }

    #[test]
    fn once_is_once_an_instance_or_once_for_all() {
        let state = tempfile::tempdir().unwrap();
        let counts = [const { Cell::new(0) }; 3];
        let boot = |id: &str| {
            let instance = Instance::open(state.path(), &seed(id)).unwrap();
            for (count, frequency) in
                counts
                    .iter()
                    .zip([Frequency::Always, Frequency::Instance, Frequency::Once])
            {
                let called = instance.run("config_x", frequency, || count.set(count.get() + 1));
                called.unwrap();
            }
            counts.each_ref().map(Cell::get)
        };
        assert_eq!(boot("a"), [1, 1, 1]);
        assert_eq!(boot("a"), [2, 1, 1]);
        assert_eq!(boot("b"), [3, 2, 1]);
        assert_eq!(boot("a"), [4, 2, 1]);
        let link = fs::read_link(state.path().join("instance")).unwrap();
        assert_eq!(link, state.path().join("instances/a"));
        let previous = fs::read_to_string(state.path().join("data/previous-instance-id")).unwrap();
        assert_eq!(previous, "b\n");
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
