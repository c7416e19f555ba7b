//! SELinux: every file that the agent writes gets the label that the root's policy has for it, and the
//! agent itself one with which it may do its work. Where no policy is loaded nothing is done.
//!
//! The policy's own restorecon(8) knows the labels of files.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::fs::{Mode, OFlags, XattrFlags, getxattr, openat, setxattr};
use rustix::io::Errno;

use crate::userdata::command::Program;

/// It is there once a policy is (selinuxfs).
const POLICY: &str = "/sys/fs/selinux/enforce";
/// More paths are not remembered at once.
const MOST: usize = 4096;
/// How many restorecon is told at once.
const TOLD: usize = 256;
/// The longest label.
const LONGEST: usize = 4096;
const ATTRIBUTE: &str = "security.selinux";
/// What an init that has loaded a policy starts in a domain of services, as it does scripts of init: the
/// reference policy's name for it, and Fedora's.
const PROGRAM: &str = "system_u:object_r:initrc_exec_t";
/// What a process is in before there is a policy.
const NO_POLICY: &str = "kernel";
/// How long init may take to load one.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(5);

static WRITTEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn written() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_loaded() -> bool {
    Path::new(POLICY).exists()
}

/// A file was written, or a folder made, with all that is in it.
pub fn wrote(path: &Path) {
    // What is below /run is of this boot only, and has what it was made with.
    if path.starts_with("/run") || !is_loaded() {
        return;
    }
    let mut written = written();
    if written.len() < MOST {
        written.insert(path.to_owned());
    }
}

/// Gives a file that is to take another's place the label of that.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !is_loaded() {
        return Ok(());
    }
    let mut label = [0; LONGEST];
    let len = getxattr(from, ATTRIBUTE, &mut label)?;
    let label = label.get(..len).unwrap_or_default();
    Ok(setxattr(to, ATTRIBUTE, label, XattrFlags::empty())?)
}

/// Gives what was written since the last time its label.
pub fn put_right() -> Result<(), String> {
    // Not held while a program runs, whose output may begin a log.
    let written = std::mem::take(&mut *written());
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    let written: Vec<PathBuf> = written.into_iter().filter(is_there).collect();
    for some in written.chunks(TOLD) {
        let words = ["restorecon".as_ref(), "-R".as_ref()].into_iter();
        let words: Vec<&Path> = words.chain(some.iter().map(PathBuf::as_path)).collect();
        Program::new(&words).run()?;
    }
    Ok(())
}

/// Waits until process 1, which `proc` tells of, has loaded a policy, and labels the agent's `program`.
/// Where the kernel has no SELinux it is done at once.
pub fn label_program(proc: &OwnedFd, program: &Path) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let context = loop {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(proc, "1/attr/current", flags, Mode::empty())?;
        // A kernel without any such module gives none.
        let context = io::read_to_string(File::from(file)).unwrap_or_default();
        let context = context.trim_end_matches(['\0', '\n']);
        if context != NO_POLICY {
            break context.to_owned();
        }
        if Instant::now() > end {
            return Ok(());
        }
        thread::sleep(GLANCE);
    };
    let Some(label) = label_like(&context) else {
        return Ok(());
    };
    let label = format!("{label}\0");
    loop {
        match setxattr(program, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
            // The policy is there, and its file systems are not its own yet.
            Err(Errno::OPNOTSUPP) if Instant::now() < end => thread::sleep(GLANCE),
            done => return Ok(done?),
        }
    }
}

/// The program's label under the policy whose init runs in `context`: with a level, where that has one;
/// `None` where it is another security module's.
fn label_like(context: &str) -> Option<String> {
    let mut parts = context.splitn(4, ':').skip(2);
    parts.next()?;
    Some(match parts.next() {
        // Init's may be a range.
        Some(level) => {
            let low = level.split('-').next().unwrap_or(level);
            format!("{PROGRAM}:{low}")
        }
        None => PROGRAM.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_has_a_level_where_init_has_one_and_no_label_without_selinux() {
        let label = |context| label_like(context);
        let level = Some("system_u:object_r:initrc_exec_t:s0".to_owned());
        assert_eq!(label("system_u:system_r:init_t:s0"), level);
        assert_eq!(label("system_u:system_r:init_t:s0-s0:c0.c1023"), level);
        assert_eq!(label("system_u:system_r:init_t").as_deref(), Some(PROGRAM));
        assert_eq!(label("unconfined"), None);
        assert_eq!(label(""), None);
    }
}
