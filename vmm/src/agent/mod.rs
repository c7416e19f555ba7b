//! The host's side of the agent's protocol (docs/agent-protocol.md). What the agent says is the
//! guest's word: it is logged and shown, and nothing else depends on it.

mod ask;
mod follow;
pub mod program;
pub mod qga;
pub mod seed;
pub mod session;
#[cfg(test)]
mod tests;
pub mod timeline;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use guest_agent::protocol::{
    self, Event, Kind, Outcome, PRIVILEGED_PORTS, Reply, Request, Role, StageState,
};

use serde::{Deserialize, Serialize};

pub use ask::{PATIENCE, Unanswered, answered};
pub use follow::Follower;

use crate::changes::Changes;
use crate::power::{self, Power};
use crate::sandbox;
use timeline::Timeline;

/// How long a request may wait for room in the stream.
const ROOM: Duration = Duration::from_secs(1);
/// Longer words of the guest are cut in a log.
const SHOWN: usize = 200;

/// Stages that are remembered; a guest may make up as many as it likes.
const STAGES: usize = 64;

/// What the agent has said, which is the guest's word. Its texts are cut, and free of what a
/// terminal would obey.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// There is one.
    pub connected: bool,
    /// Where it is.
    pub role: Option<Role>,
    /// What it calls itself.
    pub software: Option<String>,
    /// How the set-up ended, once it has.
    pub outcome: Option<Outcome>,
    /// When that was, in milliseconds of the guest's uptime.
    pub ready_ms: Option<u64>,
    /// The set-up so far, in the order in which it began.
    pub stages: Vec<Stage>,
}

/// A stage of the guest's set-up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: StageState,
    /// Since when, in milliseconds of the guest's uptime.
    pub uptime_ms: u64,
    /// Why it failed.
    pub detail: Option<String>,
}

/// The agent of one VM, whether it is there or not. A clone is another handle.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Asked with no lock on the state: it waits for the network's next turn.
    follower: Mutex<Option<Follower>>,
    timeline: Mutex<Timeline>,
    streams: SyncSender<UnixStream>,
    changes: Changes,
}

#[derive(Default)]
struct State {
    /// The stream to an agent that is connected.
    stream: Option<UnixStream>,
    /// What it has said.
    status: Status,
    /// The guest is to power off, now or as soon as its agent speaks.
    power_off: bool,
    /// The machine that it is in.
    machine: Option<Power>,
    /// The guest is a copy of another, which its agent does not know yet; with what it is to begin
    /// its random numbers anew.
    restored: Option<[u8; 16]>,
    last_number: u32,
    /// Who waits for an answer.
    waiting: ask::Waiting,
}

/// The streams of an agent that nobody listens to yet.
pub struct Streams(Receiver<UnixStream>);

impl Agent {
    /// One that nobody listens to before [`Agent::listen_to`].
    pub fn new() -> (Self, Streams) {
        // One stream may wait while the thread is not yet done with the last.
        let (streams, incoming) = sync_channel(1);
        let agent = Self(Arc::new(Shared {
            state: Mutex::default(),
            follower: Mutex::default(),
            timeline: Mutex::default(),
            streams,
            changes: Changes::default(),
        }));
        (agent, Streams(incoming))
    }

    /// Starts the thread that listens to the agent.
    pub fn listen_to(&self, streams: Streams) -> io::Result<()> {
        let agent = self.clone();
        sandbox::spawn(sandbox::Kind::Agent, move || agent.listen(&streams.0))?;
        Ok(())
    }

    /// A stream for the guest's vsock port `from`, which wants to be the agent. Refused where the
    /// port is one that any user of the guest can have, and while there is an agent.
    pub fn connect(&self, from: u32) -> io::Result<UnixStream> {
        root_only(from)?;
        let mut state = self.state();
        if state.stream.is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (ours, guests) = UnixStream::pair()?;
        // A guest that does not read must not hold up who asks.
        ours.set_write_timeout(Some(ROOM))?;
        self.0
            .streams
            .try_send(ours.try_clone()?)
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        state.stream = Some(ours);
        Ok(guests)
    }

    /// The machine that the agent is in from now on.
    pub fn watch(&self, machine: Power) {
        self.state().machine = Some(machine);
    }

    /// What the guest listens on is `follower`'s business from now on.
    pub fn follow_by(&self, follower: Follower) {
        *self.follower() = Some(follower);
    }

    /// The guest is a copy of another, and is told the time and `seed` as soon as its agent speaks.
    pub fn is_a_copy(&self, seed: [u8; 16]) {
        self.state().restored = Some(seed);
    }

    /// Whether the guest's set-up is over.
    pub fn is_ready(&self) -> bool {
        self.state().status.outcome.is_some()
    }

    /// Whether there is one.
    pub fn is_connected(&self) -> bool {
        self.state().status.connected
    }

    /// What it has said so far.
    pub fn status(&self) -> Status {
        self.state().status.clone()
    }

    /// When the guest's set-up came how far, whichever of its agents said so.
    pub fn timeline(&self) -> Timeline {
        self.marks().clone()
    }

    fn marks(&self) -> MutexGuard<'_, Timeline> {
        let timeline = self.0.timeline.lock();
        timeline.unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the VM, that its agent has come, gone or got ready among them.
    pub fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// Asks the guest to power itself off: now, or when its agent has come.
    pub fn power_off(&self) {
        let mut state = self.state();
        state.power_off = true;
        if state.status.connected {
            ask(&mut state, &Request::PowerOff);
        } else {
            tracing::info!("the guest's agent has not spoken yet; it will be told to power off");
        }
    }

