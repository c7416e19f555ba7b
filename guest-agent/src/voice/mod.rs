//! The guest's voice: tells the VMM what the agent is doing, and does what it asks
//! (docs/agent-protocol.md).

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::guest;
use crate::power::{self, End};
use crate::protocol::{self, Event, Frame, Kind, Outcome, Reply, Request, Role, StageState};
use crate::{say, uptime_ms};

/// The VMM's address (vsock(7), `VMADDR_CID_HOST`).
const HOST: u32 = 2;
/// The first privileged port that is tried, downwards.
const FIRST_PORT: u32 = protocol::PRIVILEGED_PORTS - 1;
/// How long a VMM may not listen that is there.
const REFUSED: Duration = Duration::from_secs(10);
/// How long a root's own kernel may take to load what vsock needs, and how often it is asked.
const UNLOADED: Duration = Duration::from_secs(120);
const UNLOADED_PAUSE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(50);
/// What is said while nobody listens, at most.
const KEPT: usize = 64;
/// Requests about the guest that are worked on at once.
const MOST: usize = 8;
/// How long the VMM may take to hear of the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A handle of the voice; a clone is another of the same.
#[derive(Debug, Clone)]
pub struct Voice(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    role: Role,
    line: Line,
    failures: usize,
    /// The ports as they were told last, for a VMM that comes later.
    ports: Option<Event>,
    /// How the set-up ended, for the same.
    ready: Option<Event>,
}

#[derive(Debug)]
enum Line {
    /// Not connected yet: what was said meanwhile.
    Waiting(Vec<Event>),
    Open(UnixStream),
    /// There is no VMM that listens.
    None,
}

impl Voice {
    /// Connects to the VMM, on a thread of its own; what is said before that is not lost.
    pub fn start(role: Role) -> Self {
        let voice = Self(Arc::new(Mutex::new(State {
            role,
            line: Line::Waiting(Vec::new()),
            failures: 0,
            ports: None,
            ready: None,
        })));
        let speaker = voice.clone();
        thread::spawn(move || speaker.converse());
        voice
    }

    /// The agent's place is another now.
    pub fn role(&self, role: Role) {
        self.state().role = role;
        self.tell(hello(role));
    }

    /// A stage is so far.
    pub fn stage(&self, name: &str, state: StageState) {
        self.tell(stage(name, state, None));
    }

    /// A stage failed, or a part of it; the guest goes on.
    pub fn failed(&self, name: &str, why: &str) {
        say!("{name}: {why}");
        self.state().failures += 1;
        self.tell(stage(name, StageState::Failed, Some(why.to_owned())));
    }

    /// The set-up is over.
    pub fn ready(&self) {
        let outcome = match self.state().failures {
            0 => Outcome::Done,
            _ => Outcome::Degraded,
        };
        say!("ready");
        let ready = Event::Ready {
            outcome,
            uptime_ms: uptime_ms(),
        };
        self.keep(ready, |state| &mut state.ready);
    }

    /// The ports are these now.
    pub fn ports(&self, ports: Event) {
        self.keep(ports, |state| &mut state.ports);
    }

    /// Tells what a VMM that comes later is told too.
    fn keep(&self, event: Event, place: impl FnOnce(&mut State) -> &mut Option<Event>) {
        let mut state = self.state();
        *place(&mut state) = Some(event.clone());
        if let Line::Open(_) = state.line {
            drop(state);
            self.tell(event);
        }
    }

