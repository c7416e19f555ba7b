//! Files as cloud-init writes them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::labels;

/// Writes a file and what folders it lacks, with this mode whatever it had before. It is never open
/// to more than its mode lets in.
pub fn write(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    open_and_write(path, data, mode, false)
}

/// Adds to a file.
pub fn append(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    open_and_write(path, data, mode, true)
}

fn open_and_write(path: &Path, data: &[u8], mode: u32, append: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        make_folders(folder)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .append(append)
        .create(true)
        .truncate(!append)
        .mode(mode & 0o600)
        .open(path)?;
    file.write_all(data)?;
    labels::wrote(path);
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}

/// Makes a folder and those above it that are not there; which they were, from the folder upwards.
pub fn make_folders(folder: &Path) -> io::Result<Vec<&Path>> {
    let missing = folder.ancestors().take_while(|above| !above.exists());
    let missing: Vec<&Path> = missing.collect();
    if let Some(first) = missing.last() {
        fs::create_dir_all(folder)?;
        labels::wrote(first);
    }
    Ok(missing)
}

/// Writes a file that keeps the mode it has; a new one gets this.
pub fn rewrite(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(mode, |found| found.permissions().mode() & 0o7777);
    write(path, data, mode)
}

/// Text without Windows' ends of lines, which would become a part of an interpreter's name.
pub fn without_returns(text: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut bytes = text.iter().peekable();
    while let Some(byte) = bytes.next() {
        if *byte == b'\r' && bytes.peek() == Some(&&b'\n') {
            continue;
        }
        result.push(*byte);
    }
    result
}

/// A name that is one component of a path: a slash becomes `_`, what is odd goes.
pub fn clean_name(name: &str) -> String {
    let clean: String = name
        .replace('/', "_")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_-.()".contains(*c))
        .collect();
    match &*clean {
        "" | "." | ".." => "part".to_owned(),
        _ => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_mode_and_a_name_stays_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        write(&path, b"x", 0o4755).unwrap();
        append(&path, b"y", 0o600).unwrap();
        rewrite(&path, b"z", 0o644).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(
            (fs::read(&path).unwrap(), mode & 0o7777),
            (b"z".to_vec(), 0o600)
        );
        assert_eq!(clean_name("../a b$/c.sh"), ".._ab_c.sh");
        assert_eq!(clean_name(".."), "part");
        assert_eq!(without_returns(b"a\r\nb\rc\r\n"), b"a\nb\rc\n");
    }
}
