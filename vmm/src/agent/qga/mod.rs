//! The client of QEMU's guest agent, for a guest that may have that and cannot have Peapod's: one
//! whose own loader UEFI starts, or whose agent was told to stay out. What it says is the guest's word.
//!
//! Source: qga/qapi-schema.json of QEMU.

mod info;
mod wire;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
pub use guest_agent::qga::PORT;
use serde_json::{Value, json};

use crate::agent::program::{BY_SIGNAL, Ended};
use crate::agent::session::Error;
use crate::agent::{PATIENCE, shown};
use crate::changes::Changes;
use crate::sandbox;
use wire::Wire;

/// How often it is looked whether the agent has come or gone.
const LOOK: Duration = Duration::from_secs(2);
/// How long it may take to answer what it need not think about.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two questions whether a program has ended, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// What the file systems of a guest's disks are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandStill {
    /// Stand still, for so many seconds at most where it is said.
    For(Option<u32>),
    /// Go on.
    NoMore,
}

/// The agent of a guest, whether it is there or not. A clone is another handle.
#[derive(Clone)]
pub struct Qga(Arc<Shared>);

struct Shared {
    wire: Mutex<Wire>,
    /// Whether the guest has opened the port.
    open: Arc<AtomicBool>,
    /// What it says that its version is.
    version: Mutex<Option<String>>,
    /// When file systems that stand still are to go on: QEMU's agent knows no such time.
    thaw: Mutex<Option<Instant>>,
    changes: Changes,
}

impl Qga {
    /// The agent at the other end of `stream`, where it is `open`; who waits for `changes` hears of
    /// its coming and going.
    pub fn new(stream: UnixStream, open: Arc<AtomicBool>, changes: Changes) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            wire: Mutex::new(Wire::new(stream)?),
            open,
            version: Mutex::default(),
            thaw: Mutex::default(),
            changes,
        })))
    }

    /// Starts the thread that looks for it.
    pub fn watch(&self) -> io::Result<()> {
        let qga = self.clone();
        sandbox::spawn_named(sandbox::Kind::Agent, "qga", move || {
            loop {
                qga.look();
                qga.thaw_in_time();
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(())
    }

    fn look(&self) {
        let open = self.0.open.load(Ordering::Acquire);
        let known = self.is_there();
        if open == known {
            return;
        }
        let version = match open {
            true => self.ask("guest-info", Value::Null, ANSWER).ok(),
            false => None,
        };
        let version = version.map(|info| {
            let version = info.get("version").and_then(Value::as_str);
            shown(version.unwrap_or("unknown"))
        });
        match &version {
            Some(version) => tracing::info!("the guest has QEMU's guest agent {version}"),
            None if known => tracing::info!("QEMU's guest agent is gone"),
            None => return,
        }
        *self.known() = version;
        self.0.changes.tell();
    }

    /// Its version, where it is there.
    pub fn version(&self) -> Option<String> {
        self.known().clone()
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.known().is_some()
    }

    /// Whether it answers.
    pub fn ping(&self, within: Duration) -> Result<(), Error> {
        self.ask("guest-ping", Value::Null, within).map(drop)
    }

    /// Asks the guest to power itself off; whether somebody is there to be asked.
    pub fn power_off(&self) -> bool {
        // What it powers off answers nothing.
        let tell = || (self.wire()).tell("guest-shutdown", json!({ "mode": "powerdown" }));
        self.is_there() && tell().is_ok()
    }

    /// Runs a program, and no longer waits for it when its time is over.
    pub fn run(&self, argv: &[String], within: Duration, most: usize) -> Result<Ended, Error> {
        let until = Instant::now() + within;
        let left = || until.saturating_duration_since(Instant::now());
        let (path, arg) = argv.split_first().ok_or_else(|| odd("no program"))?;
        let exec = json!({ "path": path, "arg": arg, "capture-output": true });
        let started = self.ask("guest-exec", exec, left())?;
        let pid = started.get("pid").and_then(Value::as_i64);
        let pid = pid.ok_or_else(|| odd("it does not say what it started"))?;
        let [mut pause, longest] = PAUSES;
        loop {
            let status = self.ask("guest-exec-status", json!({ "pid": pid }), left())?;
            if status.get("exited") == Some(&Value::Bool(true)) {
                return ended(&status, most).ok_or_else(|| odd("it does not say how it ended"));
            }
            if left().is_zero() {
                return Err(Error::Late);
            }
            std::thread::sleep(pause.min(left()));
            pause = (pause * 2).min(longest);
        }
    }

    /// Has the guest's file systems stand still or go on. Where it is said for how long, they go on
    /// within [`LOOK`] after that.
    pub fn stand_still(&self, how: StandStill) -> Result<(), Error> {
        let command = match how {
            StandStill::For(_) => "guest-fsfreeze-freeze",
            StandStill::NoMore => "guest-fsfreeze-thaw",
        };
        // What is to be written is written first.
        self.ask(command, Value::Null, PATIENCE)?;
        *self.thaw() = match how {
            StandStill::For(Some(seconds)) => {
                Some(Instant::now() + Duration::from_secs(seconds.into()))
            }
            _ => None,
        };
        Ok(())
    }

    fn thaw_in_time(&self) {
        if self.thaw().is_none_or(|at| at > Instant::now()) {
            return;
        }
        match self.stand_still(StandStill::NoMore) {
            Ok(()) => tracing::info!("the guest's file systems go on: their time is over"),
            Err(error) => {
                // One that is gone has nothing that stands still, or nobody who could tell.
                *self.thaw() = None;
                tracing::warn!("the guest's file systems may still stand still: {error}");
            }
        }
    }

    fn thaw(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.thaw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, command: &str, arguments: Value, within: Duration) -> Result<Value, Error> {
        if !self.0.open.load(Ordering::Acquire) {
            return Err(Error::NoAgent);
        }
        let until = Instant::now() + within;
        self.wire().ask(command, arguments, until)
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Option<String>> {
        let version = self.0.version.lock();
        version.unwrap_or_else(PoisonError::into_inner)
    }
}

fn odd(why: &str) -> Error {
    Error::Refused(format!("QEMU's guest agent: {why}"))
}

/// How a program ended.
fn ended(status: &Value, most: usize) -> Option<Ended> {
    let number = |name: &str| i32::try_from(status.get(name)?.as_i64()?).ok();
    let code = number("exitcode").or_else(|| Some(BY_SIGNAL.saturating_add(number("signal")?)));
    let output = status.get("out-data").and_then(Value::as_str);
    let mut output = BASE64_STANDARD.decode(output.unwrap_or_default()).ok()?;
    output.truncate(most);
    Some(Ended {
        status: code?,
        output,
    })
}

#[cfg(test)]
mod tests;