    /// The guest cannot go on: says why and powers it off.
    pub fn fatal(&self, reason: &str) -> ! {
        say!("cannot go on: {reason}");
        let reason = reason.to_owned();
        self.tell(Event::Fatal { reason });
        // The VMM ends the machine when it has heard; nobody else would.
        let end = Instant::now() + LAST_WORDS;
        while Instant::now() < end {
            thread::sleep(PAUSE);
        }
        power::now(End::PowerOff)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        let mut state = self.state();
        match &mut state.line {
            Line::Waiting(events) if events.len() < KEPT => events.push(event),
            Line::Open(stream) => {
                if protocol::write(stream, &event.frame()).is_err() {
                    // The reader sees the end as well, and connects anew.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            Line::Waiting(_) | Line::None => {}
        }
    }

    /// Speaks with the VMM as long as there is one.
    fn converse(&self) {
        loop {
            let mut stream = match connect() {
                Ok(stream) => stream,
                Err(error) => {
                    say!("nobody listens at the VMM's vsock: {error}");
                    self.state().line = Line::None;
                    return;
                }
            };
            match self.open(&stream).and_then(|()| self.listen(&mut stream)) {
                // So a copy's ends that goes on with another VMM; it is no news to anybody.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => say!("the VMM's connection broke: {error}"),
                Ok(()) => {}
            }
            self.state().line = Line::Waiting(Vec::new());
            thread::sleep(PAUSE);
        }
    }

    fn open(&self, stream: &UnixStream) -> io::Result<()> {
        let mut writer = stream.try_clone()?;
        let mut state = self.state();
        protocol::write(&mut writer, &hello(state.role).frame())?;
        if let Line::Waiting(events) = &mut state.line {
            for event in events.drain(..) {
                protocol::write(&mut writer, &event.frame())?;
            }
        }
        for last in [&state.ready, &state.ports].into_iter().flatten() {
            protocol::write(&mut writer, &last.frame())?;
        }
        state.line = Line::Open(writer);
        Ok(())
    }

    fn listen(&self, stream: &mut UnixStream) -> io::Result<()> {
        while let Some(frame) = protocol::read(stream)? {
            if frame.kind == Kind::Request
                && let Some(reply) = self.answer(&frame)
            {
                self.reply(&reply.frame(frame.number))?;
            }
        }
        Ok(())
    }

    fn reply(&self, frame: &Frame) -> io::Result<()> {
        match &mut self.state().line {
            Line::Open(stream) => protocol::write(stream, frame),
            _ => Ok(()),
        }
    }

    /// The reply; `None` where it comes later.
    fn answer(&self, frame: &Frame) -> Option<Reply> {
        let reply = match serde_json::from_slice(&frame.payload) {
            Ok(Request::Ping) => Reply::Ok,
            Ok(Request::PowerOff) => match power::ask(End::PowerOff) {
                Ok(()) => Reply::Ok,
                Err(error) => Reply::Error(format!("cannot power off: {error}")),
            },
            Ok(Request::Exec(_) | Request::ReadFile { .. } | Request::WriteFile { .. }) => {
                Reply::Error("that is a session's request".to_owned())
            }
            Ok(Request::Resize(_) | Request::Unknown) => {
                Reply::Error("a request that is not known here".to_owned())
            }
            // What waits for nothing, and comes when a copy has other things to do, needs no thread.
            Ok(request @ (Request::SetClock { .. } | Request::Reseed { .. })) => {
                return guest::answer(&request);
            }
            Ok(request) => return self.answer_later(frame.number, request),
            Err(error) => Reply::Error(format!("not a request: {error}")),
        };
        Some(reply)
    }

    /// What may wait for a disk does not hold up what does not.
    fn answer_later(&self, number: u32, request: Request) -> Option<Reply> {
        static WORKED_ON: AtomicUsize = AtomicUsize::new(0);
        if WORKED_ON.fetch_add(1, Ordering::Relaxed) >= MOST {
            WORKED_ON.fetch_sub(1, Ordering::Relaxed);
            let busy = format!("{MOST} requests are worked on already");
            return Some(Reply::Error(busy));
        }
        let voice = self.clone();
        thread::spawn(move || {
            let reply = guest::answer(&request)
                .unwrap_or_else(|| Reply::Error("a request that is not known here".to_owned()));
            // A VMM that is gone needs none.
            let _ = voice.reply(&reply.frame(number));
            WORKED_ON.fetch_sub(1, Ordering::Relaxed);
        });
        None
    }
}

fn hello(role: Role) -> Event {
    Event::Hello {
        version: protocol::VERSION,
        software: concat!("peapod-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
        role: Some(role),
    }
}

fn stage(name: &str, state: StageState, detail: Option<String>) -> Event {
    Event::Stage {
        name: name.to_owned(),
        state,
        uptime_ms: uptime_ms(),
        detail,
    }
}

/// Connects from a privileged port. A VMM that still has an earlier connection refuses for a
/// moment, and a root's own kernel may still have to load what vsock needs.
fn connect() -> io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        let error = match attempt(protocol::PORT) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match patience(&error) {
            Some((patience, pause)) if start.elapsed() < patience => thread::sleep(pause),
            _ => return Err(error),
        }
    }
}

/// How long, and how often, it is worth another attempt.
fn patience(error: &io::Error) -> Option<(Duration, Duration)> {
    use ErrorKind::{ConnectionRefused, ConnectionReset, TimedOut};
    if [ConnectionReset, ConnectionRefused, TimedOut].contains(&error.kind()) {
        return Some((REFUSED, PAUSE));
    }
    is_unloaded(error).then_some((UNLOADED, UNLOADED_PAUSE))
}

/// Whether the kernel has no vsock, or none yet.
pub fn is_unloaded(error: &io::Error) -> bool {
    let unloaded = [libc::ENODEV, libc::EAFNOSUPPORT].map(Some);
    unloaded.contains(&error.raw_os_error())
}

/// A connection to a port of the VMM's, which only root in the guest can make.
pub fn attempt(at: u32) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM.cloexec(), None)?;
    let mut port = FIRST_PORT;
    // Any address of ours (`VMADDR_CID_ANY`).
    while let Err(error) = socket.bind(&SockAddr::vsock(u32::MAX, port)) {
        if error.kind() != io::ErrorKind::AddrInUse || port == 1 {
            return Err(error);
        }
        port -= 1;
    }
    socket.connect(&SockAddr::vsock(HOST, at))?;
    // Only read, written and shut down from here on, which is the same for every stream.
    Ok(UnixStream::from(OwnedFd::from(socket)))
}
