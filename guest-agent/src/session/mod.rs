//! What the VMM has done in the guest: a connection of its own for each request, so that one that
//! is slow holds up no other (docs/agent-protocol.md).

mod exec;
mod file;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::protocol::{self, Frame, Kind, Reply, Request};
use crate::say;
pub use exec::ENVIRONMENT;

/// The VMM's address (vsock(7), `VMADDR_CID_HOST`).
const HOST: u32 = 2;
/// Any address of ours (`VMADDR_CID_ANY`).
const ANY: u32 = u32::MAX;
const BACKLOG: i32 = 16;
/// How long there may be no vsock, and how often it is asked for.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);
/// Sessions at once.
const MOST: usize = 64;

/// Serves the VMM's sessions, on a thread of its own, as long as this process lives.
pub fn serve() {
    thread::spawn(|| {
        if let Err(error) = listen() {
            say!("the VMM cannot run anything here: {error}");
        }
    });
}

fn listen() -> io::Result<()> {
    let listener = bind()?;
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        let (socket, from) = listener.accept()?;
        // The kernel says who it is; a program of the guest would be this machine itself.
        if from.as_vsock_address().map(|(cid, _)| cid) != Some(HOST) {
            continue;
        }
        let _ = socket.set_cloexec(true);
        // Only read, written and shut down from here on, which is the same for every stream.
        let stream = UnixStream::from(OwnedFd::from(socket));
        let sessions = sessions.clone();
        thread::spawn(move || {
            let crowd = sessions.fetch_add(1, Ordering::Relaxed);
            // A VMM that is gone needs no answer.
            let _ = converse(stream, crowd < MOST);
            sessions.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// A root's own kernel may still have to load what vsock needs.
fn bind() -> io::Result<Socket> {
    let end = Instant::now() + PATIENCE;
    let attempt = || {
        let listener = Socket::new(Domain::VSOCK, Type::STREAM.cloexec(), None)?;
        listener.bind(&SockAddr::vsock(ANY, protocol::SESSIONS))?;
        listener.listen(BACKLOG)?;
        Ok(listener)
    };
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// A session's line to the VMM, for the threads that have something to say. A clone is another
/// handle.
#[derive(Clone)]
struct Line {
    stream: Arc<Mutex<UnixStream>>,
    number: u32,
}

impl Line {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::write(&mut *stream, frame)
    }

    /// Bytes of a stream; none end it.
    fn data(&self, stream: u8, bytes: &[u8]) -> io::Result<()> {
        self.send(&Frame::data(self.number, stream, bytes))
    }

    fn reply(&self, reply: &Reply) -> io::Result<()> {
        self.send(&reply.frame(self.number))
    }
}

/// One request and what belongs to it.
fn converse(mut stream: UnixStream, room: bool) -> io::Result<()> {
    let Some(frame) = protocol::read(&mut stream).map_err(io::Error::other)? else {
        return Ok(());
    };
    let line = Line {
        stream: Arc::new(Mutex::new(stream.try_clone()?)),
        number: frame.number,
    };
    let request = serde_json::from_slice(&frame.payload);
    let refused = match request {
        _ if frame.kind != Kind::Request => "a session begins with a request".to_owned(),
        _ if !room => format!("{MOST} sessions are open already"),
        Ok(Request::Ping) => return line.reply(&Reply::Ok),
        Ok(Request::Exec(exec)) => return exec::run(&exec, &mut stream, &line),
        Ok(Request::ReadFile { path }) => return file::read(&path, &line),
        Ok(Request::WriteFile { path, mode }) => {
            return file::write(&path, mode, &mut stream, &line);
        }
        Ok(_) => "not a request for a session".to_owned(),
        Err(error) => format!("not a request: {error}"),
    };
    line.reply(&Reply::Error(refused))
}

#[cfg(test)]
mod tests;
