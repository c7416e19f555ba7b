//! `peapod exec`: a program of the guest, as if it were one of the host's.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::thread;
use std::time::Duration;

use guest_agent::protocol::{Exec, Reply, Request, Size};
use rustix::termios::tcgetwinsize;

use super::terminal::Raw;
use super::vms::{Error, Vm};
use crate::agent::program;
use crate::agent::session::{self, Said, Session, Writer};

/// How soon a terminal's new size is heard of.
const GLANCE: Duration = Duration::from_millis(200);
const PIECE: usize = 32 << 10;

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    vm: Vm,
    /// Pass standard input on to the program
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal, which standard input has to be
    #[arg(short, long)]
    tty: bool,
    /// A word of the program's environment; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = word)]
    env: Vec<(String, String)>,
    /// Where the program runs [default: /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The program and its arguments; `--` before them where one begins with a dash
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn word(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is NAME=VALUE".to_owned()),
    }
}

/// Runs it to its end: its status, or 128 and the number of the signal that ended it.
pub fn exec(args: &Args) -> Result<u8, Error> {
    let terminal = match args.tty {
        false => None,
        true if stdin().is_terminal() => size(),
        true => return Err(Error::NoTerminal),
    };
    let mut env: BTreeMap<_, _> = args.env.iter().cloned().collect();
    if terminal.is_some()
        && let Ok(kind) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(kind);
    }
    let request = Request::Exec(Exec {
        argv: args.command.clone(),
        env,
        cwd: args.workdir.clone(),
        terminal,
    });
    let mut session = args.vm.session(&request)?;
    let raw = match args.tty && args.stdin {
        true => Raw::set().map_err(|error| Error::Io("cannot set the terminal", error))?,
        false => None,
    };
    let writer = session.writer();
    let typing = args.stdin;
    thread::spawn(move || match typing {
        true => pass_on(&writer),
        false => drop(writer.data(&[])),
    });
    if let Some(size) = terminal {
        let writer = session.writer();
        thread::spawn(move || watch_size(size, &writer));
    }
    let ended = hear(&mut session);
    drop(raw);
    ended.map_err(|error| args.vm.said(error))
}

/// Everything on standard input.
fn pass_on(writer: &Writer) {
    let (mut input, mut bytes) = (stdin().lock(), vec![0; PIECE]);
    while let Ok(count @ 1..) = input.read(&mut bytes) {
        if writer.data(bytes.get(..count).unwrap_or_default()).is_err() {
            return;
        }
    }
    // A program that has ended needs no end of its input.
    let _ = writer.data(&[]);
}

fn size() -> Option<Size> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

fn watch_size(mut known: Size, writer: &Writer) {
    loop {
        thread::sleep(GLANCE);
        if let Some(now) = size().filter(|now| *now != known) {
            known = now;
            if writer.request(&Request::Resize(now)).is_err() {
                return;
            }
        }
    }
}

fn hear(session: &mut Session) -> Result<u8, session::Error> {
    loop {
        let written = match session.hear()? {
            Said::Output(bytes) => write(stdout().lock(), &bytes),
            Said::Complaint(bytes) => write(stderr().lock(), &bytes),
            Said::Reply(reply) => return Ok(status(&reply)),
        };
        // Whoever closed the pipe has read enough, and the program hears that we are gone.
        if written.is_err() {
            return Ok(super::status::FAILURE);
        }
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn status(reply: &Reply) -> u8 {
    let status = program::status(reply).and_then(|status| u8::try_from(status).ok());
    status.unwrap_or(super::status::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_status_is_its_own_or_its_signal_s() {
        for (code, signal, expected) in [
            (Some(0), None, 0),
            (Some(3), None, 3),
            (None, Some(9), 137),
            (None, None, 1),
            (Some(999), None, 1),
        ] {
            assert_eq!(status(&Reply::Exited { code, signal }), expected);
        }
    }
}
