//! What sshd reads: authorized_keys and sshd_config.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use crate::accounts::{Accounts, User};
use crate::labels;
use crate::userdata::command::{Program, has_systemd};
use crate::userdata::files;

const SSHD_CONFIG: &str = "/etc/ssh/sshd_config";
/// The server's unit: Debian's name for it, and others'.
const SERVERS: [&str; 2] = ["ssh.service", "sshd.service"];
/// Where a distribution's and an administrator's units are.
const UNITS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What a line of authorized_keys may begin its key with (sshd(8)).
const TYPES: [&str; 22] = [
    "dsa",
    "rsa",
    "ecdsa",
    "ed25519",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ssh-ed25519@openssh.com",
    "ssh-dss-cert-v01@openssh.com",
    "ssh-dss",
    "ssh-ed25519-cert-v01@openssh.com",
    "ssh-ed25519",
    "ssh-rsa-cert-v01@openssh.com",
    "ssh-rsa",
    "ssh-xmss-cert-v01@openssh.com",
    "ssh-xmss@openssh.com",
];

/// A line with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    options: String,
    kind: String,
    data: String,
    comment: String,
}

impl Key {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        Self::without_options(line).or_else(|| {
            let (options, rest) = split_options(line);
            let key = Self::without_options(rest.trim_start())?;
            let options = options.to_owned();
            Some(Self { options, ..key })
        })
    }

    fn without_options(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(|c: char| c.is_whitespace())?;
        let rest = rest.trim_start();
        let (data, comment) = rest
            .split_once(|c: char| c.is_whitespace())
            .unwrap_or((rest, ""));
        (TYPES.contains(&kind) && !data.is_empty()).then(|| Self {
            options: String::new(),
            kind: kind.to_owned(),
            data: data.to_owned(),
            comment: comment.trim_start().to_owned(),
        })
    }

    fn line(&self) -> String {
        let words = [&self.options, &self.kind, &self.data, &self.comment];
        let words = words.into_iter().filter(|word| !word.is_empty());
        words.map(|word| &**word).collect::<Vec<_>>().join(" ")
    }
}

/// What is before the first blank that is not within quotes, and the rest.
fn split_options(line: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, letter) in line.char_indices() {
        match letter {
            ' ' | '\t' if !quoted => return line.split_at(at),
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
    }
    (line, "")
}

/// Longer files of keys are not read: they are a user's.
const MAX_KEYS: u64 = 256 << 10;

/// A user's file of keys.
struct KeyFile<'a> {
    user: &'a User,
    path: PathBuf,
    /// What it has, if it is there.
    text: Option<String>,
}

