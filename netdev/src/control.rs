//! Control of a network from any thread, while a guest runs and while none does.
//!
//! While a guest runs, a call is a job that the engine does in its next turn. Between two guests
//! the network's belongings lie here, and a call deals with them itself: a forward that is added
//! then is there for the next guest.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::{Config, Forward, Transport};
use crate::counters::Counters;
use crate::engine::Run;
use crate::flow::Carried;
use crate::forward::{ForwardError, Forwards, ListeningPort, Told};
use crate::link::capture::{self, Capture};

/// What a call waits for the engine's next turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// Calls that wait at once.
const MAX_JOBS: usize = 16;
/// Forwards of a network at once, whoever added them.
pub const MAX_FORWARDS: usize = 4096;
/// Flows that are listed at most.
pub const MAX_LISTED: usize = 4096;

/// Why a call did nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No guest runs, or the network is gone for good.
    #[error("the network is not running")]
    NotRunning,
    /// The engine had no turn.
    #[error("the network did not answer within a second; nothing was changed")]
    NoAnswer,
    /// Too many calls wait already.
    #[error("the network has too many requests to answer; try again")]
    Busy,
    /// The port cannot be had.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// There are as many as there may be.
    #[error("there are {MAX_FORWARDS} forwards already; remove one first")]
    TooMany,
    /// No forward has that port.
    #[error("no {0} forward at {1}")]
    NoForward(Transport, SocketAddr),
    /// The capture could not begin.
    #[error("cannot capture to {}: {}", .0.display(), why(.1))]
    Capture(PathBuf, io::Error),
    /// There is a capture already.
    #[error("frames are captured to {} already; stop that first", .0.display())]
    Capturing(PathBuf),
    /// There is no capture.
    #[error("nothing is captured")]
    NoCapture,
    /// The forward's socket could not be watched.
    #[error("port {0}: {1}")]
    Watch(SocketAddr, io::Error),
}

/// A forward, and what came by it. A removed one's numbers go on where it is added again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardStatus {
    /// Where from and where to.
    pub forward: Forward,
    /// Whether clients can connect now, or send.
    pub listens: bool,
    /// Connections that the guest was asked to take; of UDP, clients.
    pub connections: u64,
    /// Connections that were sent away before the guest was asked.
    pub refused: u64,
    /// Bytes of payload each way.
    pub carried: Carried,
}

/// A flow as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowStatus {
    /// TCP, UDP, or echoes.
    pub transport: Transport,
    /// The guest's port, or its echo's identifier.
    pub guest_port: u16,
    /// The far end as the guest sees it; an echo's has port 0.
    pub remote: SocketAddr,
    /// Whether it came in by a forward.
    pub forwarded: bool,
    /// Where it stands, in a word.
    pub state: &'static str,
    /// Since when there is one.
    pub age: Duration,
    /// Bytes of payload each way.
    pub carried: Carried,
}

/// The flows, or the first of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flows {
    /// How many there are.
    pub total: usize,
    /// As many as were asked for, at most [`MAX_LISTED`].
    pub flows: Vec<FlowStatus>,
}

/// A handle on a network, for any thread but the engine's own. Copies are handles on the same.
///
/// A call waits for the engine's next turn, for a second at most; an error means that nothing was
/// changed.
#[derive(Debug, Clone)]
pub struct Control {
    desk: Weak<Desk>,
    counters: Arc<Counters>,
    families: (bool, bool),
}

impl Control {
    pub(crate) fn new(desk: &Arc<Desk>, counters: Arc<Counters>, config: &Config) -> Self {
        Self {
            desk: Arc::downgrade(desk),
            counters,
            families: (config.v4.is_some(), config.v6.is_some()),
        }
    }

    /// Whether the guest has IPv4, and whether it has IPv6.
    pub fn families(&self) -> (bool, bool) {
        self.families
    }

    /// What the network has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Forwards one more port, which is bound before this returns, in the caller's network
    /// namespace. Fails where somebody has the port, as does every other error of the bind.
    pub fn add_forward(&self, forward: &Forward) -> Result<(), Error> {
        let port = ListeningPort::bind(forward, &self.counters)?;
        self.ask(
            port,
            |run, port| run.add_forward(port),
            |kept, port| kept.forwards.insert(port).map(drop),
        )?
    }

