//! Who is logged in: utmp(5), or what systemd-logind knows where nobody writes that any more.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::protocol::User;

const UTMP: &str = "/run/utmp";
/// Of systemd-logind, a file a session.
const SESSIONS: &str = "/run/systemd/sessions";
/// The length of a `struct utmp`, and where its fields are: the same on x86-64 and arm64, but for
/// the time, which only the first has in 32 bits.
const RECORD: usize = 384;
const TERMINAL: std::ops::Range<usize> = 8..40;
const NAME: std::ops::Range<usize> = 44..76;
const HOST: std::ops::Range<usize> = 76..332;
const TIME: std::ops::Range<usize> = 340..348;
/// Its first field where it is somebody's login.
const USER_PROCESS: u16 = 7;
/// More are not told of.
const MOST: usize = 64;
/// A longer file is not one.
const MAX_SESSION: u64 = 64 << 10;

/// Everybody who is.
pub fn all() -> Vec<User> {
    let mut records = Vec::new();
    if let Ok(file) = File::open(UTMP) {
        // What cannot be read has nobody.
        let _ = file.take(1 << 20).read_to_end(&mut records);
    }
    let users = in_utmp(&records);
    match users.is_empty() {
        true => in_sessions(Path::new(SESSIONS)),
        false => users,
    }
}

fn in_utmp(records: &[u8]) -> Vec<User> {
    let read = |record: &[u8]| {
        let kind: [u8; 2] = record.get(..2)?.try_into().ok()?;
        if u16::from_ne_bytes(kind) != USER_PROCESS {
            return None;
        }
        let text = |field| {
            let bytes: &[u8] = record.get(field)?;
            let bytes = bytes.split(|byte| *byte == 0).next()?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let time: [u8; 8] = record.get(TIME)?.try_into().ok()?;
        let [s0, s1, s2, s3, u0, u1, u2, u3] = time;
        let seconds = u64::from(u32::from_ne_bytes([s0, s1, s2, s3]));
        let micros = u64::from(u32::from_ne_bytes([u0, u1, u2, u3]));
        Some(User {
            name: text(NAME)?,
            terminal: text(TERMINAL)?,
            host: text(HOST)?,
            since_ms: seconds * 1000 + micros / 1000,
        })
    };
    let (records, _) = records.as_chunks::<RECORD>();
    records
        .iter()
        .filter_map(|record| read(record))
        .take(MOST)
        .collect()
}

fn in_sessions(folder: &Path) -> Vec<User> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let files = entries.filter_map(|entry| {
        let mut text = String::new();
        let file = File::open(entry.ok()?.path()).ok()?;
        file.take(MAX_SESSION).read_to_string(&mut text).ok()?;
        session(&text)
    });
    files.take(MOST).collect()
}

fn session(text: &str) -> Option<User> {
    let word = |key: &str| {
        let line = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name == key).then_some(value)
        });
        line.unwrap_or_default().to_owned()
    };
    // The others are a login screen's, or a service's.
    let is_somebody = word("CLASS").starts_with("user") && word("STATE") != "closing";
    is_somebody.then(|| User {
        name: word("USER"),
        terminal: word("TTY"),
        host: word("REMOTE_HOST"),
        since_ms: word("REALTIME").parse::<u64>().unwrap_or_default() / 1000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_from_utmp_and_a_boot_is_none() {
        let mut records = vec![0; 2 * RECORD + 7];
        records[0] = 2; // BOOT_TIME
        let login = &mut records[RECORD..];
        login[0] = 7;
        login[8..13].copy_from_slice(b"pts/0");
        login[44..48].copy_from_slice(b"anna");
        login[76..84].copy_from_slice(b"10.0.2.2");
        login[340..344].copy_from_slice(&1_700_000_000u32.to_ne_bytes());
        login[344..348].copy_from_slice(&250_000u32.to_ne_bytes());
        let anna = User {
            name: "anna".to_owned(),
            terminal: "pts/0".to_owned(),
            host: "10.0.2.2".to_owned(),
            since_ms: 1_700_000_000_250,
        };
        assert_eq!(in_utmp(&records), [anna]);
        assert_eq!(in_utmp(&[7; 100]), []);
    }

    #[test]
    fn where_there_is_no_utmp_logind_knows() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "1",
            "# This is private data.\nUID=1000\nUSER=anna\nACTIVE=1\nSTATE=active\nTTY=tty1\n\
             CLASS=user\nREALTIME=1700000000250000\n",
        );
        write("2", "USER=Debian-gdm\nCLASS=greeter\nSTATE=online\n");
        write("3", "USER=bob\nCLASS=user\nSTATE=closing\n");
        let users = in_sessions(folder.path());
        assert_eq!(users.len(), 1);
        assert_eq!((&*users[0].name, &*users[0].terminal), ("anna", "tty1"));
        assert_eq!(users[0].since_ms, 1_700_000_000_250);
    }
}
