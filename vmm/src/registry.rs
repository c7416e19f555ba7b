//! Where a user's running VMs are found: a directory of the user's own, with an entry for each, which
//! is its state directory or a link to that.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::SOCKET;
use crate::devices::virtio::vsock;

/// Between two looks at a process that is ending.
const PAUSE: Duration = Duration::from_millis(10);

/// The directory of this user's VMs: `peapod` in $XDG_RUNTIME_DIR, else `peapod-<uid>` in /tmp.
pub fn home() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|dir| dir.is_dir()) {
        Some(dir) => dir.join("peapod"),
        None => {
            let user = rustix::process::geteuid().as_raw();
            std::env::temp_dir().join(format!("peapod-{user}"))
        }
    }
}

/// Makes the directory, and sees that it is nobody else's: in /tmp anybody may have made it.
fn make(home: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(home) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let there = fs::symlink_metadata(home)?;
    let own = there.uid() == rustix::process::geteuid().as_raw();
    if !there.is_dir() || !own || there.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            "it is not this user's alone",
        ));
    }
    Ok(())
}

/// Whether that is a directory of a process that was killed.
fn is_left(path: &Path) -> bool {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|there| there.is_dir());
    is_directory && File::open(path).is_ok_and(|directory| directory.try_lock().is_ok())
}

/// A VM's entry, which goes with it.
#[derive(Debug)]
pub struct Entry {
    home: PathBuf,
    path: PathBuf,
    is_link: bool,
}

impl Entry {
    /// An entry with a state directory in it, for a VM called `name`.
    pub fn directory(home: &Path, name: &str) -> io::Result<Self> {
        Self::make(home, name, false, |path| {
            // mkdir fails on whatever is there, a link included; nobody else may look in.
            let make = || DirBuilder::new().mode(0o700).create(path);
            match make() {
                // A container's first process has the same number each time.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_left(path) => {
                    fs::remove_dir_all(path)?;
                    make()
                }
                made => made,
            }
        })
    }

    /// An entry that leads to `state`.
    pub fn link(home: &Path, name: &str, state: &Path) -> io::Result<Self> {
        let state = std::path::absolute(state)?;
        Self::make(home, name, true, |path| {
            // One of a process that was killed and had this number.
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => symlink(&state, path),
            }
        })
    }

    fn make(
        home: &Path,
        name: &str,
        is_link: bool,
        entry: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        let path = home.join(format!("{name}-{}", std::process::id()));
        // Whoever ends last removes the directory, maybe this moment.
        let made = make(home).and_then(|()| entry(&path));
        match made {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(home).and_then(|()| entry(&path))?;
            }
            other => other?,
        }
        Ok(Self {
            home: home.to_owned(),
            path,
            is_link,
        })
    }

    /// The directory that it is in.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let removed = if self.is_link {
            fs::remove_file(&self.path)
        } else {
            fs::remove_dir_all(&self.path)
        };
        if let Err(error) = removed {
            tracing::warn!("cannot tidy {}: {error}", self.path.display());
        }
        // It is not empty while there are others.
        let _ = fs::remove_dir(&self.home);
    }
}

/// A VM that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its entry's name: the VM's, and its process's number.
    pub entry: OsString,
    /// Its state directory.
    pub state: PathBuf,
}

impl Found {
    /// The VM's name and its process's number.
    fn name(&self) -> (&str, &str) {
        let entry = self.entry.to_str().unwrap_or_default();
        entry.rsplit_once('-').unwrap_or((entry, ""))
    }

    /// Its API.
    pub fn socket(&self) -> PathBuf {
        self.state.join(SOCKET)
    }

    /// By which its guest's vsock ports are reached.
    pub fn vsock(&self) -> PathBuf {
        self.state.join(vsock::SOCKET)
    }