    /// Forwards a port no longer. Connections that came by it go on.
    pub fn remove_forward(&self, transport: Transport, bind: SocketAddr) -> Result<(), Error> {
        self.ask(
            (transport, bind),
            |run, (transport, bind)| run.remove_forward(transport, bind),
            |kept, (transport, bind)| kept.forwards.remove(transport, bind).map(drop),
        )?
        .ok_or(Error::NoForward(transport, bind))
    }

    /// All forwards.
    pub fn forwards(&self) -> Result<Vec<ForwardStatus>, Error> {
        self.ask(
            (),
            |run, ()| run.forwards().status(),
            |kept, ()| kept.forwards.status(),
        )
    }

    /// The guest has told what it listens on, and tells when that changes, so that its TCP ports are asked
    /// now and less often then, and its UDP ports are open where they are among those; or it does not any more.
    pub fn guest_tells(&self, told: Option<Told>) -> Result<(), Error> {
        self.ask(told, |run, told| run.guest_tells(told), |_, _| ())
    }

    /// The flows there are now, `most` of them at most. There are none without a guest.
    pub fn flows(&self, most: usize) -> Result<Flows, Error> {
        self.ask(
            most.min(MAX_LISTED),
            |run, most| Ok(run.list_flows(most)),
            |_, _| Err(Error::NotRunning),
        )?
    }