    fn follower(&self) -> MutexGuard<'_, Option<Follower>> {
        let follower = self.0.follower.lock();
        follower.unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, incoming: &Receiver<UnixStream>) {
        while let Ok(mut stream) = incoming.recv() {
            let mine = Event::Hello {
                version: protocol::VERSION,
                software: concat!("peapod ", env!("CARGO_PKG_VERSION")).to_owned(),
                role: None,
            };
            let mut result = protocol::write(&mut stream, &mine.frame());
            while result.is_ok() {
                match protocol::read(&mut stream) {
                    Ok(Some(frame)) => self.frame(&frame),
                    Ok(None) => break,
                    Err(error) => result = Err(error.into()),
                }
            }
            if let Err(error) = result {
                tracing::warn!("the agent's connection broke: {error}");
            }
            if let Some(follower) = &mut *self.follower() {
                follower.lose();
            }
            let mut state = self.state();
            *state = State {
                power_off: state.power_off,
                machine: state.machine.take(),
                restored: state.restored,
                ..State::default()
            };
            drop(state);
            self.0.changes.tell();
        }
    }

    fn frame(&self, frame: &protocol::Frame) {
        let json = &frame.payload;
        match frame.kind {
            Kind::Event => match serde_json::from_slice(json) {
                Ok(event) => self.event(event),
                Err(error) => tracing::warn!("an event of the agent's is not one: {error}"),
            },
            Kind::Reply => self.reply(frame),
            Kind::Request | Kind::Data | Kind::Unknown(_) => {}
        }
    }

    fn reply(&self, frame: &protocol::Frame) {
        // Taken in any case: who waits for what is no reply hears so by its end.
        let waiting = self.state().waiting.take(frame.number);
        match (ask::read(&frame.payload), waiting) {
            (Ok(reply), Some(then)) => then(reply),
            (Ok(Reply::Error(why)), None) => {
                tracing::warn!("the agent could not do it: {}", shown(&why));
            }
            // Nobody waits for it any more.
            (Ok(_), None) => {}
            (Err(error), _) => tracing::warn!("a reply of the agent's is not one: {error}"),
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Hello {
                version,
                software,
                role,
            } => {
                let place = match role {
                    Some(Role::Initramfs) => "in the initramfs",
                    Some(Role::Init) => "as process 1",
                    Some(Role::Service) => "as a service",
                    Some(Role::Unknown) | None => "somewhere",
                };
                tracing::info!(
                    "the agent speaks {place}: {}, version {version} of the protocol",
                    shown(&software)
                );
                self.marks().hello(SystemTime::now());
                let mut state = self.state();
                state.status.connected = true;
                state.status.role = role;
                state.status.software = Some(shown(&software));
                if let Some(seed) = state.restored.take() {
                    ask(&mut state, &ask::clock());
                    ask(&mut state, &ask::reseed(seed));
                }
                if state.power_off {
                    ask(&mut state, &Request::PowerOff);
                }
                drop(state);
                self.0.changes.tell();
            }
            Event::Stage {
                name,
                state,
                uptime_ms,
                detail,
            } => {
                let (name, detail) = (shown(&name), detail.as_deref().map(shown));
                match state {
                    StageState::Failed => tracing::warn!(
                        "the guest's stage {name} failed: {}",
                        detail.as_deref().unwrap_or("no reason given")
                    ),
                    state => {
                        tracing::debug!("the guest's stage {name}: {state:?} at {uptime_ms} ms")
                    }
                }
                let stage = Stage {
                    name,
                    state,
                    uptime_ms,
                    detail,
                };
                self.marks().stage(&stage, SystemTime::now());
                self.state().status.stage(stage);
            }
            Event::Ready { outcome, uptime_ms } => {
                self.marks().ready(uptime_ms, SystemTime::now());
                let mut state = self.state();
                state.status.outcome = Some(outcome);
                state.status.ready_ms = Some(uptime_ms);
                drop(state);
                self.0.changes.tell();
                let seconds = uptime_ms as f64 / 1000.0;
                match outcome {
                    Outcome::Degraded => {
                        tracing::warn!("the guest is ready after {seconds:.3} s, with failures");
                    }
                    _ => tracing::info!("the guest is ready after {seconds:.3} s"),
                }
            }
            Event::Ports { tcp, udp, clients } => {
                if let Some(follower) = &mut *self.follower() {
                    follower.follow(&tcp, &udp, clients);
                }
            }
            Event::Fatal { reason } => {
                if let Some(machine) = &self.state().machine {
                    machine.end(power::Outcome::GaveUp(shown(&reason)));
                }
            }
            Event::Unknown => {}
        }
    }
}

impl Status {
    fn stage(&mut self, stage: Stage) {
        let room = self.stages.len() < STAGES;
        match self.stages.iter_mut().find(|s| s.name == stage.name) {
            // What failed stays failed, for whoever looks later.
            Some(known) if known.state == StageState::Failed => {}
            Some(known) => *known = stage,
            None if room => self.stages.push(stage),
            None => {}
        }
    }
}

/// Refuses a port of the guest's that any of its users can have.
fn root_only(from: u32) -> io::Result<()> {
    match from < PRIVILEGED_PORTS {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Sends a request; its number.
fn ask(state: &mut State, request: &Request) -> u32 {
    state.last_number = state.last_number.wrapping_add(1);
    let frame = request.frame(state.last_number);
    if let Some(stream) = &mut state.stream
        && let Err(error) = protocol::write(stream, &frame)
    {
        tracing::warn!("the agent cannot be asked: {error}");
    }
    state.last_number
}

/// The guest's words for a log: cut, and without what a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN) {
        match letter {
            // They are no terminal's business.
            '"' | '\'' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}
