//! Files that the VMM has open in the guest.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Open at once.
const MOST: usize = 256;
/// What is read where nobody says how much, and at most.
const COUNT: u64 = 4096;
const MAX_COUNT: u64 = 4 << 20;

/// The open files, by their handles.
#[derive(Debug, Default)]
pub struct Files {
    open: BTreeMap<i64, File>,
    last: i64,
}

fn told(error: io::Error) -> String {
    error.to_string()
}

impl Files {
    /// Opens a file by a mode of fopen(3).
    pub fn open(&mut self, path: &str, mode: &str) -> Result<Value, String> {
        if self.open.len() >= MOST {
            return Err(format!("{MOST} files are open already"));
        }
        let mut options = OpenOptions::new();
        // The letters may stand in any order after the first.
        let plus = mode.contains('+');
        let rest = mode.trim_start_matches(['r', 'w', 'a']);
        if mode.len() != rest.len() + 1 || rest.contains(|c| !"b+".contains(c)) {
            return Err(format!("invalid file open mode '{mode}'"));
        }
        match mode.chars().next() {
            Some('r') => options.read(true).write(plus),
            Some('w') => options.write(true).read(plus).create(true).truncate(true),
            _ => options.append(true).read(plus).create(true),
        };
        // Whoever holds the other end of a pipe must not hold up everybody.
        options.custom_flags(libc::O_NONBLOCK);
        let file = options
            .open(path)
            .map_err(|error| format!("failed to open file '{path}' (mode: '{mode}'): {error}"))?;
        self.last += 1;
        self.open.insert(self.last, file);
        Ok(self.last.into())
    }

    fn at(&mut self, handle: i64) -> Result<&mut File, String> {
        let file = self.open.get_mut(&handle);
        file.ok_or_else(|| format!("handle '{handle}' has not been found"))
    }

    /// Reads on.
    pub fn read(&mut self, handle: i64, count: Option<i64>) -> Result<Value, String> {
        let count = count.map_or(Ok(COUNT), u64::try_from);
        let count = count.ok().filter(|count| *count <= MAX_COUNT);
        let count = count.ok_or_else(|| format!("count is not one of 0 to {MAX_COUNT}"))?;
        let file = self.at(handle)?;
        let mut bytes = Vec::new();
        file.take(count).read_to_end(&mut bytes).map_err(told)?;
        let eof = (bytes.len() as u64) < count;
        Ok(json!({ "count": bytes.len(), "buf-b64": STANDARD.encode(&bytes), "eof": eof }))
    }

    /// Writes on.
    pub fn write(&mut self, handle: i64, data: &str, count: Option<i64>) -> Result<Value, String> {
        let bytes = decode(data)?;
        let count = match count {
            None => bytes.len(),
            Some(count) => usize::try_from(count).map_err(|_| "count is negative".to_owned())?,
        };
        let bytes = bytes.get(..count).ok_or("count is more than there is")?;
        let file = self.at(handle)?;
        file.write_all(bytes).map_err(told)?;
        Ok(json!({ "count": count, "eof": false }))
    }

    /// Goes elsewhere.
    pub fn seek(&mut self, handle: i64, offset: i64, whence: &Value) -> Result<Value, String> {
        let start = || u64::try_from(offset).map_err(|_| "offset is negative".to_owned());
        let to = match (whence.as_str(), whence.as_i64()) {
            (Some("set"), _) | (_, Some(0)) => SeekFrom::Start(start()?),
            (Some("cur"), _) | (_, Some(1)) => SeekFrom::Current(offset),
            (Some("end"), _) | (_, Some(2)) => SeekFrom::End(offset),
            _ => return Err(format!("whence is not set, cur or end but {whence}")),
        };
        let file = self.at(handle)?;
        let position = file.seek(to).map_err(told)?;
        Ok(json!({ "position": position, "eof": false }))
    }

    /// As fflush(3): nothing that was written is held back here.
    pub fn flush(&mut self, handle: i64) -> Result<(), String> {
        self.at(handle)?.flush().map_err(told)
    }

    /// Closes it.
    pub fn close(&mut self, handle: i64) -> Result<(), String> {
        self.at(handle)?;
        self.open.remove(&handle);
        Ok(())
    }
}

/// Bytes of base64.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|error| format!("not base64: {error}"))
}
