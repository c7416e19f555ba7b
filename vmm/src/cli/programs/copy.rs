//! `cp`, as KubeVirt's init container calls it: it copies container-disk to where the containers of
//! images find it.

use std::fs;
use std::path::PathBuf;

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file
    from: PathBuf,
    /// Its copy, or the directory that gets it
    to: PathBuf,
}

/// Copies it, with its permissions.
pub fn copy(args: &Args) -> Result<(), String> {
    let to = match (args.to.is_dir(), args.from.file_name()) {
        (true, Some(name)) => args.to.join(name),
        _ => args.to.clone(),
    };
    let (shown, there) = (args.from.display(), to.display());
    let failed = |error| format!("cp: {shown} to {there}: {error}");
    fs::copy(&args.from, &to).map(|_| ()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_a_link_leads_to_is_copied_with_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("peapod"), "elf").unwrap();
        fs::set_permissions(at("peapod"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("peapod", at("container-disk")).unwrap();
        fs::create_dir(at("bin")).unwrap();
        for to in ["bin", "other"] {
            let (from, to) = (at("container-disk"), at(to));
            copy(&Args { from, to }).unwrap();
        }
        for copied in ["bin/container-disk", "other"] {
            let there = fs::symlink_metadata(at(copied)).unwrap();
            assert!(there.is_file() && there.permissions().mode() & 0o777 == 0o755);
        }
        let (from, to) = (at("none"), at("x"));
        assert!(copy(&Args { from, to }).unwrap_err().contains("/none to "));
    }
}
