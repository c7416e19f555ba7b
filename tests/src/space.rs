//! Network namespaces, and processes and threads inside them. Who makes them has a process
//! namespace and a /run of its own, so that whatever ends it, nothing stays behind.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{
    Resource, Signal, getrlimit, getuid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The first argument of a program that [`enclose`] has started again.
pub const ENCLOSED: &str = "--enclosed";

/// Goes on as the first process of namespaces that end with it, as it does with whoever called
/// this; with as many descriptors as the machine lets it have. Fails for anybody but root.
pub fn enclose() -> io::Result<()> {
    if !getuid().is_root() {
        let error = "it makes network namespaces: run it as root";
        return Err(io::Error::other(error));
    }
    if std::env::args().nth(1).as_deref() == Some(ENCLOSED) {
        for words in [
            "--make-rprivate /",
            "-t proc none /proc",
            "-t tmpfs none /run",
        ] {
            run(Command::new("mount").args(words.split(' ')))?;
        }
        return all_descriptors();
    }
    // SAFETY: what this may break is a thread's use of descriptors, which stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWPID)? };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ENCLOSED).args(std::env::args_os().skip(1));
    // SAFETY: between fork and exec this makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    // Whatever ends this, the kernel ends the other and all that is in its namespaces.
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Lets this process have as many descriptors as the machine lets it.
pub fn all_descriptors() -> io::Result<()> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    Ok(setrlimit(Resource::Nofile, files)?)
}

/// A network namespace, which goes with this.
#[derive(Debug)]
pub struct Space {
    /// As `ip` knows it.
    pub name: String,
}

impl Space {
    /// Makes one, with its loopback up, that is called `role` and a number.
    pub fn new(role: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{role}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let space = Self { name };
        // Nobody else is there who could have the same address.
        space.shell("ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")?;
        Ok(space)
    }

    /// Its file.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    fn open(&self) -> io::Result<File> {
        File::open(self.path()).map_err(|e| about(&self.path(), e))
    }

    /// The command, to be run inside. A Ctrl-C at the terminal is not for it.
    pub fn command(&self, program: &str) -> io::Result<Command> {
        let space = self.open()?;
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: between fork and exec this makes one system call and allocates nothing.
        unsafe { command.pre_exec(move || enter(&space)) };
        Ok(command)
    }

    /// Runs a script inside, which has to succeed.
    pub fn shell(&self, script: &str) -> io::Result<()> {
        run(self.command("sh")?.args(["-ec", script]))
    }

    /// Does `work` inside, on a thread of its own. A socket stays where it was made.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let space = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&space).map(|()| work()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The calling thread goes on in that namespace.
fn enter(space: &File) -> io::Result<()> {
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(io::Error::from)
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// A process of which each line is waited for; killed in the end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its standard input.
    pub input: Option<ChildStdin>,
    lines: Mutex<Receiver<String>>,
}

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| about(&format!("{:?}", command.get_program()), e))?;
        let (sender, lines) = channel();
        let input = child.stdin.take();
        if let Some(output) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self {
            child,
            input,
            lines: Mutex::new(lines),
        })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What it says next.
    pub fn line(&self, limit: Duration) -> io::Result<String> {
        let lines = self.lines.lock().map_err(|_| io::Error::other("lock"))?;
        let line = lines.recv_timeout(limit);
        line.map_err(|_| io::Error::other("not a word"))
    }

    /// The next line's numbers.
    pub fn numbers<const N: usize>(&self, limit: Duration) -> io::Result<[f64; N]> {
        let line = self.line(limit)?;
        let numbers: Vec<f64> = line.split(' ').map_while(|n| n.parse().ok()).collect();
        numbers.try_into().map_err(|_| io::Error::other(line))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) -> io::Result<()> {
    let status = command
        .status()
        .map_err(|e| about(&format!("{:?}", command.get_program()), e))?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {status}")))
}

/// The error with what it is about.
pub fn about(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
