//! What the VMM asks the agent over its own connection, and who waits for the answer.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_agent::protocol::{GuestInfo, Reply, Request};
use serde_json::Value;

use super::{Agent, ask, shown};

/// How long an answer may take, for who waits here for it. Disks that are frozen are written first.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Answers that are waited for at once.
const WAITING: usize = 64;
/// The most letters of one text in an answer.
const TEXT: usize = 64 << 10;

/// Why there is no answer, or none that is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Nobody in the guest is there to be asked.
    #[error(
        "the guest's agent does not answer: it is not there yet, or this guest has none \
         (`peapod status` tells)"
    )]
    NoAgent,
    /// It went before it answered, or too many asked after.
    #[error("the guest's agent went before it answered")]
    Gone,
    /// It takes too long.
    #[error("the guest's agent did not answer within {} s", PATIENCE.as_secs())]
    Late,
    /// It did not do it, and says why.
    #[error("{0}")]
    Refused(String),
    /// It answered something else.
    #[error("the guest's agent answered something else")]
    Odd,
}

type Then = Box<dyn FnOnce(Reply) + Send>;

/// Who waits for which answer. Whose closure is dropped gets none.
#[derive(Default)]
pub(super) struct Waiting(BTreeMap<u32, Then>);

impl Waiting {
    /// One that waits longer than too many others is given up.
    fn push(&mut self, number: u32, then: Then) {
        if self.0.len() >= WAITING {
            self.0.pop_first();
        }
        self.0.insert(number, then);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, number: u32) -> Option<Then> {
        self.0.remove(&number)
    }
}

impl Agent {
    /// Asks, and has `then` called with the answer, on the agent's thread. It is dropped where none
    /// comes.
    pub fn ask_then(
        &self,
        request: &Request,
        then: impl FnOnce(Reply) + Send + 'static,
    ) -> Result<(), Unanswered> {
        let mut state = self.state();
        if !state.status.connected {
            return Err(Unanswered::NoAgent);
        }
        // Nobody else can answer before the lock is gone.
        let number = ask(&mut state, request);
        state.waiting.push(number, Box::new(then));
        Ok(())
    }

    /// Asks and waits for the answer, which is not [`Reply::Error`].
    pub fn ask(&self, request: &Request) -> Result<Reply, Unanswered> {
        let (give, given) = sync_channel(1);
        self.ask_then(request, move |reply| {
            // Who is gone needs none.
            let _ = give.send(reply);
        })?;
        match given.recv_timeout(PATIENCE) {
            Ok(reply) => answered(reply),
            Err(RecvTimeoutError::Timeout) => Err(Unanswered::Late),
            Err(RecvTimeoutError::Disconnected) => Err(Unanswered::Gone),
        }
    }

    /// What the guest is and has. It is the guest's word, free of what a terminal would obey.
    pub fn guest_info(&self) -> Result<GuestInfo, Unanswered> {
        match self.ask(&Request::GuestInfo)? {
            Reply::GuestInfo(info) => Ok(*info),
            _ => Err(Unanswered::Odd),
        }
    }

    /// Tells the guest the time, after nobody has run it for a while.
    pub fn set_clock(&self) {
        let told = self.ask_then(&clock(), |reply| {
            if let Err(why) = answered(reply) {
                tracing::warn!("the guest's clock is not set: {why}");
            }
        });
        if told.is_err() {
            tracing::debug!("nobody in the guest is there to set its clock");
        }
    }
}

/// What tells the guest the time.
pub(super) fn clock() -> Request {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Request::SetClock {
        // Until the year 2554.
        unix_ns: now.unwrap_or_default().as_nanos() as u64,
    }
}

/// What has the guest's random numbers be others than those of the guest that it is a copy of.
pub(super) fn reseed(seed: [u8; 16]) -> Request {
    Request::Reseed {
        seed: seed.to_vec(),
    }
}

/// An answer, or in the agent's words why there is none.
pub fn answered(reply: Reply) -> Result<Reply, Unanswered> {
    match reply {
        Reply::Error(why) => Err(Unanswered::Refused(shown(&why))),
        reply => Ok(reply),
    }
}

/// Reads a reply, its texts cut and without what a terminal would obey.
pub(super) fn read(payload: &[u8]) -> serde_json::Result<Reply> {
    let mut value = serde_json::from_slice(payload)?;
    clean(&mut value);
    serde_json::from_value(value)
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => {
            let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            *text = text.chars().take(TEXT).map(plain).collect();
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(fields) => fields.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