    /// Begins to capture every frame; goes on with the next guest if this one ends. One that has
    /// ended by itself makes place.
    pub fn start_capture(&self, options: capture::Options) -> Result<(), Error> {
        if let Some(other) = self.capture()?
            && other.ended.is_none()
        {
            return Err(Error::Capturing(other.path));
        }
        let path = options.path.clone();
        let capture = match Capture::start(options) {
            Ok(capture) => Box::new(capture),
            Err(error) => return Err(Error::Capture(path, error)),
        };
        let replaced = self.ask(
            capture,
            |run, capture| replace(run.capture(), capture),
            |kept, capture| replace(&mut kept.capture, capture),
        );
        match replaced {
            // What made place may have to be waited for, which is better done here.
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) | Err(error) => {
                // It is the one that was made above; where it stays it is only untidy.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Ends the capture and says how far it came; all of it is in the file then, unless that takes
    /// more than a second.
    pub fn stop_capture(&self) -> Result<capture::Status, Error> {
        let capture = self.ask(
            (),
            |run, ()| run.capture().take(),
            |kept, ()| kept.capture.take(),
        )?;
        capture
            .map(|capture| capture.finish())
            .ok_or(Error::NoCapture)
    }

    /// How far the capture is, if there is one.
    pub fn capture(&self) -> Result<Option<capture::Status>, Error> {
        let status = |capture: &Option<Box<Capture>>| Some(capture.as_ref()?.status());
        self.ask(
            status,
            |run, status| status(run.capture()),
            |kept, status| status(&kept.capture),
        )
    }

    fn ask<A, T>(
        &self,
        what: A,
        running: fn(&mut Run<'_>, A) -> T,
        idle: fn(&mut Kept, A) -> T,
    ) -> Result<T, Error>
    where
        A: Send + 'static,
        T: Send + 'static,
    {
        let desk = self.desk.upgrade().ok_or(Error::NotRunning)?;
        let (give, answer) = mpsc::sync_channel(1);
        let number = {
            let mut state = desk.lock();
            if let Some(kept) = &mut state.kept {
                return Ok(idle(kept, what));
            }
            if state.jobs.len() >= MAX_JOBS {
                return Err(Error::Busy);
            }
            state.number += 1;
            let number = state.number;
            let job: Job = Box::new(move |run| {
                // Nobody waits any more: nothing is lost but the answer.
                let _ = give.send(running(run, what));
            });
            state.jobs.push_back((number, job));
            if let Some(wake) = &state.wake {
                // The counter cannot be full: the engine empties it.
                let _ = wake.write(1);
            }
            number
        };
        match answer.recv_timeout(PATIENCE) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::NotRunning),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if desk.withdraw(number) {
            return Err(Error::NoAnswer);
        }
        // It is being done this moment.
        answer.recv().map_err(|_| Error::NotRunning)
    }
}

fn replace(
    place: &mut Option<Box<Capture>>,
    capture: Box<Capture>,
) -> Result<Option<Box<Capture>>, Error> {
    match place {
        Some(other) if other.status().ended.is_none() => Err(Error::Capturing(other.status().path)),
        _ => Ok(place.replace(capture)),
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "the file is there already; choose another".to_owned(),
        _ => error.to_string(),
    }
}

/// Something for the engine to do in its turn.
pub(crate) type Job = Box<dyn FnOnce(&mut Run<'_>) + Send>;

/// What a network keeps from one guest to the next.
#[derive(Default)]
pub(crate) struct Kept {
    pub forwards: Forwards,
    pub capture: Option<Box<Capture>>,
}

#[derive(Default)]
struct State {
    /// Here while no guest runs; the engine has it otherwise.
    kept: Option<Kept>,
    jobs: VecDeque<(u64, Job)>,
    number: u64,
    /// Made for the first guest, and readable when there are jobs.
    wake: Option<EventFd>,
}

impl State {
    fn take_jobs(&mut self) -> Vec<Job> {
        if let Some(wake) = &self.wake {
            // An error means that nobody has called.
            let _ = wake.read();
        }
        self.jobs.drain(..).map(|(_, job)| job).collect()
    }
}

/// Where calls and the engine meet.
#[derive(Default)]
pub(crate) struct Desk(Mutex<State>);

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    pub fn new(kept: Kept) -> Self {
        let desk = Self::default();
        desk.lock().kept = Some(kept);
        desk
    }

    /// A guest starts: what it needs, and what becomes readable when there are jobs, which calls
    /// are from here on.
    pub fn open(&self) -> io::Result<(Kept, RawFd)> {
        let mut state = self.lock();
        let wake = match state.wake.take() {
            Some(wake) => wake,
            None => EventFd::new(EFD_NONBLOCK)?,
        };
        let fd = state.wake.insert(wake).as_raw_fd();
        Ok((state.kept.take().unwrap_or_default(), fd))
    }

    /// The guest has ended; unless there are jobs, which come back with what was to be kept.
    pub fn close(&self, kept: Kept) -> Option<(Vec<Job>, Kept)> {
        let mut state = self.lock();
        if state.jobs.is_empty() {
            // Where the start failed it may never have been taken.
            state.kept.get_or_insert(kept);
            return None;
        }
        Some((state.take_jobs(), kept))
    }

    /// The jobs there are.
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().take_jobs()
    }

    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.retain(|(other, _)| *other != number);
        state.jobs.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::{sleep, spawn};
    use std::time::Instant;

    use super::*;
    use crate::engine::Engine;
    use crate::link::fake::{self, Guest};

    fn forward(transport: Transport) -> Forward {
        Forward {
            transport,
            bind: fake::free(),
            guest_port: 80,
        }
    }

    /// Has `test` run beside a network, and returns the engine.
    fn beside(mut engine: Engine, test: impl FnOnce(&Control, &Guest)) -> Engine {
        let (mut link, guest) = fake::pair();
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        let (control, stopped) = (engine.control(), stop.try_clone().unwrap());
        let thread = spawn(move || {
            engine.run(&mut link, stopped.as_raw_fd()).unwrap();
            engine
        });
        while matches!(control.flows(0), Err(Error::NotRunning)) {
            sleep(Duration::from_millis(1));
        }
        test(&control, &guest);
        stop.write(1).unwrap();
        thread.join().unwrap()
    }

    fn add(control: &Control, transport: Transport) -> SocketAddr {
        let forward = forward(transport);
        control.add_forward(&forward).unwrap();
        forward.bind
    }

    fn is_taken(bind: SocketAddr) -> bool {
        TcpListener::bind(bind).is_err()
    }

    #[test]
    fn forwards_come_and_go_while_no_guest_runs_and_are_kept() {
        let engine = Engine::new(fake::config()).unwrap();
        let control = engine.control();
        let bind = add(&control, Transport::Tcp);
        let other = add(&control, Transport::Udp);
        assert!(is_taken(bind));
        let again = control.add_forward(&Forward {
            bind,
            ..forward(Transport::Tcp)
        });
        assert!(matches!(again, Err(Error::Forward(ForwardError::InUse(_)))));
        assert!(matches!(control.flows(10), Err(Error::NotRunning)));
        let engine = beside(engine, |control, guest| {
            let forwards = control.forwards().unwrap();
            assert_eq!(forwards.len(), 2);
            assert_eq!(forwards[0].forward.bind, bind);
            let _client = TcpStream::connect(bind).unwrap();
            guest.accept();
        });
        assert_eq!(control.forwards().unwrap()[0].connections, 1);
        control.remove_forward(Transport::Udp, other).unwrap();
        control.remove_forward(Transport::Tcp, bind).unwrap();
        assert!(!is_taken(bind));
        let missing = control.remove_forward(Transport::Tcp, bind);
        assert_eq!(
            missing.unwrap_err().to_string(),
            format!("no tcp forward at {bind}")
        );
        drop(engine);
        assert!(matches!(control.forwards(), Err(Error::NotRunning)));
    }

    #[test]
    fn a_forward_that_is_added_while_a_guest_runs_carries_and_counts() {
        beside(Engine::new(fake::config()).unwrap(), |control, guest| {
            let bind = add(control, Transport::Tcp);
            let mut client = TcpStream::connect(bind).unwrap();
            let (far, mut header) = guest.accept();
            client.write_all(b"question").unwrap();
            assert_eq!(guest.data(), b"question");
            header.acknowledgement += 8;
            guest.segment(far, &header, b"answer");
            let mut answer = [0; 6];
            client.read_exact(&mut answer).unwrap();
            let carried = Carried {
                to_guest: 8,
                from_guest: 6,
            };
            let flows = control.flows(MAX_LISTED).unwrap();
            assert_eq!(flows.total, 1);
            let flow = &flows.flows[0];
            assert_eq!((flow.transport, flow.guest_port), (Transport::Tcp, 80));
            assert_eq!((flow.remote, flow.state), (far, "open"));
            assert!(flow.forwarded);
            assert_eq!(flow.carried, carried);
            assert!(control.flows(0).unwrap().flows.is_empty());
            let page = control.counters().prometheus();
            assert!(page.contains("peapod_net_flows 1\n"), "{page}");
            for direction in ["in", "out"] {
                let frames = format!(
                    "peapod_net_packets_total{{protocol=\"tcp\",direction=\"{direction}\"}} 0\n"
                );
                assert!(!page.contains(&frames), "{page}");
            }
            let status = control.forwards().unwrap().remove(0);
            assert!(status.listens);
            assert_eq!((status.connections, status.refused), (1, 0));
            assert_eq!(status.carried, carried);

            // It goes, its connections stay, and its numbers go on where it comes again.
            control.remove_forward(Transport::Tcp, bind).unwrap();
            assert!(TcpStream::connect(bind).is_err());
            client.write_all(b"more").unwrap();
            assert_eq!(guest.data(), b"more");
            let same = Forward {
                bind,
                ..forward(Transport::Tcp)
            };
            control.add_forward(&same).unwrap();
            assert_eq!(control.forwards().unwrap()[0].carried.to_guest, 12);
        });
    }

    #[test]
    fn the_place_of_a_forward_that_is_gone_is_taken_by_the_next() {
        beside(Engine::new(fake::config()).unwrap(), |control, guest| {
            let first = add(control, Transport::Udp);
            add(control, Transport::Tcp);
            control.remove_forward(Transport::Udp, first).unwrap();
            let udp = add(control, Transport::Udp);
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"hello", udp).unwrap();
            let frame = guest.receive();
            assert!(frame.ends_with(b"hello"));
            let gateway = Config::gateway(&fake::config(), udp.ip()).unwrap();
            let seen = SocketAddr::new(gateway, client.local_addr().unwrap().port());
            guest.datagram(80, seen, b"well");
            let mut bytes = [0; 10];
            assert_eq!(client.recv(&mut bytes).unwrap(), 4);
            let status = control.forwards().unwrap();
            let udp = status.iter().find(|status| status.forward.bind == udp);
            let udp = udp.unwrap();
            assert_eq!(udp.connections, 1);
            assert_eq!((udp.carried.to_guest, udp.carried.from_guest), (5, 4));
        });
    }