impl<'a> KeyFile<'a> {
    fn read(user: &'a User) -> io::Result<Self> {
        let path = keys_file(user)?;
        let text = match File::open(&path) {
            Ok(file) => {
                let mut text = String::new();
                file.take(MAX_KEYS + 1).read_to_string(&mut text)?;
                if text.len() as u64 > MAX_KEYS {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                Some(text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { user, path, text })
    }

    fn lines(&self) -> std::str::Lines<'_> {
        self.text.as_deref().unwrap_or_default().lines()
    }

    fn write(&self, lines: &[String]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            make_folders(folder, self.user)?;
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        files::rewrite(&self.path, text.as_bytes(), 0o600)?;
        match self.text {
            Some(_) => Ok(()),
            None => chown(&self.path, Some(self.user.uid), Some(self.user.gid)),
        }
    }
}

/// Has `with` do something with a user's file of keys.
fn with_keys<T>(
    accounts: &Accounts,
    name: &str,
    with: impl FnOnce(&KeyFile) -> io::Result<T>,
) -> Result<T, String> {
    let user = accounts
        .user(name)
        .ok_or_else(|| format!("ssh: there is no user {name:?}"))?;
    let done = KeyFile::read(&user).and_then(|file| with(&file));
    done.map_err(|error| format!("ssh: {name}: authorized_keys: {error}"))
}

/// Adds keys to a user's authorized_keys, with these options instead of their own. One that is there
/// already is replaced.
pub fn add(
    accounts: &Accounts,
    name: &str,
    keys: &[String],
    options: Option<&str>,
) -> Result<(), String> {
    put(accounts, name, keys, options, false)
}

/// As [`add`], and takes away what else is there.
pub fn replace(accounts: &Accounts, name: &str, keys: &[String]) -> Result<(), String> {
    put(accounts, name, keys, None, true)
}

fn put(
    accounts: &Accounts,
    name: &str,
    keys: &[String],
    options: Option<&str>,
    alone: bool,
) -> Result<(), String> {
    let mut new: Vec<Key> = Vec::new();
    let mut odd = Vec::new();
    for line in keys {
        match Key::parse(line) {
            Some(key) => {
                let options = options.map_or(key.options.clone(), str::to_owned);
                let key = Key { options, ..key };
                if !new.contains(&key) {
                    new.push(key);
                }
            }
            None if line.trim().is_empty() => {}
            None => odd.push(line.chars().take(40).collect::<String>()),
        }
    }
    with_keys(accounts, name, |file| {
        let mut lines = Vec::new();
        for line in file.lines().filter(|_| !alone) {
            let same =
                Key::parse(line).and_then(|old| new.iter().position(|key| key.data == old.data));
            match same {
                Some(at) => lines.push(new.remove(at).line()),
                None => lines.push(line.to_owned()),
            }
        }
        lines.extend(new.iter().map(Key::line));
        file.write(&lines)
    })?;
    match odd.is_empty() {
        true => Ok(()),
        false => Err(format!("ssh: {name}: not a public key: {odd:?}")),
    }
}

/// The keys with which a user may log in, a line a key.
pub fn keys(accounts: &Accounts, name: &str) -> Result<Vec<String>, String> {
    with_keys(accounts, name, |file| {
        let keys = file.lines().filter(|line| Key::parse(line).is_some());
        Ok(keys.map(str::to_owned).collect())
    })
}

/// Takes keys away, whatever their options and comments are.
pub fn remove(accounts: &Accounts, name: &str, keys: &[String]) -> Result<(), String> {
    let gone: Vec<Key> = keys.iter().filter_map(|line| Key::parse(line)).collect();
    with_keys(accounts, name, |file| {
        let stays = |line: &&str| {
            let key = Key::parse(line);
            !key.is_some_and(|key| gone.iter().any(|gone| gone.data == key.data))
        };
        let lines: Vec<String> = file.lines().filter(stays).map(str::to_owned).collect();
        match lines.len() == file.lines().count() {
            true => Ok(()),
            false => file.write(&lines),
        }
    })
}

/// Where sshd looks for a user's keys.
fn keys_file(user: &User) -> io::Result<PathBuf> {
    let pattern = option("AuthorizedKeysFile").unwrap_or_default();
    let home = user.home.display().to_string();
    let own = |path: &&str| !path.starts_with('/') || path.contains("%u") || path.contains("%h");
    let pattern = pattern.split_whitespace().find(own);
    let path = pattern
        .unwrap_or("%h/.ssh/authorized_keys")
        .replace("%h", &home)
        .replace("%u", &user.name)
        .replace("%%", "%");
    let path = user.home.join(path);
    // A link would have root write where its maker could not.
    let mut at = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            return Err(io::Error::other(format!(
                "{}: not a plain path",
                path.display()
            )));
        }
        at.push(part);
        if at.starts_with(&user.home) && at != user.home && at.is_symlink() {
            return Err(io::Error::other(format!("{} is a link", at.display())));
        }
    }
    Ok(path)
}

fn make_folders(folder: &Path, user: &User) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above, user)?;
    }
    fs::create_dir(folder)?;
    labels::wrote(folder);
    let own = folder.starts_with(&user.home) && folder != user.home;
    let (mode, uid, gid) = match own {
        true => (0o700, user.uid, user.gid),
        false => (0o755, 0, 0),
    };
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    chown(folder, Some(uid), Some(gid))
}

