//! Runs a program for the VMM, with its three streams, or on a terminal.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Line;
use crate::children;
use crate::protocol::{self, Exec, Kind, Reply, Request, Size, stream};

/// What every program has in its environment.
pub const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
];
/// How long the output of a program that has ended may come late. What it left in the background
/// may hold its end of the pipe for ever.
const LATE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// How much may come late: more than a pipe holds is written by what is in the background.
const MAX_LATE: usize = 1 << 20;
const PIECE: usize = 32 << 10;
/// What a pipe that is ready takes without a wait (pipe(7), `PIPE_BUF`).
const READY: usize = 4096;
/// A terminal's end of input (termios(3), `VEOF`).
const END_OF_INPUT: &[u8] = b"\x04";

/// Runs it until it ends; where the VMM goes first, it is told so by a hang-up.
pub fn run(exec: &Exec, from: &mut UnixStream, line: &Line) -> io::Result<()> {
    let started = match start(exec, line) {
        Ok(started) => started,
        Err(error) => {
            let name = exec.argv.first().map_or("", String::as_str);
            return line.reply(&Reply::Error(format!("{name}: {error}")));
        }
    };
    let Started {
        child,
        mut input,
        terminal,
        copiers,
        end,
    } = started;
    let pid = Pid::from_raw(child.pid);
    let (waiter, closing) = (line.clone(), from.try_clone()?);
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    thread::spawn(move || {
        let status = child.wait();
        ended.store(true, Ordering::Relaxed);
        drop(end);
        for copier in copiers {
            let _ = copier.join();
        }
        let _ = waiter.reply(&exited(status));
        let _ = closing.shutdown(std::net::Shutdown::Both);
    });
    while let Ok(Some(frame)) = protocol::read(from) {
        match (frame.kind, frame.payload.split_first()) {
            (Kind::Data, Some((&stream::IN, bytes))) => {
                let bytes = match (bytes, &terminal) {
                    ([], Some(_)) => END_OF_INPUT,
                    (bytes, _) => bytes,
                };
                // A program that does not read any more does not end the session.
                input = match (input.take(), bytes) {
                    (Some(mut open), [_, ..]) => {
                        feed(&mut open, bytes, from).is_ok().then_some(open)
                    }
                    _ => None,
                };
            }
            (Kind::Request, _) => {
                if let (Some(terminal), Ok(Request::Resize(size))) =
                    (&terminal, serde_json::from_slice(&frame.payload))
                {
                    // A terminal that is gone has no size.
                    let _ = tcsetwinsize(terminal, winsize(size));
                }
            }
            _ => {}
        }
    }
    // What a program that has ended left in the background lives on.
    if let Some(pid) = pid
        && !over.load(Ordering::Relaxed)
    {
        // It may end this moment.
        let _ = kill_process_group(pid, Signal::HUP);
    }
    Ok(())
}

/// Writes to a program that may not read, as long as there is somebody who types.
fn feed(input: &mut File, bytes: &[u8], from: &UnixStream) -> io::Result<()> {
    for piece in bytes.chunks(READY) {
        loop {
            let mut fds = [
                PollFd::new(&*input, PollFlags::OUT),
                PollFd::new(from, PollFlags::RDHUP),
            ];
            poll(&mut fds, None)?;
            let [program, vmm] = &fds;
            if !vmm.revents().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !program.revents().is_empty() {
                break;
            }
        }
        input.write_all(piece)?;
    }
    Ok(())
}

struct Started {
    child: children::Child,
    input: Option<File>,
    terminal: Option<OwnedFd>,
    /// What sends the program's output.
    copiers: Vec<JoinHandle<()>>,
    /// Dropped when the program has ended, which the copiers see.
    end: io::PipeWriter,
}

fn start(exec: &Exec, line: &Line) -> io::Result<Started> {
    let Some((program, arguments)) = exec.argv.split_first() else {
        return Err(io::Error::other("no program is named"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(exec.cwd.as_deref().unwrap_or("/"))
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(&exec.env);
    // SAFETY: signal() between fork and exec is safe (signal-safety(7)) and touches no memory.
    unsafe {
        command.pre_exec(|| {
            // Whoever started the agent may have wanted it not to hear; its programs do.
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    let (ended, end) = io::pipe()?;
    let copy = |from: File, stream: u8| -> io::Result<JoinHandle<()>> {
        let (line, ended) = (line.clone(), ended.try_clone()?);
        Ok(thread::spawn(move || copy(from, stream, &line, &ended)))
    };
    let Some(size) = exec.terminal else {
        command.process_group(0);
        let (input, input_writer) = io::pipe()?;
        let (output_reader, output) = io::pipe()?;
        let (error_reader, error) = io::pipe()?;
        command.stdin(input).stdout(output).stderr(error);
        let child = children::spawn(&mut command)?;
        // It holds the other ends too.
        drop(command);
        return Ok(Started {
            child,
            input: Some(OwnedFd::from(input_writer).into()),
            terminal: None,
            copiers: vec![
                copy(OwnedFd::from(output_reader).into(), stream::OUT)?,
                copy(OwnedFd::from(error_reader).into(), stream::ERROR)?,
            ],
            end,
        });
    };
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    tcsetwinsize(&ours, winsize(size))?;
    let name = ptsname(&ours, Vec::new())?;
    let name = name.to_str().map_err(io::Error::other)?;
    let theirs = File::options().read(true).write(true).open(name)?;
    command
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs));
    // SAFETY: between fork and exec this makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = children::spawn(&mut command)?;
    drop(command);
    let ours = File::from(ours);
    Ok(Started {
        child,
        copiers: vec![copy(ours.try_clone()?, stream::OUT)?],
        terminal: Some(ours.try_clone()?.into()),
        input: Some(ours),
        end,
    })
}

fn winsize(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Sends what a program writes, until nobody can write any more, or the program has `ended` and
/// what it left behind is silent.
fn copy(mut from: File, stream: u8, line: &Line, ended: &PipeReader) {
    let mut bytes = vec![0; PIECE];
    let (mut over, mut late) = (false, 0);
    while late < MAX_LATE {
        let ready = match over {
            false => {
                let mut fds = [
                    PollFd::new(&from, PollFlags::IN),
                    PollFd::new(ended, PollFlags::IN),
                ];
                let polled = poll(&mut fds, None);
                let [program, end] = &fds;
                over = polled.is_ok() && !end.revents().is_empty();
                polled.is_ok() && !program.revents().is_empty()
            }
            true => {
                let polled = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&LATE));
                if !matches!(polled, Ok(1..)) {
                    break;
                }
                true
            }
        };
        if !ready {
            continue;
        }
        // A terminal's end is an error.
        let Ok(count @ 1..) = from.read(&mut bytes) else {
            break;
        };
        if over {
            late += count;
        }
        let said = bytes.get(..count).unwrap_or_default();
        if line.data(stream, said).is_err() {
            return;
        }
    }
    let _ = line.data(stream, &[]);
}

fn exited(status: ExitStatus) -> Reply {
    Reply::Exited {
        code: status.code(),
        signal: status.signal(),
    }
}
