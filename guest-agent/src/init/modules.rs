//! The kernel modules that the initramfs brings: `/modules/load` names them in the order in which
//! they are loaded, and `/modules/later` those for which nobody waits.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::system::finit_module;

/// What a guest's set-up may take before it is no more waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where they lie.
const FOLDER: &str = "/modules";

/// Modules in their order, open, so that they can be loaded when the initramfs is out of reach.
#[derive(Debug, Default)]
pub struct Modules {
    files: Vec<(String, File)>,
    failures: Vec<String>,
}

impl Modules {
    /// Those without which there is no root, no network and no way to the VMM.
    pub fn needed() -> Self {
        Self::of("load")
    }

    /// Those for which nobody waits.
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
            if let Err(error) = load_one(&file) {
                self.failures.push(format!("{name}: {error}"));
            }
        }
        self.failures
    }

    /// Loads them once the other end of `over` is dropped, or a while has passed: a balloon's driver
    /// begins to give pages back, which takes a CPU from whoever wants to be ready. `failed` gets a line
    /// for each that could not be.
    pub fn load_after(self, over: Receiver<()>, failed: impl Fn(&str) + Send + 'static) {
        thread::spawn(move || {
            let _ = over.recv_timeout(PATIENCE);
            self.load().iter().for_each(|why| failed(why));
        });
    }
}

fn load_one(file: &File) -> io::Result<()> {
    match finit_module(file, c"", 0) {
        // Loaded already is as good.
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
