//! authorized_keys and sshd_config.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use crate::accounts::{Accounts, User};
use crate::userdata::files;

const SSHD_CONFIG: &str = "/etc/ssh/sshd_config";

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

/// Adds keys to a user's authorized_keys, with these options instead of their own. One that is there
/// already is replaced.
pub fn add(
    accounts: &Accounts,
    name: &str,
    keys: &[String],
    options: Option<&str>,
) -> Result<(), String> {
    let user = accounts
        .user(name)
        .ok_or_else(|| format!("ssh: there is no user {name:?}"))?;
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
    let failed = |error: io::Error| format!("ssh: {name}: authorized_keys: {error}");
    let file = keys_file(&user).map_err(failed)?;
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let mut lines = Vec::new();
    for line in text.lines() {
        let same = Key::parse(line).and_then(|old| new.iter().position(|key| key.data == old.data));
        match same {
            Some(at) => lines.push(new.remove(at).line()),
            None => lines.push(line.to_owned()),
        }
    }
    lines.extend(new.iter().map(Key::line));
    lines.push(String::new());
    let text = if lines.len() == 1 {
        String::new()
    } else {
        lines.join("\n")
    };
    let is_new = !file.exists();
    files::rewrite(&file, text.as_bytes(), 0o600).map_err(failed)?;
    if is_new {
        chown(&file, Some(user.uid), Some(user.gid)).map_err(failed)?;
    }
    match odd.is_empty() {
        true => Ok(()),
        false => Err(format!("ssh: {name}: not a public key: {odd:?}")),
    }
}

/// Where sshd looks for a user's keys; the folders that it lacks are made.
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
    if let Some(folder) = path.parent() {
        make_folders(folder, user)?;
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
    fs::create_dir_all(&folder)?;
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