    #[test]
    fn a_forward_that_is_not_eager_is_asked_for_and_opens() {
        let config = Config {
            eager: false,
            ..fake::config()
        };
        beside(Engine::new(config).unwrap(), |control, guest| {
            let bind = add(control, Transport::Tcp);
            assert!(!control.forwards().unwrap()[0].listens);
            assert!(TcpStream::connect(bind).is_err());
            // It is worth asking once the guest has spoken.
            guest.datagram(1, "192.0.2.1:9".parse().unwrap(), b"");
            let start = Instant::now();
            while !control.forwards().unwrap()[0].listens {
                assert!(start.elapsed() < Duration::from_secs(5));
                // Of several questions the last one's answer counts.
                if guest.waiting() > 0 {
                    guest.accept();
                }
            }
            TcpStream::connect(bind).unwrap();
            // One more way to the same port opens at once.
            let second = add(control, Transport::Tcp);
            TcpStream::connect(second).unwrap();
        });
    }

    #[test]
    fn a_capture_begins_before_the_guest_and_goes_on_with_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        let mut engine = Engine::new(fake::config()).unwrap();
        let control = engine.control();
        control.start_capture(capture::Options::to(&path)).unwrap();
        for _ in 0..2 {
            engine = beside(engine, |control, guest| {
                guest.send(vec![0; 60]);
                // An answer to one is behind the frame.
                control.flows(0).unwrap();
                let error = control.start_capture(capture::Options::to(&other));
                assert_eq!(
                    error.unwrap_err().to_string(),
                    format!(
                        "frames are captured to {} already; stop that first",
                        path.display()
                    )
                );
            });
        }
        assert_eq!(control.capture().unwrap().unwrap().frames, 2);
        let status = control.stop_capture().unwrap();
        assert_eq!(status.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!((status.path, status.frames), (path.clone(), 2));
        assert!(matches!(control.stop_capture(), Err(Error::NoCapture)));
        assert!(!other.exists());
        let error = control.start_capture(capture::Options::to(&path));
        assert_eq!(
            error.unwrap_err().to_string(),
            format!(
                "cannot capture to {}: the file is there already; choose another",
                path.display()
            )
        );
    }

