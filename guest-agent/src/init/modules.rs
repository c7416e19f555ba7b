//! The kernel modules that the initramfs brings, each list of them in a file of `/modules`, in the
//! order in which they are loaded: `disks`, `network`, `needed`, one for each file system that a disk may have, `soon` and
//! `later`.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::system::finit_module;

use crate::seed;

/// Where they lie.
const FOLDER: &str = "/modules";
/// What those for which nothing waits leave of a CPU to others (setpriority(2)).
const NICE: i32 = 10;

/// Modules in their order, open, so that they can be loaded when the initramfs is out of reach.
#[derive(Debug, Default)]
pub struct Modules {
    files: Vec<(String, File)>,
    failures: Vec<String>,
}

impl Modules {
    /// Those without which there is no root.
    pub fn disks() -> Self {
        Self::of("disks")
    }

    /// Those without which there is no network.
    pub fn network() -> Self {
        Self::of("network")
    }

    /// Those without which there is no way to the VMM, and what may be asked for at once.
    pub fn needed() -> Self {
        Self::of("needed")
    }

    /// Those of the file systems that the disks have.
    pub fn of_disks() -> Self {
        let mut kinds: Vec<_> = seed::file_systems().map(|(_, found)| found.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut modules = Self::default();
        for more in kinds.into_iter().map(Self::of) {
            modules.files.extend(more.files);
            modules.failures.extend(more.failures);
        }
        modules
    }

    /// Those for which nothing waits.
    pub fn soon() -> Self {
        Self::of("soon")
    }

    /// Those that wait for the guest's set-up: a balloon's driver begins to give pages back, which takes a
    /// CPU from whoever wants to be ready.
    pub fn later() -> Self {
        Self::of("later")
    }

    fn of(list: &str) -> Self {
        let folder = Path::new(FOLDER);
        let mut modules = Self::default();
        let names = match fs::read_to_string(folder.join(list)) {
            Ok(names) => names,
            // A kernel that has everything built in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return modules,
            Err(error) => {
                modules.failures.push(format!("{FOLDER}/{list}: {error}"));
                return modules;
            }
        };
        for name in names.lines() {
            match File::open(folder.join(name)) {
                Ok(file) => modules.files.push((name.to_owned(), file)),
                Err(error) => modules.failures.push(format!("{name}: {error}")),
            }
        }
        modules
    }

    /// Loads them; a line for each that could not be.
    pub fn load(mut self) -> Vec<String> {
        for (name, file) in self.files {
            if is_loaded(&name) {
                continue;
            }
            if let Err(error) = load_one(&file) {
                self.failures.push(format!("{name}: {error}"));
            }
        }
        self.failures
    }

    /// Loads them while whoever else wants this thread's CPU has it.
    pub fn load_beside(self) -> Vec<String> {
        // At worst it is as quick as ever.
        let _ = setpriority_process(None, NICE);
        let failures = self.load();
        let _ = setpriority_process(None, 0);
        failures
    }
}

/// To be told so by finit_module(2) takes as long as loading it: the signature is looked at first.
fn is_loaded(file: &str) -> bool {
    let name = file.strip_suffix(".ko").unwrap_or(file).replace('-', "_");
    Path::new("/sys/module").join(name).exists()
}

fn load_one(file: &File) -> io::Result<()> {
    match finit_module(file, c"", 0) {
        // Loaded already is as good, and so is that there is nothing for it here.
        Err(Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