    /// Whether its process has ended, or does before so long.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while lives(&self.state) {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(PAUSE);
        }
        true
    }

    /// Waits until its process has ended.
    pub fn wait(&self) -> io::Result<()> {
        match File::open(&self.state) {
            Ok(state) => state.lock(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Its lock is held as long as its process lives.
fn lives(state: &Path) -> bool {
    File::open(state).is_ok_and(|state| state.try_lock_shared().is_err())
}

/// The user's VMs that run, by their names. What killed ones have left is passed over.
pub fn running(home: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(home) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        if lives(&entry.path()) {
            all.push(Found {
                entry: entry.file_name(),
                state: entry.path(),
            });
        }
    }
    all.sort_by(|a, b| a.entry.cmp(&b.entry));
    Ok(all)
}

/// Why there is no such VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of that name.
    #[error("no VM `{0}` runs here; `peapod ps` lists those that do")]
    None(String),
    /// Several.
    #[error("{1} VMs are called `{0}`; choose one by the number of its process (`peapod ps`)")]
    Several(String, usize),
    /// The directory cannot be read.
    #[error("{path}: {cause}", path = .0.display(), cause = .1)]
    Read(PathBuf, io::Error),
}

/// The VM that `word` means: its name, its process's number, or its state directory, which is a
/// path with a slash.
pub fn find(home: &Path, word: &str) -> Result<Found, Error> {
    if word.contains('/') {
        return Ok(Found {
            entry: word.into(),
            state: word.into(),
        });
    }
    let all = running(home).map_err(|error| Error::Read(home.to_owned(), error))?;
    let matches = |found: &&Found| {
        let (name, process) = found.name();
        name == word || process == word
    };
    let mut matching = all.iter().filter(matches);
    match (matching.next(), matching.count()) {
        (None, _) => Err(Error::None(word.to_owned())),
        (Some(found), 0) => Ok(found.clone()),
        (Some(_), others) => Err(Error::Several(word.to_owned(), others + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_found_by_its_name_while_it_runs_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        assert!(running(&home).unwrap().is_empty());
        let entry = Entry::directory(&home, "details").unwrap();
        let mode = fs::metadata(&home).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        // Its process is not there yet, or not any more.
        assert!(running(&home).unwrap().is_empty());
        let lock = File::open(entry.path()).unwrap();
        lock.try_lock().unwrap();
        let found = find(&home, "details").unwrap();
        assert_eq!(found.socket(), entry.path().join("api.sock"));
        let process = std::process::id().to_string();
        assert_eq!(find(&home, &process).unwrap(), found);
        let elsewhere = dir.path().join("state");
        fs::create_dir(&elsewhere).unwrap();
        let other = Entry::link(&home, "reviews", &elsewhere).unwrap();
        let second = File::open(&elsewhere).unwrap();
        second.try_lock().unwrap();
        assert_eq!(running(&home).unwrap().len(), 2);
        let both = find(&home, &process).unwrap_err().to_string();
        assert!(both.starts_with("2 VMs are called"), "{both}");
        let none = find(&home, "ratings").unwrap_err().to_string();
        assert!(none.starts_with("no VM `ratings` runs here"), "{none}");
        assert!(!found.ends_within(Duration::ZERO));
        let twice = Entry::directory(&home, "details").unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        drop(lock);
        assert!(found.ends_within(Duration::ZERO));
        drop((entry, other));
        assert!(elsewhere.exists() && !home.exists());
    }

    #[test]
    fn what_a_killed_process_of_the_same_number_left_is_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let left = Entry::directory(home.path(), "details").unwrap();
        fs::write(left.path().join("file"), "").unwrap();
        let path = left.path().to_owned();
        std::mem::forget(left);
        let anew = Entry::directory(home.path(), "details").unwrap();
        assert_eq!((anew.path(), path.join("file").exists()), (&*path, false));
    }

    #[test]
    fn a_directory_that_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Entry::directory(dir.path(), "details").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        let link = dir.path().join("link");
        symlink("/", &link).unwrap();
        assert!(Entry::directory(&link, "details").is_err());
    }
}
