//! The way to QEMU's guest agent: a question a line, an answer a line, and a number that both know
//! before the first, for what came before may be anybody's.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::session::Error;
use crate::agent::shown;

/// No answer is longer: a program's output is of 16 MiB at most, and ours are asked for less.
const MAX_LINE: usize = 4 << 20;
const PIECE: usize = 4 << 10;
/// How long a question may wait for room.
const ROOM: Duration = Duration::from_secs(1);
/// What neither side's JSON has in it: what follows is new.
const SENTINEL: u8 = 0xff;

/// The way there and back.
pub struct Wire {
    stream: UnixStream,
    /// What has come of a line.
    got: Vec<u8>,
    /// Whether what comes is the answer to what was asked.
    in_step: bool,
    last: u32,
}

impl Wire {
    /// By that stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(ROOM))?;
        Ok(Self {
            stream,
            got: Vec::new(),
            in_step: false,
            last: std::process::id(),
        })
    }

    /// Asks, and waits until then for the answer, which is the guest's word.
    pub fn ask(&mut self, command: &str, arguments: Value, until: Instant) -> Result<Value, Error> {
        if !self.in_step {
            self.step(until)?;
        }
        self.in_step = false;
        self.tell(command, arguments)?;
        let line = self.line(until)?;
        let answer: Value = serde_json::from_slice(&line)
            .map_err(|error| Error::Refused(format!("an odd reply: {error}")))?;
        // Whatever it says, it is the answer.
        self.in_step = true;
        if let Some(error) = answer.get("error") {
            let why = error.get("desc").and_then(Value::as_str);
            return Err(Error::Refused(shown(why.unwrap_or("it failed"))));
        }
        let answer = answer.get("return").cloned();
        answer.ok_or_else(|| Error::Refused("an odd reply".to_owned()))
    }

    /// Sends a command, whose answer nobody waits for.
    pub fn tell(&mut self, command: &str, arguments: Value) -> Result<(), Error> {
        let mut question = json!({ "execute": command });
        if let (Value::Object(fields), false) = (&mut question, arguments.is_null()) {
            fields.insert("arguments".to_owned(), arguments);
        }
        self.send(&question)
    }

    fn send(&mut self, question: &Value) -> Result<(), Error> {
        let line = format!("{question}\n");
        self.stream
            .write_all(line.as_bytes())
            .map_err(|_| Error::Ended)
    }

    /// Agrees on a number with the agent; all that came before is passed over.
    fn step(&mut self, until: Instant) -> Result<(), Error> {
        self.last = self.last.wrapping_add(1);
        self.stream
            .write_all(&[SENTINEL])
            .map_err(|_| Error::Ended)?;
        self.tell("guest-sync-delimited", json!({ "id": self.last }))?;
        loop {
            let line = self.line(until)?;
            let fresh = line.rsplit(|byte| *byte == SENTINEL).next();
            let answer: Result<Value, _> = serde_json::from_slice(fresh.unwrap_or_default());
            if answer.is_ok_and(|answer| answer.get("return") == Some(&self.last.into())) {
                return Ok(());
            }
        }
    }

    fn line(&mut self, until: Instant) -> Result<Vec<u8>, Error> {
        let mut from = 0;
        loop {
            let rest = self.got.get(from..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.got.drain(..=from + end).collect();
                line.pop();
                return Ok(line);
            }
            from = self.got.len();
            if from > MAX_LINE {
                self.got.clear();
                return Err(Error::Refused("an answer without an end".to_owned()));
            }
            self.more(until)?;
        }
    }

    fn more(&mut self, until: Instant) -> Result<(), Error> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Late);
        }
        let mut piece = [0; PIECE];
        let read = self.stream.set_read_timeout(Some(left));
        match read.and_then(|()| self.stream.read(&mut piece)) {
            Ok(0) => Err(Error::Ended),
            Ok(read) => {
                self.got.extend(piece.iter().take(read));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Late),
            Err(_) => Err(Error::Ended),
        }
    }
}
