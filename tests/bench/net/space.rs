//! Network namespaces, and processes inside them. The bench has a process namespace and a /run of
//! its own, so that whatever ends it, nothing stays behind.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Goes on as the first process of namespaces that end with it.
pub fn enclose() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--enclosed") {
        run(Command::new("mount").args(["-t", "tmpfs", "none", "/run"]))?;
        // The first process of a namespace ignores what it has no handler for.
        // SAFETY: the handler makes one call, which is safe in a handler.
        unsafe {
            libc::signal(libc::SIGINT, interrupted as *const () as usize);
            libc::signal(libc::SIGTERM, interrupted as *const () as usize);
        }
        return Ok(());
    }
    let error = Command::new("unshare")
        .args("--mount --pid --fork --kill-child --mount-proc --".split(' '))
        .arg(std::env::current_exe()?)
        .arg("--enclosed")
        .args(std::env::args_os().skip(1))
        .exec();
    Err(about("unshare", error))
}

extern "C" fn interrupted(_: i32) {
    // SAFETY: nothing is run but the kernel's end of a process.
    unsafe { libc::_exit(130) }
}

/// A network namespace, which goes with this.
pub struct Space {
    /// As `ip` knows it.
    pub name: String,
}

impl Space {
    pub fn new(role: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{role}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let space = Self { name };
        // Nobody else is there who could have the same address.
        space.shell("ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")?;
        Ok(space)
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The command, to be run inside.
    pub fn command(&self, program: &str) -> io::Result<Command> {
        let space = File::open(self.path()).map_err(|e| about(&self.path(), e))?;
        let mut command = Command::new(program);
        let enter = move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
        };
        // SAFETY: between fork and exec this makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    pub fn shell(&self, script: &str) -> io::Result<()> {
        run(self.command("sh")?.args(["-ec", script]))
    }

    /// This program as a part of the load. An error of its is a line too.
    pub fn load(&self, words: &str) -> io::Result<Process> {
        let mut command = self.command("/proc/self/exe")?;
        Process::start(command.arg(crate::LOAD).args(words.split(' ')))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// A process of which each line is waited for; killed in the end.
pub struct Process {
    child: Child,
    /// Its standard input.
    pub input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
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
            lines,
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn line(&self, limit: Duration) -> io::Result<String> {
        let line = self.lines.recv_timeout(limit);
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
