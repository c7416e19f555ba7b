//! A VM under test: `peapod run` as a child process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::bench::cpu_seconds;

/// The VMM under test: `PEAPOD_BIN`, else the one built beside this test.
pub fn peapod() -> PathBuf {
    binary("PEAPOD_BIN", "peapod")
}

/// The network under test: `PEAPOD_NET`, else the one built beside this test.
pub fn peapod_net() -> PathBuf {
    binary("PEAPOD_NET", "peapod-net")
}

fn binary(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(2).expect("target directory");
    target.join(name)
}

/// A file that `images/build` made.
pub fn image(name: &str) -> PathBuf {
    let directory = std::env::var_os("PEAPOD_IMAGES")
        .expect("PEAPOD_IMAGES is not set: run these tests by `make test`");
    PathBuf::from(directory).join(name)
}

/// An image in `directory` whose rest is in one that `images/build` made; that one's folder.
pub fn overlay(directory: &Path, base: &str, format: &str) -> (PathBuf, PathBuf) {
    let base = image(base).canonicalize().unwrap();
    (
        overlay_of(directory, &base, format),
        base.parent().unwrap().to_owned(),
    )
}

/// An image in `directory` whose rest is in that one.
pub fn overlay_of(directory: &Path, base: &Path, format: &str) -> PathBuf {
    let disk = directory.join("disk.qcow2");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    let made = create.arg(base).arg(&disk).status();
    assert!(made.unwrap().success(), "{create:?}");
    disk
}

/// A running VM; killed when dropped. A test that fails shows what was seen of it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Lines,
    log: Lines,
}

impl Vm {
    /// Starts `peapod run` on `manifest` with more arguments.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(manifest: &Path, arguments: I) -> Self {
        let mut command = Command::new(peapod());
        Self::start(command.arg("run").args(arguments).arg(manifest))
    }

    /// Starts a command that is, or becomes, `peapod run`, or a peer's with its console on its standard
    /// output.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start peapod");
        let console = Lines::read(child.stdout.take().expect("piped"));
        let log = Lines::read(child.stderr.take().expect("piped"));
        Self {
            child,
            console,
            log,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the guest's console shows `text` in time; if not, what was seen of it is printed.
    pub fn shows(&self, text: &str, limit: Duration) -> bool {
        let shown = self.console.wait(text, 1, limit);
        if !shown {
            self.tell();
        }
        shown
    }

    /// Waits until the guest's console has shown `text` `count` times.
    pub fn wait_console(&self, text: &str, count: usize, limit: Duration) {
        if !self.console.wait(text, count, limit) {
            self.fail(&format!(
                "the console did not show {text:?} {count} times in {limit:?}"
            ));
        }
    }

    /// Waits until peapod's own log has said `text`.
    pub fn wait_log(&self, text: &str, limit: Duration) {
        self.wait_log_count(text, 1, limit);
    }

    /// Waits until the log has said `text` so often.
    pub fn wait_log_count(&self, text: &str, count: usize, limit: Duration) {
        if !self.log.wait(text, count, limit) {
            self.fail(&format!(
                "the log did not say {text:?} {count} times in {limit:?}"
            ));
        }
    }

    /// What the console has shown.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// What peapod has logged.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid");
        // SAFETY: kill() touches no memory; the pid is our own child's, not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit status, or 128 and the signal that ended it, if it has ended; then all that it said has
    /// been read, but what one of its own children may yet say.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("wait for peapod")?;
        self.console.wait_end(LAST_WORDS);
        self.log.wait_end(LAST_WORDS);
        Some(status.code().unwrap_or(128 + status.signal().unwrap_or(0)))
    }

    /// Waits for the process's end; its exit status, or 128 and the signal that ended it.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.ended() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("peapod did not end in {limit:?}")
    }
}

impl Vm {
    /// Panics, with what was seen of it where nothing is dropped by that, as in a benchmark.
    fn fail(&self, why: &str) -> ! {
        if cfg!(panic = "abort") {
            self.tell();
        }
        panic!("{why}")
    }

    /// Prints what was seen of it.
    fn tell(&self) {
        let (console, log) = (self.console(), self.log());
        let threads = threads(self.pid());
        eprintln!("--- console ---\n{console}\n--- log ---\n{log}\n{threads}");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What each thread of a process does that is stuck: its name, its CPU time in seconds, where in the
/// kernel it waits, and in which call, or that it runs (proc(5)); twice, for what goes on meanwhile.
/// Nothing of one that has ended.
fn threads(pid: u32) -> String {
    let mut said = String::new();
    for _ in 0..2 {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            break;
        };
        for task in tasks.flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let id = task.file_name();
            let cpu = cpu_seconds(format!("{pid}/task/{}", id.display())).unwrap_or_default();
            let (name, place, call) = (read("comm"), read("wchan"), read("syscall"));
            let (name, call) = (name.trim(), call.trim());
            said += &format!("{name}: {cpu:.2} s {place} {call}\n");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    if said.is_empty() {
        return said;
    }
    format!("--- threads ---\n{said}")
}

/// How long what an ended process has left in a pipe may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a pipe has said so far, read by a thread of its own.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<(Mutex<Said>, Condvar)>);

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    /// Nothing more will come.
    ended: bool,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            let (said, changed) = &*writer.0;
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                said.lock().expect("lock").lines.push(text);
                changed.notify_all();
            }
            said.lock().expect("lock").ended = true;
            changed.notify_all();
        });
        lines
    }

    /// Waits until `text` was said `count` times; false when it was not in time.
    fn wait(&self, text: &str, count: usize, limit: Duration) -> bool {
        self.wait_until(limit, |said| {
            said.lines.iter().filter(|l| l.contains(text)).count() >= count
        })
    }

    /// Waits until the pipe's other end is closed; false when it was not in time.
    fn wait_end(&self, limit: Duration) -> bool {
        self.wait_until(limit, |said| said.ended)
    }

    fn wait_until(&self, limit: Duration, mut holds: impl FnMut(&Said) -> bool) -> bool {
        let (said, changed) = &*self.0;
        let guard = said.lock().expect("lock");
        let (_guard, timeout) = changed
            .wait_timeout_while(guard, limit, |said| !holds(said))
            .expect("lock");
        !timeout.timed_out()
    }

    fn text(&self) -> String {
        self.0.0.lock().expect("lock").lines.join("\n")
    }
}
