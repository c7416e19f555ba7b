//! Reads and writes a file for the VMM.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::Line;
use crate::labels;
use crate::protocol::{self, Kind, Reply, stream};

const PIECE: usize = 256 << 10;
/// Permissions of a new file, where none are given.
const MODE: u32 = 0o644;
const PERMISSIONS: u32 = 0o7777;

/// Sends a file's bytes, then how it ended.
pub fn read(path: &str, line: &Line) -> io::Result<()> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) => return line.reply(&refusal(path, &error)),
    };
    let mode = file.metadata()?.permissions().mode() & PERMISSIONS;
    let mut bytes = vec![0; PIECE];
    loop {
        match file.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => line.data(stream::OUT, bytes.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return line.reply(&refusal(path, &error)),
        }
    }
    line.data(stream::OUT, &[])?;
    line.reply(&Reply::File { mode })
}

fn open(path: &str) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

/// Writes what comes to a file, which is there as a whole or as it was.
pub fn write(path: &str, mode: Option<u32>, from: &mut UnixStream, line: &Line) -> io::Result<()> {
    let path = Path::new(path);
    let written = New::make(path, mode).and_then(|mut new| {
        while let Some(frame) = protocol::read(from).map_err(io::Error::other)? {
            match (frame.kind, frame.payload.split_first()) {
                (Kind::Data, Some((&stream::IN, []))) => return new.finish(path),
                (Kind::Data, Some((&stream::IN, bytes))) => new.file.write_all(bytes)?,
                _ => {}
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    });
    match written {
        Ok(()) => line.reply(&Reply::Ok),
        Err(error) => line.reply(&refusal(&path.to_string_lossy(), &error)),
    }
}

fn refusal(path: &str, error: &io::Error) -> Reply {
    Reply::Error(format!("{path}: {error}"))
}

/// A file beside the one that it is to be; gone if it does not become that.
struct New {
    file: File,
    place: PathBuf,
    finished: bool,
}

impl New {
    fn make(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(
            ".peapod-{}",
            rustix::thread::gettid().as_raw_nonzero()
        ));
        let place = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&place)?;
        let new = Self {
            file,
            place,
            finished: false,
        };
        let before = fs::metadata(path).map(|there| there.permissions().mode());
        let mode = mode.or(before.ok()).unwrap_or(MODE) & PERMISSIONS;
        new.file.set_permissions(Permissions::from_mode(mode))?;
        Ok(new)
    }

    fn finish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.place, path)?;
        self.finished = true;
        labels::wrote(path);
        labels::put_right().map_err(io::Error::other)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.place);
        }
    }
}
