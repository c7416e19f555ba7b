//! Keys by which apt knows a repository's owner: given in the user-data, or a key server's, whom gpg
//! asks.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::userdata::command::{Program, exists};
use crate::userdata::files;
use crate::yaml::Node;

/// Where gpg keeps what it is told here, and no longer.
const HOME: &str = "/run/peapod/gpg";
/// cloud-init's.
const SERVER: &str = "keyserver.ubuntu.com";
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Whether an entry names a key.
pub fn has_key(entry: &Node) -> bool {
    entry.get("key").is_some() || entry.get("keyid").is_some()
}

/// Puts an entry's key where apt takes it for a keyring.
pub fn add(entry: &Node, name: &str, folder: &str) -> Result<PathBuf, String> {
    let stem = Path::new(name)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let path = Path::new(folder).join(format!("{stem}.gpg"));
    let word = |key: &str| entry.get(key).and_then(Node::scalar);
    let key = match word("key") {
        Some(armored) => dearmored(&armored)?,
        None => {
            let id = word("keyid").unwrap_or_default();
            let server = word("keyserver").unwrap_or_else(|| SERVER.to_owned());
            of_server(&id, &server).map_err(|why| format!("keyid: {why}"))?
        }
    };
    files::write(&path, &key, 0o644).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// The key that a server has under that number, which gpg holds it to.
fn of_server(id: &str, server: &str) -> Result<Vec<u8>, String> {
    let id = key_id(id).ok_or_else(|| format!("{id:?} is no number of a key"))?;
    if server.starts_with('-') {
        return Err(format!("{server:?} is no key server"));
    }
    if !exists("gpg") || !exists("dirmngr") {
        return Err(
            "this root has no gpg and dirmngr to ask a key server with; give the key itself, as key"
                .to_owned(),
        );
    }
    let _home = Home::new().map_err(|error| format!("{HOME}: {error}"))?;
    let gpg = ["gpg", "--homedir", HOME, "--batch", "--no-tty"];
    let run = |words: &[&str]| Program::new(&[&gpg, words].concat()).run();
    let mut tries = 1..=TRIES;
    while let Err(why) = run(&["--keyserver", server, "--recv-keys", &id]) {
        // Its own words are in the output's log.
        if tries.next() == Some(TRIES) {
            return Err(format!("{server} gives no key {id}: {why}"));
        }
        thread::sleep(PAUSE);
    }
    let exported = Path::new(HOME).join("exported");
    run(&["--output", &exported.to_string_lossy(), "--export", &id])?;
    fs::read(&exported).map_err(|error| format!("key {id}: {error}"))
}

/// A key's number as gpg takes it: hexadecimal, long enough that nobody makes another like it by
/// accident.
fn key_id(text: &str) -> Option<String> {
    let id: String = text.split_whitespace().collect();
    let digits = id.strip_prefix("0x").unwrap_or(&id);
    let good = (8..=64).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit());
    good.then_some(id)
}

/// gpg's folder, and its helpers that outlive it, until it is dropped.
struct Home;

impl Home {
    fn new() -> std::io::Result<Self> {
        // One of a boot that was cut short.
        let _ = fs::remove_dir_all(HOME);
        DirBuilder::new().recursive(true).mode(0o700).create(HOME)?;
        Ok(Self)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Program::new(&["gpgconf", "--homedir", HOME, "--kill", "all"]).run();
        let _ = fs::remove_dir_all(HOME);
    }
}

/// The bytes of a key in ASCII armor (RFC 9580, section 6).
fn dearmored(text: &str) -> Result<Vec<u8>, String> {
    let body = text
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK"))
        .skip(1)
        .skip_while(|line| line.contains(": "))
        .take_while(|line| !line.starts_with("-----END"));
    // The line that begins with = is a checksum.
    let body: String = body.filter(|line| !line.starts_with('=')).collect();
    if body.is_empty() {
        return Err("key: it is no armored PGP public key".to_owned());
    }
    STANDARD
        .decode(body)
        .map_err(|error| format!("key: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armor_is_taken_off() {
        let key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: 1\n\naGVs\nbG8=\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(dearmored(key).unwrap(), b"hello");
        dearmored("x").unwrap_err();
    }

    #[test]
    fn a_key_s_number_is_hexadecimal_and_no_option_of_gpg_s() {
        let long = "15E3 1BDD EBAE 31B5 104A  5B26 A344 756A 7AFF F4B8";
        assert_eq!(key_id(long).unwrap(), long.replace(' ', ""));
        assert_eq!(key_id("0x7AFFF4B8").as_deref(), Some("0x7AFFF4B8"));
        for odd in [
            "",
            "7AFFF4B",
            "--version",
            "Anna <anna@home>",
            &"a".repeat(65),
        ] {
            assert_eq!(key_id(odd), None, "{odd}");
        }
        assert!(of_server("7AFFF4B8", "--version").is_err());
    }
}
