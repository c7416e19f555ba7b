//! The seed for an agent that asks for it over vsock, where there is no disk with it: a file a
//! connection, sent as the agent sends those of the guest.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guest_agent::protocol::{self, Frame, Kind, Reply, Request, stream};

use super::{root_only, shown};
use crate::sandbox;

/// Read by root alone.
const MODE: u32 = 0o600;
const PIECE: usize = 256 << 10;
/// Connections at once.
const MOST: usize = 4;
/// How long a guest may neither ask nor read.
const PATIENCE: Duration = Duration::from_secs(10);

/// A seed's files by their names.
pub type Files = Vec<(&'static str, Vec<u8>)>;

/// What is handed out; a clone is another handle.
#[derive(Clone)]
pub struct Seed {
    files: Arc<Files>,
    connections: Arc<AtomicUsize>,
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It holds passwords; they have no business in a log.
        write!(f, "Seed({} files)", self.files.len())
    }
}

impl Seed {
    /// Hands out `files`.
    pub fn new(files: Files) -> Self {
        Self {
            files: Arc::new(files),
            connections: Arc::default(),
        }
    }

    /// A stream for the guest's vsock port `from`, on which a file may be asked for. Refused where
    /// the port is one that any user of the guest can have.
    pub fn connect(&self, from: u32) -> io::Result<UnixStream> {
        root_only(from)?;
        // The guest's connections are made on one thread.
        if self.connections.load(Ordering::Relaxed) >= MOST {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (mut ours, guests) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        let seed = self.clone();
        seed.connections.fetch_add(1, Ordering::Relaxed);
        let spawned = sandbox::spawn(sandbox::Kind::Agent, move || {
            if let Err(error) = seed.answer(&mut ours) {
                tracing::debug!("the seed was not read to its end: {error}");
            }
            seed.connections.fetch_sub(1, Ordering::Relaxed);
        });
        match spawned {
            Ok(_) => Ok(guests),
            Err(error) => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn answer(&self, stream: &mut UnixStream) -> io::Result<()> {
        let Some(frame) = protocol::read(stream)? else {
            return Ok(());
        };
        let reply = match serde_json::from_slice(&frame.payload) {
            Ok(Request::ReadFile { path }) if frame.kind == Kind::Request => {
                self.send(&path, frame.number, stream)?
            }
            _ => Reply::Error("a file of the seed is all that can be asked for here".to_owned()),
        };
        protocol::write(stream, &reply.frame(frame.number))
    }

    fn send(&self, path: &str, number: u32, stream: &mut UnixStream) -> io::Result<Reply> {
        let file = self.files.iter().find(|(name, _)| *name == path);
        let Some((name, bytes)) = file else {
            let why = format!("{}: the seed has no such file", shown(path));
            return Ok(Reply::Error(why));
        };
        for piece in bytes.chunks(PIECE) {
            protocol::write(stream, &Frame::data(number, stream::OUT, piece))?;
        }
        tracing::info!("the guest's agent has the seed's {name} over vsock");
        Ok(Reply::File { mode: MODE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(seed: &Seed, request: &Request) -> (Vec<u8>, Reply) {
        let mut stream = seed.connect(1023).unwrap();
        protocol::write(&mut stream, &request.frame(7)).unwrap();
        let mut bytes = Vec::new();
        loop {
            let frame = protocol::read(&mut stream).unwrap().unwrap();
            assert_eq!(frame.number, 7);
            match frame.kind {
                Kind::Data => bytes.extend(&frame.payload[1..]),
                _ => return (bytes, serde_json::from_slice(&frame.payload).unwrap()),
            }
        }
    }

    #[test]
    fn root_in_the_guest_reads_the_seed_and_nothing_else() {
        let mib = vec![b'x'; 1 << 20];
        let seed = Seed::new(vec![("user-data", mib.clone()), ("meta-data", Vec::new())]);
        let read = |path: &str| {
            let path = path.to_owned();
            ask(&seed, &Request::ReadFile { path })
        };
        assert_eq!(read("user-data"), (mib, Reply::File { mode: MODE }));
        assert_eq!(read("meta-data"), (Vec::new(), Reply::File { mode: MODE }));
        for odd in ["/etc/shadow", "vendor-data"] {
            assert!(matches!(read(odd), (_, Reply::Error(_))), "{odd}");
        }
        assert!(matches!(ask(&seed, &Request::Ping), (_, Reply::Error(_))));
        assert!(seed.connect(1024).is_err());
        assert_eq!(format!("{seed:?}"), "Seed(2 files)");
    }

    #[test]
    fn a_guest_that_asks_nothing_has_few_connections() {
        let seed = Seed::new(Vec::new());
        let held: Vec<_> = (0..MOST).map(|_| seed.connect(1).unwrap()).collect();
        assert!(seed.connect(1).is_err());
        drop(held);
    }
}
