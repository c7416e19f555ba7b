//! `virt-tail`: prints the lines of a log as they come, from its beginning, also when another file
//! takes its place.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Stop;

/// How soon a line is seen.
const GLANCE: Duration = Duration::from_millis(250);
/// A longer line is printed in pieces.
const PIECE: usize = 64 << 10;

/// Arguments of `virt-tail`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The log, which may be yet to come
    #[arg(long, value_name = "FILE")]
    logfile: PathBuf,
}

/// Prints until a signal comes.
pub fn follow(args: &Args) -> Result<(), String> {
    let stop = Stop::start();
    let follow = |stop: Stop| {
        let mut tail = Tail::new(&args.logfile);
        while !stop.came(None, GLANCE)? {
            tail.print(&mut io::stdout().lock())?;
        }
        tail.print(&mut io::stdout().lock())
    };
    stop.and_then(follow)
        .map_err(|error| format!("virt-tail: {error}"))
}

struct Tail<'a> {
    path: &'a Path,
    file: Option<File>,
    /// How much of the file was read.
    at: u64,
    /// The beginning of a line.
    begun: Vec<u8>,
}

impl<'a> Tail<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            file: None,
            at: 0,
            begun: Vec::new(),
        }
    }

    /// Prints the lines that have come since.
    fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        loop {
            if self.file.is_none() {
                self.file = File::open(self.path).ok();
                self.at = 0;
            }
            let Some(file) = &mut self.file else {
                return Ok(());
            };
            let mut bytes = [0; 8192];
            let count = file.read(&mut bytes)?;
            self.at += count as u64;
            self.begun.extend(bytes.get(..count).unwrap_or_default());
            let whole = self.begun.iter().rposition(|byte| *byte == b'\n');
            let whole = whole.map_or(0, |end| end + 1);
            let printed = if self.begun.len() - whole > PIECE {
                self.begun.len()
            } else {
                whole
            };
            out.write_all(self.begun.get(..printed).unwrap_or_default())?;
            self.begun.drain(..printed);
            if count == 0 {
                out.flush()?;
                if !self.is_replaced() {
                    return Ok(());
                }
                self.file = None;
            }
        }
    }

    /// Whether another file is there now, or this one was cut.
    fn is_replaced(&self) -> bool {
        let Some(old) = self.file.as_ref().and_then(|file| file.metadata().ok()) else {
            return true;
        };
        let there = std::fs::metadata(self.path);
        there.is_ok_and(|new| {
            (new.dev(), new.ino()) != (old.dev(), old.ino()) || new.len() < self.at
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn whole_lines_are_printed_once_and_a_new_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::new(&path);
        let mut seen = |text: &str| {
            let mut out = Vec::new();
            tail.print(&mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
        };
        seen("");
        fs::write(&path, "one\ntw").unwrap();
        seen("one\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"o\n").unwrap();
        seen("two\n");
        seen("");
        fs::rename(&path, folder.path().join("log.0")).unwrap();
        seen("");
        fs::write(&path, "three\n").unwrap();
        seen("three\n");
        fs::write(&path, "4\n").unwrap();
        seen("4\n");
        fs::write(&path, vec![b'x'; PIECE + 9000]).unwrap();
        seen(&"x".repeat(PIECE + 9000)[..73_728]);
    }
}
