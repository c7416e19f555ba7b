//! Landlock: the files that the process opens when the guest runs already.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// What Landlock had when this was written; a kernel that has less gives less.
const NEWEST: ABI = ABI::V6;
/// What every VM reads: its nameservers, what takes a descriptor's place when there are none left,
/// and what a library's random numbers begin with.
const READ: [&str; 4] = ["/etc", "/dev/null", "/dev/random", "/dev/urandom"];
/// Where `/etc/resolv.conf` may point to.
const RESOLVED: &str = "/etc/resolv.conf";

/// What may be opened by a process that runs a guest.
#[derive(Debug, Default)]
pub struct Files {
    /// Directories whose files are made, written and removed.
    pub write: Vec<PathBuf>,
    /// A directory out of which entries are removed, and nothing else is done to it.
    pub tidied: Option<PathBuf>,
}

impl Files {
    /// Confines the process to them; false where the kernel cannot.
    pub fn restrict(&self) -> io::Result<bool> {
        let all = AccessFs::from_all(NEWEST);
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = all
            & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
        let tidy = AccessFs::RemoveDir | AccessFs::RemoveFile;
        let resolved = std::fs::canonicalize(RESOLVED).ok();
        let resolved = resolved.iter().filter_map(|path| path.parent());
        let reads = READ.iter().map(Path::new).chain(resolved);
        let paths = reads
            .map(|path| (path, read))
            .chain(self.write.iter().map(|path| (path.as_path(), write)))
            .chain(self.tidied.iter().map(|path| (path.as_path(), tidy)));
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)
            .and_then(|rules| rules.scope(Scope::AbstractUnixSocket | Scope::Signal))
            .and_then(Ruleset::create)
            .map_err(io::Error::other)?;
        for (path, access) in paths {
            // What is not there now cannot be opened later either.
            let Ok(fd) = PathFd::new(path) else { continue };
            // A file is given no right that only a directory can have.
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(NEWEST)
            };
            rules = rules
                .add_rule(PathBeneath::new(fd, access))
                .map_err(io::Error::other)?;
        }
        let status = rules.restrict_self().map_err(io::Error::other)?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}
