//! Scripts: where user-data's own is put, and how a folder of them is run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::children;

/// Where the scripts' output goes, beside the console.
const OUTPUT: &str = "/var/log/cloud-init-output.log";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Shown of user-data that are of no known kind.
const SHOWN: usize = 40;

/// Puts user-data that are a script into the instance's folder, where cloud-init would.
pub fn place(user_data: &[u8], folder: &Path) -> Result<(), String> {
    let text = user_data.trim_ascii_start();
    if text.is_empty() {
        return Ok(());
    }
    if !text.starts_with(b"#!") {
        let start: String = String::from_utf8_lossy(text)
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(SHOWN)
            .collect();
        return Err(format!(
            "it begins with {start:?}, which is not supported yet: only a script (`#!`) is"
        ));
    }
    let path = folder.join("part-001");
    // Windows' line ends would become a part of the interpreter's name.
    let script = replace(text, b"\r\n", b"\n");
    fs::write(&path, script)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(byte) = rest.first() {
        match rest.strip_prefix(from) {
            Some(after) => {
                result.extend(to);
                rest = after;
            }
            None => {
                result.push(*byte);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    result
}

/// Runs every executable in `folder`, by name, one after the other; a line for each that failed.
pub fn run_folder(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut scripts: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    scripts.retain(|path| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    });
    scripts.sort_unstable();
    scripts.iter().filter_map(|path| run(path).err()).collect()
}

fn run(path: &Path) -> Result<(), String> {
    let failed = |why: &str| format!("{}: {why}", path.display());
    let (reader, writer) = io::pipe().map_err(|e| failed(&e.to_string()))?;
    let error_writer = writer.try_clone().map_err(|e| failed(&e.to_string()))?;
    let child = {
        let mut command = Command::new(path);
        command
            .current_dir("/")
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(error_writer);
        children::spawn(&mut command).map_err(|e| failed(&e.to_string()))?
    };
    // Until the last one that holds the pipe has gone: a script's children may outlive it.
    thread::spawn(move || copy_output(reader));
    match children::failure(child.wait()) {
        None => Ok(()),
        Some(how) => Err(failed(&how)),
    }
}

/// Copies what a script says to the log and to the console, as it comes.
fn copy_output(mut from: PipeReader) {
    let open = |path: &str| OpenOptions::new().append(true).create(true).open(path).ok();
    let mut places: Vec<Option<File>> = vec![open(OUTPUT), open("/dev/console")];
    let mut bytes = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        let said = bytes.get(..n).unwrap_or_default();
        for place in &mut places {
            // A full disk must not stop the script; it loses its log.
            if place
                .as_mut()
                .is_some_and(|file| file.write_all(said).is_err())
            {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_placed_executable_and_without_windows_line_ends() {
        let folder = tempfile::tempdir().unwrap();
        place(b"\n#!/bin/sh\r\necho a\r\n", folder.path()).unwrap();
        let path = folder.path().join("part-001");
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/sh\necho a\n");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_is_not_a_script_is_refused_by_how_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let why = place(b"#cloud-config\nusers: []\n", folder.path()).unwrap_err();
        assert!(why.contains("\"#cloud-config\""), "{why}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        place(b" \n", folder.path()).unwrap();
    }
}
