//! The guest's vsock: what is at the host's ports, and the socket by which the host's clients
//! reach the guest's.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use guest_agent::protocol;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::agent::Agent;
use crate::agent::seed::Seed;
use crate::devices::virtio::vsock::{Ports, SOCKET, Vsock};

/// Services of the host: what is at `vsock_<port>` in the state directory is what the guest finds at
/// that port.
struct HostPorts {
    agent: Agent,
    seed: Option<Seed>,
    directory: PathBuf,
}

impl Ports for HostPorts {
    fn connect(&mut self, port: u32, from: u32) -> io::Result<UnixStream> {
        if port == protocol::PORT {
            return self.agent.connect(from);
        }
        if let (protocol::SEED, Some(seed)) = (port, &self.seed) {
            return seed.connect(from);
        }
        let service = SockAddr::unix(self.directory.join(format!("{SOCKET}_{port}")))?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        // A service whose backlog is full refuses, and nobody waits for it.
        socket.connect(&service)?;
        Ok(OwnedFd::from(socket).into())
    }
}

/// The socket device of a VM whose state is in `directory`.
pub fn vsock(agent: Agent, seed: Option<Seed>, directory: &Path) -> io::Result<Vsock> {
    // One that a process which was killed has left.
    remove(directory)?;
    let listener = UnixListener::bind(directory.join(SOCKET))?;
    let ports = HostPorts {
        agent,
        seed,
        directory: directory.to_owned(),
    };
    Vsock::new(Box::new(ports), Some(listener))
}

/// Removes the socket.
pub fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
