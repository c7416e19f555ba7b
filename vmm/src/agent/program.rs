//! Programs that a guest's agent runs and that end soon, or are hung up on; and whether it is there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_agent::protocol::{Exec, Reply, Request};

use super::qga::Qga;
use super::session::{Error, Said, Session};

/// What a shell adds to the number of the signal that ended a program.
pub const BY_SIGNAL: i32 = 128;

/// The agent behind a VM's vsock, or QEMU's where that one is the guest's.
#[derive(Clone)]
pub struct Programs {
    socket: PathBuf,
    qga: Option<Qga>,
}

/// A program's status by the reply about its end: its own, or 128 and the signal that ended it.
pub fn status(reply: &Reply) -> Option<i32> {
    match *reply {
        Reply::Exited { code, signal } => code.or(signal.map(|signal| BY_SIGNAL + signal)),
        _ => None,
    }
}

/// How a program of the guest ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its status, or 128 and the signal that ended it.
    pub status: i32,
    /// What it wrote to its standard output, as much as was wanted of it.
    pub output: Vec<u8>,
}

impl Programs {
    /// The agent of the VM whose vsock is at `socket`.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket, qga: None }
    }

    /// The same, or that one while it is there.
    pub fn or(self, qga: Option<Qga>) -> Self {
        Self { qga, ..self }
    }

    fn qga(&self) -> Option<&Qga> {
        self.qga.as_ref().filter(|qga| qga.is_there())
    }

    /// Whether it answers.
    pub fn ping(&self, within: Duration) -> Result<(), Error> {
        match self.qga() {
            Some(qga) => qga.ping(within),
            None => self.ask(&Request::Ping, within, 0).map(|_| ()),
        }
    }

    /// Runs a program, which is hung up on when its time is over.
    pub fn run(&self, argv: Vec<String>, within: Duration, most: usize) -> Result<Ended, Error> {
        if let Some(qga) = self.qga() {
            return qga.run(&argv, within, most);
        }
        let exec = Exec {
            argv,
            ..Exec::default()
        };
        let (reply, output) = self.ask(&Request::Exec(exec), within, most)?;
        let odd = || Error::Refused("the agent does not say how it ended".to_owned());
        Ok(Ended {
            status: status(&reply).ok_or_else(odd)?,
            output,
        })
    }

    /// The reply, and what came before it: no more of that than `most` bytes are kept.
    fn ask(
        &self,
        request: &Request,
        within: Duration,
        most: usize,
    ) -> Result<(Reply, Vec<u8>), Error> {
        let mut session = Session::open_until(&self.socket, request, Instant::now() + within)?;
        if let Request::Exec(_) = request {
            // No input. One that has ended already needs none.
            let _ = session.writer().data(&[]);
        }
        let mut output = Vec::new();
        loop {
            match session.hear()? {
                Said::Output(bytes) => {
                    let room = most.saturating_sub(output.len());
                    output.extend(bytes.into_iter().take(room));
                }
                Said::Complaint(_) => {}
                Said::Reply(reply) => return Ok((reply, output)),
            }
        }
    }
}
