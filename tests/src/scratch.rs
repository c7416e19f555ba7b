//! The lab's scratch disk, as a node's disk.

use std::path::Path;
use std::process::Command;

use crate::space::run;

/// Whatever is on it goes.
const DISK: &str = "/dev/disk/by-id/virtio-scratch";

/// A folder on the lab's scratch disk, or of this host's where there is none; gone when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl Scratch {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let mounted = Path::new(DISK).exists();
        if mounted {
            run(Command::new("mkfs.ext4").args(["-qF", DISK])).unwrap();
            run(Command::new("mount").arg(DISK).arg(folder.path())).unwrap();
        }
        Self { folder, mounted }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(Command::new("umount").arg("-l").arg(self.path()));
        }
    }
}
