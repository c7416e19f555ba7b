//! The kernel modules that the initramfs brings: `/modules/load` names them in the order in which
//! they are loaded.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

/// Where they lie.
const FOLDER: &str = "/modules";

/// Loads the modules; a line for each that could not be.
pub fn load() -> Vec<String> {
    let folder = Path::new(FOLDER);
    let list = match fs::read_to_string(folder.join("load")) {
        Ok(list) => list,
        // A kernel that has everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("{FOLDER}/load: {error}")],
    };
    let failure = |name: &str| {
        load_one(&folder.join(name))
            .err()
            .map(|error| format!("{name}: {error}"))
    };
    list.lines().filter_map(failure).collect()
}

fn load_one(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        // Loaded already is as good.
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
