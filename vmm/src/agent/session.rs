//! A session with a guest's agent, for whoever may use the VM's socket: a request, and what belongs
//! to it, on a connection of its own (docs/agent-protocol.md).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_agent::protocol::{self, Frame, FrameError, Kind, Reply, Request, stream};

/// The one request's number.
const NUMBER: u32 = 1;
/// How long the agent may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than any `OK 4294967295\n`.
const GREETING: usize = 16;

/// Why there is no session, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM is not there.
    #[error("{path}: {cause}", path = .0.display(), cause = .1)]
    Connect(PathBuf, io::Error),
    /// Nobody in the guest is.
    #[error(
        "the guest's agent does not answer: it is not there yet, or this guest has none \
         (`peapod status` tells)"
    )]
    NoAgent,
    /// It did not do it, and says why.
    #[error("{0}")]
    Refused(String),
    /// It spoke otherwise than it should.
    #[error("the guest's agent: {0}")]
    Frame(#[from] FrameError),
    /// It takes too long.
    #[error("the guest's agent did not answer in time")]
    Late,
    /// The guest or its agent ended first.
    #[error("the guest or its agent ended amid it")]
    Ended,
}

/// What the agent says.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// What a program writes, or a file holds.
    Output(Vec<u8>),
    /// What a program complains of.
    Complaint(Vec<u8>),
    /// The end.
    Reply(Reply),
}

/// A session.
pub struct Session {
    stream: UnixStream,
    writer: Writer,
    until: Option<Instant>,
}

/// A stream that nothing comes from any more after a time.
struct Until<'a>(&'a UnixStream, Option<Instant>);

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.1 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
        }
        (&mut &*self.0).read(bytes)
    }
}

/// The way to the agent; a clone is another handle.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<UnixStream>>);

impl Session {
    /// Asks the agent of the VM whose vsock is at `socket`.
    pub fn open(socket: &Path, request: &Request) -> Result<Self, Error> {
        let mut session = Self::open_until(socket, request, Instant::now() + PATIENCE)?;
        session.until = None;
        let failed = |cause| Error::Connect(socket.to_owned(), cause);
        session.stream.set_read_timeout(None).map_err(failed)?;
        session.stream.set_write_timeout(None).map_err(failed)?;
        Ok(session)
    }

    /// The same for a session that is over then, whatever the agent does.
    pub fn open_until(socket: &Path, request: &Request, until: Instant) -> Result<Self, Error> {
        let failed = |cause| Error::Connect(socket.to_owned(), cause);
        let mut stream = UnixStream::connect(socket).map_err(failed)?;
        // A guest that does not read must not hold up who asks either.
        let left = until.saturating_duration_since(Instant::now());
        let patience = Some(left.max(Duration::from_millis(1)));
        stream.set_write_timeout(patience).map_err(failed)?;
        let (port, until) = (protocol::SESSIONS, Some(until));
        let greeted = writeln!(stream, "CONNECT {port}");
        let greeted = greeted.and_then(|()| greeting(&mut Until(&stream, until)));
        if !greeted.is_ok_and(|line| line.starts_with(b"OK ")) {
            return Err(Error::NoAgent);
        }
        let writer = Writer(Arc::new(Mutex::new(stream.try_clone().map_err(failed)?)));
        let session = Self {
            stream,
            writer,
            until,
        };
        // An agent that is gone already is heard of by its silence.
        let _ = session.writer.request(request);
        Ok(session)
    }

    /// The way to the agent.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// What the agent says next.
    pub fn hear(&mut self) -> Result<Said, Error> {
        loop {
            let frame = match protocol::read(&mut Until(&self.stream, self.until)) {
                Ok(frame) => frame.ok_or(Error::Ended)?,
                Err(_) if self.until.is_some_and(|until| until <= Instant::now()) => {
                    return Err(Error::Late);
                }
                Err(error) => return Err(error.into()),
            };
            let said = match (frame.kind, frame.payload.split_first()) {
                (Kind::Data, Some((&stream::OUT, bytes))) => Said::Output(bytes.to_vec()),
                (Kind::Data, Some((&stream::ERROR, bytes))) => Said::Complaint(bytes.to_vec()),
                (Kind::Reply, _) => match serde_json::from_slice(&frame.payload) {
                    Ok(Reply::Error(why)) => return Err(Error::Refused(super::shown(&why))),
                    Ok(reply) => Said::Reply(reply),
                    Err(error) => return Err(Error::Refused(format!("an odd reply: {error}"))),
                },
                // One of a later version.
                _ => continue,
            };
            return Ok(said);
        }
    }
}

impl Writer {
    /// Bytes for a program or a file; none end them.
    pub fn data(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(&Frame::data(NUMBER, stream::IN, bytes))
    }

    /// A request that belongs to the session.
    pub fn request(&self, request: &Request) -> io::Result<()> {
        self.send(&request.frame(NUMBER))
    }

    fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::write(&mut *stream, frame)
    }
}

/// The VM's own line, and no byte of what follows it.
fn greeting(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < GREETING {
        stream.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            [byte] => line.push(byte),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A VM's socket behind which an agent says these frames.
    fn agent(directory: &Path, greeting: &'static [u8], says: Vec<Frame>) -> PathBuf {
        let path = directory.join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 549\n");
            stream.write_all(greeting).unwrap();
            if !greeting.is_empty() {
                protocol::read(&mut stream).unwrap();
            }
            for frame in says {
                protocol::write(&mut stream, &frame).unwrap();
            }
        });
        path
    }

    fn data(bytes: &[u8]) -> Frame {
        Frame {
            kind: Kind::Data,
            number: NUMBER,
            payload: bytes.to_vec(),
        }
    }

    #[test]
    fn what_the_agent_says_is_heard_in_order_and_its_end_is_an_error_where_it_has_not_replied() {
        let directory = tempfile::tempdir().unwrap();
        let odd = Frame {
            kind: Kind::Unknown(9),
            ..data(b"")
        };
        let says = vec![
            data(b"\x01out"),
            odd,
            data(b"\x02oh"),
            data(b"\x07?"),
            data(b""),
        ];
        let path = agent(directory.path(), b"OK 7\n", says);
        let mut session = Session::open(&path, &Request::Ping).unwrap();
        assert_eq!(session.hear().unwrap(), Said::Output(b"out".to_vec()));
        assert_eq!(session.hear().unwrap(), Said::Complaint(b"oh".to_vec()));
        assert!(matches!(session.hear(), Err(Error::Ended)));
    }

    #[test]
    fn a_refusal_is_the_guests_word_and_shown_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let no = Reply::Error("no\x1b[2J".to_owned()).frame(NUMBER);
        let path = agent(directory.path(), b"OK 7\n", vec![no]);
        let mut session = Session::open(&path, &Request::Ping).unwrap();
        let Err(Error::Refused(why)) = session.hear() else {
            panic!("not refused");
        };
        assert!(!why.contains('\x1b'), "{why:?}");
    }

    #[test]
    fn a_guest_without_an_agent_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = agent(directory.path(), b"", Vec::new());
        assert!(matches!(
            Session::open(&path, &Request::Ping),
            Err(Error::NoAgent)
        ));
        let none = directory.path().join("none");
        assert!(matches!(
            Session::open(&none, &Request::Ping),
            Err(Error::Connect(..))
        ));
    }
}
