//! Programs of the guest, run one after the other, their output on the console and in the log.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::termios::tcdrain;

use crate::accounts::Accounts;
use crate::children;
use crate::labels;

/// Where the output goes, beside the console.
const OUTPUT: &str = "/var/log/cloud-init-output.log";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the output of a program that has ended may come late. What it left in the background
/// may hold its end of the pipe for ever.
const LATE: Duration = Duration::from_millis(200);

/// A program to run.
pub struct Program(Command);

impl Program {
    /// With these words; the first is looked for in the usual folders.
    pub fn new<W: AsRef<OsStr>>(words: &[W]) -> Self {
        let mut words = words.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new("true"), AsRef::as_ref));
        command
            .args(words)
            .current_dir("/")
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        Self(command)
    }

    /// With one more word in its environment.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.0.env(key, value);
        self
    }

    /// Runs it; an error says how it ended.
    pub fn run(mut self) -> Result<(), String> {
        let name = self.0.get_program().to_string_lossy().into_owned();
        let failed = |why: &str| format!("{name}: {why}");
        let (reader, writer) = io::pipe().map_err(|e| failed(&e.to_string()))?;
        let error_writer = writer.try_clone().map_err(|e| failed(&e.to_string()))?;
        self.0.stdout(writer).stderr(error_writer);
        let child = children::spawn(&mut self.0).map_err(|e| failed(&e.to_string()))?;
        // The command holds the pipe's other end too.
        drop(self.0);
        let (sender, copied) = channel();
        thread::spawn(move || {
            copy_output(reader);
            // Who waited may have lost patience.
            let _ = sender.send(());
        });
        let status = child.wait();
        let _ = copied.recv_timeout(LATE);
        match children::failure(status) {
            None => Ok(()),
            Some(how) => Err(failed(&how)),
        }
    }
}

/// Whether systemd runs the guest (sd_booted(3)).
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether the guest has a program of this name.
pub fn exists(name: &str) -> bool {
    PATH.split(':')
        .any(|folder| is_executable(&Path::new(folder).join(name)))
}

fn is_executable(path: &Path) -> bool {
    let metadata = fs::metadata(path);
    metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs every executable in `folder`, by name, one after the other, with `prefix` before it; a line
/// for each that failed. Before the first `begin` is called, if there is one.
pub fn run_folder(folder: &Path, prefix: &[String], begin: impl FnOnce()) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut scripts: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    scripts.retain(|path| is_executable(path));
    scripts.sort_unstable();
    if !scripts.is_empty() {
        begin();
    }
    let run = |script: &PathBuf| {
        let mut words: Vec<&OsStr> = prefix.iter().map(OsStr::new).collect();
        words.push(script.as_os_str());
        Program::new(&words).run().err()
    };
    scripts.iter().filter_map(run).collect()
}

/// Says something where programs do.
pub fn tell(text: &str) {
    for file in places().iter_mut().flatten() {
        write(file, text.as_bytes());
    }
}

/// Whether it could be written. What a terminal has not sent yet is lost when a getty starts on it,
/// which empties its queues, so it is waited for.
fn write(mut file: &File, bytes: &[u8]) -> bool {
    let written = file.write_all(bytes).is_ok();
    if written {
        // Not every place is a terminal.
        let _ = tcdrain(file);
    }
    written
}

fn places() -> [Option<File>; 2] {
    let console = OpenOptions::new().append(true).open("/dev/console");
    [log().ok(), console.ok()]
}

/// The log, which is root's and the administrators' to read, for scripts tell secrets.
fn log() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640);
    match options.clone().create_new(true).open(OUTPUT) {
        Ok(file) => {
            labels::wrote(OUTPUT.as_ref());
            fchown(&file, Some(0), Accounts::of_this_root().gid("adm"))?;
            Ok(file)
        }
        Err(_) => options.open(OUTPUT),
    }
}

/// Copies what a program says, as it comes.
fn copy_output(mut from: PipeReader) {
    let mut places = places();
    let mut bytes = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        let said = bytes.get(..n).unwrap_or_default();
        for place in &mut places {
            // A full disk must not stop the program; it loses its log.
            if place.as_mut().is_some_and(|file| !write(file, said)) {
                *place = None;
            }
        }
    }
}