    #[test]
    fn a_call_that_is_not_answered_changes_nothing() {
        let mut engine = Engine::new(fake::config()).unwrap();
        let control = engine.control();
        let (mut link, _guest) = fake::pair();
        let mut run = engine.attach(&mut link, &Instant::now).unwrap();
        let start = Instant::now();
        let adding = control.add_forward(&forward(Transport::Tcp));
        assert!(matches!(adding, Err(Error::NoAnswer)));
        assert!(start.elapsed() >= PATIENCE);
        run.turn(false).unwrap();
        drop(run);
        assert!(control.forwards().unwrap().is_empty());
    }

    #[test]
    fn a_call_that_waits_when_the_guest_ends_is_answered() {
        let mut engine = Engine::new(fake::config()).unwrap();
        let control = engine.control();
        let (mut link, _guest) = fake::pair();
        let run = engine.attach(&mut link, &Instant::now).unwrap();
        let caller = spawn({
            let control = control.clone();
            move || add(&control, Transport::Tcp)
        });
        while control.desk.upgrade().unwrap().lock().jobs.is_empty() {
            sleep(Duration::from_millis(1));
        }
        drop(run);
        let bind = caller.join().unwrap();
        assert_eq!(control.forwards().unwrap()[0].forward.bind, bind);
        assert!(TcpStream::connect(bind).is_err());
    }

    #[test]
    fn calls_beyond_what_may_wait_are_turned_away() {
        let mut engine = Engine::new(fake::config()).unwrap();
        let control = engine.control();
        let (mut link, _guest) = fake::pair();
        let _run = engine.attach(&mut link, &Instant::now).unwrap();
        let callers: Vec<_> = (0..MAX_JOBS)
            .map(|_| {
                let control = control.clone();
                spawn(move || control.forwards().is_err())
            })
            .collect();
        while control.desk.upgrade().unwrap().lock().jobs.len() < MAX_JOBS {
            sleep(Duration::from_millis(1));
        }
        assert!(matches!(control.forwards(), Err(Error::Busy)));
        assert!(callers.into_iter().all(|caller| caller.join().unwrap()));
    }
}