/// The value of a keyword of sshd_config(5).
fn option(keyword: &str) -> Option<String> {
    let text = fs::read_to_string(SSHD_CONFIG).ok()?;
    let mut values = text.lines().filter_map(|line| {
        let (key, value) = keyword_of(line)?;
        key.eq_ignore_ascii_case(keyword).then(|| value.to_owned())
    });
    values.next_back()
}

fn keyword_of(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line
        .split_once(|c: char| c.is_whitespace())
        .or_else(|| line.split_once('='))?;
    Some((key, value.trim()))
}

/// Has a server that runs, or that could not start for want of keys, begin anew: its keys are others.
pub fn restart() -> Result<(), String> {
    let Some(unit) = unit() else {
        return Ok(());
    };
    let has_failed = Program::new(&["systemctl", "is-failed", "--quiet", unit]).run();
    let verb = match has_failed {
        Ok(()) => "restart",
        // One that is yet to start reads them then.
        Err(_) => "try-restart",
    };
    Program::new(&["systemctl", "--no-block", verb, unit]).run()
}

/// Has a server that runs read its configuration again.
pub fn reload() -> Result<(), String> {
    match unit() {
        Some(unit) => Program::new(&["systemctl", "try-reload-or-restart", unit]).run(),
        None => Ok(()),
    }
}

/// The server's unit, where systemd runs and has one.
fn unit() -> Option<&'static str> {
    let is_there = |unit: &&str| {
        let mut folders = UNITS.iter().map(|folder| Path::new(folder).join(unit));
        folders.any(|path| path.exists())
    };
    SERVERS.into_iter().find(is_there).filter(|_| has_systemd())
}

/// Sets a keyword of sshd_config(5), in a file of its own where sshd reads such. Whether it changed.
pub fn set_option(keyword: &str, value: &str) -> io::Result<bool> {
    let main = Path::new(SSHD_CONFIG);
    let folder = format!("{SSHD_CONFIG}.d");
    let text = match fs::read_to_string(main) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let include = format!("Include {folder}/*.conf");
    if !text.lines().any(|line| line.starts_with(&include)) {
        return set_in(main, &text, keyword, value, 0o644);
    }
    files::make_folders(folder.as_ref())?;
    let file = Path::new(&folder).join("50-cloud-init.conf");
    let text = fs::read_to_string(&file).unwrap_or_default();
    set_in(&file, &text, keyword, value, 0o600)
}

fn set_in(file: &Path, text: &str, keyword: &str, value: &str, mode: u32) -> io::Result<bool> {
    let mut found = false;
    let mut changed = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        match keyword_of(line) {
            Some((key, old)) if key.eq_ignore_ascii_case(keyword) => {
                found = true;
                changed |= old != value;
                lines.push(format!("{key} {value}"));
            }
            _ => lines.push(line.trim().to_owned()),
        }
    }
    if !found {
        lines.push(format!("{keyword} {value}"));
        changed = true;
    }
    if changed {
        files::rewrite(file, format!("{}\n", lines.join("\n")).as_bytes(), mode)?;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_options_a_key_and_a_comment() {
        let key =
            Key::parse("command=\"echo \\\"a b\\\"\",no-pty ssh-rsa AAAA me@home  x").unwrap();
        assert_eq!(key.options, "command=\"echo \\\"a b\\\"\",no-pty");
        assert_eq!(
            (&*key.kind, &*key.data, &*key.comment),
            ("ssh-rsa", "AAAA", "me@home  x")
        );
        assert_eq!(Key::parse("ssh-rsa AAAA").unwrap().line(), "ssh-rsa AAAA");
        for line in ["", "# ssh-rsa AAAA", "ssh-rsa", "hello AAAA"] {
            assert_eq!(Key::parse(line), None, "{line}");
        }
    }

    #[test]
    fn an_option_is_changed_where_it_is_or_added() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c");
        let text = "# x\nport 22\nPasswordAuthentication no\n";
        assert!(set_in(&file, text, "PasswordAuthentication", "yes", 0o644).unwrap());
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "# x\nport 22\nPasswordAuthentication yes\n");
        assert!(!set_in(&file, &text, "passwordauthentication", "yes", 0o644).unwrap());
        assert!(set_in(&file, "", "A", "b", 0o644).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "A b\n");
    }
}
